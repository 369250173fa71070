"""BIRD's control socket: the protocol that birdc, birdcl and calico-node speak.

Thinking: ``reply`` (codes and lines), ``lexer``, ``expression`` and ``values``, ``command`` (what a
line means), ``show_*`` and ``listing`` (what is printed), ``engine`` (what a command does).  Shell:
``server``.
"""
