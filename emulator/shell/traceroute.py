"""traceroute and tracepath: UDP probes (or ICMP echo) with rising TTL; Butskoy's texts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.netstack.sock.tcp import Endpoint
from emulator.shell.context import os_error_text, seconds_of
from emulator.shell.names import ResolveError, parse_hosts, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.shell.context import ShellContext

FIRST_PORT = 33434
# Probes of all hops under way at once; traceroute -N.
SIMULTANEOUS = 16
PACKET_BYTES = 60
_MARKS = {0: "!N", 1: "!H", 2: "!P", 9: "!X", 10: "!X", 13: "!X"}
USAGE = """Usage:
  traceroute [ -46dFITnreAUDV ] [ -f first_ttl ] [ -m max_ttl ] [ -N squeries ] [ -p port ] \
[ -q nqueries ] [ -s src_addr ] [ -w MAX,HERE,NEAR ] host [ packetlen ]
"""


@dataclass(slots=True)
class Options:
    """The command line."""

    host: str = ""
    max_ttl: int = 30
    first_ttl: int = 1
    queries: int = 3
    wait_s: float = 5.0
    port: int = FIRST_PORT
    numeric: bool = False
    icmp: bool = False


class Answer(NamedTuple):
    """What came back for one probe; ``mark`` is ``!H`` and the like, ``final`` ends the trace."""

    source: int
    rtt_ms: float
    mark: str
    final: bool


@dataclass(slots=True)
class Hop:
    """The answers of one TTL, in the order of the probes; None where none came."""

    ttl: int
    answers: list[Answer | None] = field(default_factory=list)


def parse_options(argv: Sequence[str]) -> Options:
    """Read the command line; UsageError with the tool's complaint."""
    options = Options()
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            if options.host:
                continue
            options.host = word
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in "mfqwpNszi":
                value = letters or (words.pop(0) if words else "")
                _value(options, letter, value)
                break
            if letter == "n":
                options.numeric = True
            elif letter == "I":
                options.icmp = True
            elif letter not in "46drUbl":
                raise UsageError(f"Bad option `-{letter}' (argc 1)")
    return options


def _value(options: Options, letter: str, value: str) -> None:
    if letter in "Nszi":
        return
    number = seconds_of(value.partition(",")[0])
    if number is None:
        raise UsageError(f"Cannot handle `-{letter}' option with arg `{value}' (argc 1)")
    match letter:
        case "m":
            if not 1 <= number <= 255:
                raise UsageError("max hops cannot be more than 255")
            options.max_ttl = int(number)
        case "f":
            if not 1 <= number <= 255:
                raise UsageError("first hop out of range")
            options.first_ttl = int(number)
        case "q":
            if not 1 <= number <= 10:
                raise UsageError("no more than 10 probes per hop")
            options.queries = int(number)
        case "w":
            options.wait_s = number
        case "p":
            if not 1 <= number <= 65535:
                raise UsageError(f"Cannot handle `-p' option with arg `{value}' (argc 1)")
            options.port = int(number)


def render_hop(hop: Hop, names: dict[int, str]) -> str:
    """One line; ``names`` maps addresses to names, an empty map prints numbers alone."""
    line = f"{hop.ttl:2d} "
    shown = None
    for answer in hop.answers:
        if answer is None:
            line += " *"
            continue
        if answer.source != shown:
            shown = answer.source
            text = format_ip(answer.source)
            line += f" {names.get(answer.source, text)} ({text})" if names else f" {text}"
        line += f"  {answer.rtt_ms:.3f} ms"
        if answer.mark:
            line += f" {answer.mark}"
    return line + "\n"


class _Prober:
    """Sends the probes and matches what comes back to them."""

    def __init__(self, ctx: ShellContext, options: Options, address: str) -> None:
        self._ctx = ctx
        self._options = options
        self._address = address
        self._slots = asyncio.Semaphore(SIMULTANEOUS)

    async def probe(self, ttl: int, number: int) -> Answer | None:
        async with self._slots:
            if self._options.icmp:
                return await self._echo(ttl, number)
            return await self._datagram(ttl, number)

    async def _echo(self, ttl: int, number: int) -> Answer | None:
        result = await self._ctx.network.ping(
            self._address, seq=number + 1, ttl=ttl, timeout=self._options.wait_s
        )
        if result is None:
            return None
        answer = result.answer
        final = answer.icmp_type != 11
        mark = _MARKS.get(answer.code, "") if answer.icmp_type == 3 else ""
        return Answer(answer.source, result.rtt_s * 1000, mark, final)

    async def _datagram(self, ttl: int, number: int) -> Answer | None:
        clock = self._ctx.clock
        remote = Endpoint(parse_ip(self._address), self._options.port + number & 0xFFFF)
        sock = self._ctx.network.sockets.udp_bind(0, 0)
        arrived = asyncio.Event()
        sock.notify = arrived.set
        sock.want_reports = True
        try:
            began = clock.monotonic()
            sock.send(bytes(PACKET_BYTES - 28), remote, ttl=ttl)
            async with asyncio.timeout(self._options.wait_s):
                while True:
                    await arrived.wait()
                    arrived.clear()
                    took = (clock.monotonic() - began) * 1000
                    if sock.reports:
                        report = sock.reports.popleft()
                        final = report.icmp_type == 3
                        mark = _MARKS.get(report.code, "") if final else ""
                        return Answer(report.reporter, took, mark, final)
                    if (datagram := sock.receive()) is not None:
                        return Answer(datagram.source.ip, took, "", final=True)
        except TimeoutError:
            return None
        finally:
            sock.close()


async def traceroute(ctx: ShellContext, argv: Sequence[str]) -> int:
    """The command."""
    try:
        options = parse_options(argv)
    except UsageError as error:
        ctx.err(f"{error}\n")
        return 2
    if not options.host:
        ctx.err(USAGE)
        return 2
    try:
        address = await resolve(ctx, options.host)
    except ResolveError:
        ctx.err(
            f"{options.host}: Name or service not known\n"
            f'Cannot handle "host" cmdline arg `{options.host}\' on position 1 (argc 1)\n'
        )
        return 2
    size = 46 if ctx.style == "busybox" else PACKET_BYTES
    ctx.out(
        f"traceroute to {options.host} ({address}), {options.max_ttl} hops max, {size} byte packets"
    )
    prober = _Prober(ctx, options, address)
    failure = ""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = _start(group, prober, options)
            await _print_hops(ctx, options, tasks)
            for pending in (task for row in tasks for task in row):
                pending.cancel()
    except* OSError as failures:
        first = failures.exceptions[0]
        failure = os_error_text(first) if isinstance(first, OSError) else str(first)
    if failure:
        ctx.err(f"\nconnect: {failure}\n")
        return 1
    return 0


def _start(
    group: asyncio.TaskGroup, prober: _Prober, options: Options
) -> list[list[asyncio.Task[Answer | None]]]:
    rows = []
    number = 0
    for ttl in range(options.first_ttl, options.max_ttl + 1):
        row = []
        for _ in range(options.queries):
            row.append(group.create_task(prober.probe(ttl, number), name=f"traceroute.{number}"))
            number += 1
        rows.append(row)
    return rows


async def _print_hops(
    ctx: ShellContext, options: Options, rows: list[list[asyncio.Task[Answer | None]]]
) -> None:
    names = {} if options.numeric else _names(ctx)
    for ttl, row in enumerate(rows, options.first_ttl):
        hop = Hop(ttl, [await task for task in row])
        if ttl == options.first_ttl:
            ctx.out("\n")
        shown = names
        if not options.numeric:
            shown = names or {-1: ""}
        ctx.out(render_hop(hop, shown))
        await ctx.stdout.drain()
        if any(answer is not None and answer.final for answer in hop.answers):
            return
        if ctx.interrupt.is_set():
            return


def _names(ctx: ShellContext) -> dict[int, str]:
    """Addresses of /etc/hosts with their first name: the only reverse lookup there is."""
    try:
        table = parse_hosts(ctx.files.read("/etc/hosts").decode("utf-8", "replace"))
    except OSError:
        return {}
    names: dict[int, str] = {}
    for name, address in table.items():
        try:
            names.setdefault(parse_ip(address), name)
        except UsageError:
            continue
    return names


async def tracepath(ctx: ShellContext, argv: Sequence[str]) -> int:
    """tracepath [-n] [-m HOPS] HOST: path and its MTU, one probe a hop."""
    try:
        options = parse_options(argv)
        options.queries = 1
        if not options.host:
            raise UsageError("\nUsage\n  tracepath [options] <destination>")
        address = await resolve(ctx, options.host)
    except ResolveError:
        ctx.err(f"tracepath: {options.host}: Name or service not known\n")
        return 1
    except UsageError as error:
        ctx.err(f"{error}\n")
        return 1
    options.wait_s = 1.0
    prober = _Prober(ctx, options, address)
    mtu = _first_mtu(ctx, address)
    ctx.out(f" 1?: [LOCALHOST]{'':22}pmtu {mtu}\n")
    for ttl in range(1, options.max_ttl + 1):
        try:
            answer = await prober.probe(ttl, ttl)
        except OSError as error:
            ctx.err(f"tracepath: {os_error_text(error)}\n")
            return 1
        if answer is None:
            ctx.out(f"{ttl:2d}:  no reply\n")
            continue
        source = format_ip(answer.source)
        reached = " reached" if answer.final and not answer.mark else ""
        ctx.out(f"{ttl:2d}:  {source:<45} {answer.rtt_ms:.3f}ms {answer.mark}{reached}".rstrip())
        ctx.out("\n")
        if answer.final:
            ctx.out(f"     Resume: pmtu {mtu} hops {ttl} back {ttl} \n")
            return 0
    ctx.out(f"     Too many hops: pmtu {mtu}\n     Resume: pmtu {mtu} \n")
    return 0


def _first_mtu(ctx: ShellContext, address: str) -> int:
    route = ctx.ns.route_output(parse_ip(address))
    links = {link.name: link.mtu for link in ctx.ns.links()}
    return links.get(route.dev, 1500) if route is not None else 65535
