"""The only generic asyncio glue: clock, randomness, roles, control sockets, underlay, driver."""
