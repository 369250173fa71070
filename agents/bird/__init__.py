"""A BGP speaker with BIRD's meanings: protocol cores, tables, and one thin shell (daemon.py).

``config`` is what somebody wants of it, ``Speaker`` (speaker.py) thinks, ``BirdDaemon`` moves the
bytes, ``snapshot`` is what one can see of it.
"""
