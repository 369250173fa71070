"""ss, netstat and nc: what listens, what is connected, and a way to try."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from emulator.netstack.sock.render import NETSTAT_STATES, place, render_ss
from emulator.netstack.sock.tcp_state import State
from emulator.runtime.stack_transport import MAX_PORT
from emulator.shell.context import READ_BYTES, os_error_text, seconds_of, whole_number
from emulator.shell.names import ResolveError, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.netstack.sock.table import SocketInfo
    from emulator.shell.context import ShellContext

# Datagrams nc has not printed yet; more are lost, as in a full receive buffer (212992 bytes).
MAX_DATAGRAMS: Final = 256


def _wanted(ctx: ShellContext, flags: set[str]) -> list[SocketInfo]:
    infos = list(ctx.ns.sockets.sockets())
    protocols = {name for name, flag in (("tcp", "t"), ("udp", "u")) if flag in flags}
    if protocols:
        infos = [info for info in infos if info.proto in protocols]
    passive = (State.LISTEN, State.CLOSED)
    if "a" in flags:
        return infos
    if "l" in flags:
        return [info for info in infos if info.tcp.state in passive]
    return [info for info in infos if info.tcp.state not in (*passive, State.TIME_WAIT)]


async def ss(ctx: ShellContext, argv: Sequence[str]) -> int:
    """ss [-tulanp4s]."""
    flags: set[str] = set()
    for word in argv[1:]:
        if not word.startswith("-") or set(word.lstrip("-")) - set("tulanpe4siHo"):
            ctx.err(f"ss: invalid option -- '{word.lstrip('-')[:1]}'\n")
            return 255
        flags |= set(word[1:])
    if "s" in flags:
        ctx.out(_summary(ctx))
        return 0
    text = render_ss(_wanted(ctx, flags), netid=("t" in flags) == ("u" in flags))
    ctx.out(text.partition("\n")[2] if "H" in flags else text)
    return 0


def _summary(ctx: ShellContext) -> str:
    infos = ctx.ns.sockets.sockets()
    tcp = [info for info in infos if info.proto == "tcp"]
    states = [info.tcp.state for info in tcp]
    waiting = states.count(State.TIME_WAIT)
    live = len(tcp) - waiting
    udp = len(infos) - len(tcp)
    return (
        f"Total: {len(infos)}\n"
        f"TCP:   {len(tcp)} (estab {states.count(State.ESTABLISHED)}, closed {waiting}, "
        f"orphaned 0, timewait {waiting})\n\n"
        "Transport Total     IP        IPv6\n"
        "RAW\t  0         0         0        \n"
        f"UDP\t  {udp:<10d}{udp:<10d}0        \n"
        f"TCP\t  {live:<10d}{live:<10d}0        \n"
        f"INET\t  {live + udp:<10d}{live + udp:<10d}0        \n"
        "FRAG\t  0         0         0        \n\n"
    )


async def netstat(ctx: ShellContext, argv: Sequence[str]) -> int:
    """netstat [-tulanpr]."""
    flags = {letter for word in argv[1:] if word.startswith("-") for letter in word[1:]}
    if "r" in flags:
        from emulator.shell.registry import run_command

        return await run_command(ctx, ["route", "-n"])
    which = (
        "(servers and established)"
        if "a" in flags
        else "(only servers)"
        if "l" in flags
        else "(w/o servers)"
    )
    program = "PID/Program name    " if "p" in flags else ""
    ctx.out(
        f"Active Internet connections {which}\n"
        "Proto Recv-Q Send-Q Local Address           Foreign Address         "
        f"State       {program}\n".replace("State       \n", "State      \n")
    )
    for info in _wanted(ctx, flags):
        local, peer = place(info.tcp.local), place(info.tcp.remote)
        state = NETSTAT_STATES[info.tcp.state]
        # A listener's Send-Q is its backlog for ss, nothing for netstat.
        send_queue = 0 if info.tcp.state is State.LISTEN else info.tcp.send_queue
        tail = "-                   " if "p" in flags else ""
        ctx.out(
            f"{info.proto:<5} {info.tcp.receive_queue:>6} {send_queue:>6} "
            f"{local:<23} {peer:<23} {state:<11}{' ' if tail else ''}{tail}".rstrip(" ")
            + (" " * 5 if state and not tail else "")
            + "\n"
        )
    return 0


async def nc(ctx: ShellContext, argv: Sequence[str]) -> int:
    """nc [-zvu] [-w SECONDS] [-p PORT] HOST PORT, nc -l [-p] PORT: one connection, or UDP."""
    flags: set[str] = set()
    operands: list[str] = []
    wait_s: float | None = None
    port_given = ""
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        if word in ("-w", "-p", "-q", "-s", "-i") and words:
            value = words.pop(0)
            if word == "-w":
                wait_s = seconds_of(value)
            elif word == "-p":
                port_given = value
        elif word.startswith("-w") and (seconds := seconds_of(word[2:])) is not None:
            wait_s = seconds
        elif word.startswith("-"):
            flags |= set(word[1:])
        else:
            operands.append(word)
    if "l" in flags:
        return await _listen(ctx, port_given or (operands[-1] if operands else ""))
    port = whole_number(operands[1]) if len(operands) == 2 else None
    if port is None:
        ctx.err("usage: nc [-46lvzu] [-p source_port] [-w timeout] [destination] [port]\n")
        return 1
    if port > MAX_PORT:
        busybox = ctx.style == "busybox"
        text = f"bad port '{operands[1]}'" if busybox else f"port number too large: {operands[1]}"
        ctx.err(f"nc: {text}\n")
        return 1
    return await _dial(ctx, operands[0], port, flags, wait_s)


async def _dial(
    ctx: ShellContext, host: str, port: int, flags: set[str], wait_s: float | None
) -> int:
    busybox = ctx.style == "busybox"
    try:
        address = await resolve(ctx, host)
    except ResolveError:
        if busybox:
            ctx.err(f"nc: bad address '{host}'\n")
        else:
            ctx.err(f'nc: getaddrinfo for host "{host}" port {port}: Name or service not known\n')
        return 1
    if "u" in flags:
        return await _datagrams(ctx, address, port, wait_s)
    try:
        async with asyncio.timeout(wait_s):
            reader, writer = await ctx.network.open_connection(address, port)
    except OSError as error:
        text = "Connection timed out" if isinstance(error, TimeoutError) else os_error_text(error)
        if busybox:
            shown = "" if "z" in flags and "v" not in flags else f" ({address})"
            ctx.err(f"nc: {address}{shown}:{port}: {text}\n") if "v" in flags else ctx.err(
                f"nc: can't connect to remote host ({address}): {text}\n"
            )
        elif "v" in flags or "z" not in flags:
            ctx.err(f"nc: connect to {host} port {port} (tcp) failed: {text}\n")
        return 1
    if "v" in flags:
        if busybox:
            ctx.err(f"{host} ({address}:{port}) open\n")
        else:
            ctx.err(f"Connection to {host} {port} port [tcp/*] succeeded!\n")
    if "z" in flags:
        writer.close()
        return 0
    await _relay(ctx, reader, writer, wait_s)
    return 0


class _Datagrams(asyncio.DatagramProtocol):
    """What arrives on nc's UDP socket; None for an ICMP error."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_DATAGRAMS)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if not self.arrived.full():
            self.arrived.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        if not self.arrived.full():
            self.arrived.put_nowait(None)


async def _datagrams(ctx: ShellContext, address: str, port: int, wait_s: float | None) -> int:
    """Send each chunk of stdin as a datagram; end after ``wait_s`` of silence or an ICMP error."""
    try:
        transport, protocol = await ctx.network.create_datagram_endpoint(
            _Datagrams, remote_addr=(address, port)
        )
    except OSError as error:
        ctx.err(f"nc: {os_error_text(error)}\n")
        return 1

    async def send() -> None:
        while ctx.stdin is not None and (data := await ctx.stdin.read(READ_BYTES)):
            transport.sendto(data)

    code = 0
    try:
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(send(), name="nc.send")
            while (data := await asyncio.wait_for(protocol.arrived.get(), wait_s)) is not None:
                ctx.stdout.write(data)
                await ctx.stdout.drain()
            sender.cancel()
            code = 1
    except* TimeoutError:
        # Silence for so long is how -w ends it.
        pass
    finally:
        transport.close()
    return code


async def _listen(ctx: ShellContext, text: str) -> int:
    port = whole_number(text)
    if port is None:
        ctx.err("usage: nc -l [-p] port\n")
        return 1
    arrived: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    arrived = asyncio.get_running_loop().create_future()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if arrived.done():
            writer.close()
        else:
            arrived.set_result((reader, writer))

    try:
        server = await ctx.network.start_server(connected, "0.0.0.0", port)
    except OSError as error:
        ctx.err(f"nc: {os_error_text(error)}\n")
        return 1
    try:
        reader, writer = await arrived
    finally:
        server.close()
    await _relay(ctx, reader, writer, None)
    return 0


async def _relay(
    ctx: ShellContext,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    wait_s: float | None,
) -> None:
    async def send() -> None:
        if ctx.stdin is None:
            return
        while data := await ctx.stdin.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def receive() -> None:
        while data := await asyncio.wait_for(reader.read(READ_BYTES), wait_s):
            ctx.stdout.write(data)
            await ctx.stdout.drain()

    try:
        async with asyncio.TaskGroup() as group:
            sender = group.create_task(send(), name="nc.send")
            await receive()
            sender.cancel()
    except* (ConnectionError, TimeoutError):
        # The other end is gone or silent: nc ends, as it does on a reset.
        pass
    finally:
        writer.close()
