"""TCP, UDP and ping sockets of one namespace: protocol cores, no I/O, no asyncio.

``SocketTable`` (table.py) is the door: it takes packets from the namespace, finds their socket and
sends what sockets have to say.  ``TcpConnection`` (tcp.py) is RFC 9293 in segments and timers; its
halves are ``Sender`` (tcp_send.py) and ``Receiver`` (tcp_receive.py), its states one table
(tcp_state.py).  asyncio over all this is emulator/runtime/stack.py.
"""
