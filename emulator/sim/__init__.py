"""Virtual time: a deterministic event loop, an in-memory network, hosts that crash and return.

Agents are plain asyncio; the event loop is the seam.  ``simulate(main, seed=…)`` runs a coroutine
in a world where a day passes in milliseconds and a seed replays every packet.
"""
