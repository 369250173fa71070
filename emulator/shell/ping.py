"""ping: iputils' texts (20221126) and busybox's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError
from emulator.shell.context import os_error_text, seconds_of
from emulator.shell.names import ResolveError, resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.netstack.sock.ping import EchoAnswer
    from emulator.runtime.stack import StackPing
    from emulator.shell.context import ShellContext

# Seconds to wait for the last answers when -W was not given (MAXWAIT of iputils).
LAST_ANSWER_WAIT_S = 10.0
MIN_INTERVAL_S = 0.002
MAX_PAYLOAD = 65507
# What the probe for a source address, a connect(2), ends with where no route leads there.
_OF_CONNECT = (errno.ENETUNREACH, errno.EINVAL, errno.EHOSTUNREACH)

USAGE = """
Usage
  ping [options] <destination>

Options:
  <destination>      dns name or ip address
  -c <count>         stop after <count> replies
  -i <interval>      seconds between sending each packet
  -n                 no dns name resolution
  -q                 quiet output
  -s <size>          use <size> as number of data bytes to be sent
  -t <ttl>           define time to live
  -w <deadline>      reply wait <deadline> in seconds
  -W <timeout>       time to wait for response

For more details see ping(8).
"""
BUSYBOX_USAGE = """BusyBox v1.36.1 (2024-06-10 07:11:47 UTC) multi-call binary.

Usage: ping [OPTIONS] HOST

Send ICMP ECHO_REQUESTs to HOST

\t-4,-6\t\tForce IP or IPv6 name resolution
\t-c CNT\t\tSend only CNT pings
\t-s SIZE\t\tSend SIZE data bytes in packets (default 56)
\t-i SECS\t\tInterval
\t-A\t\tPing as soon as reply is received
\t-t TTL\t\tSet TTL
\t-I IFACE/IP\tSource interface or IP address
\t-W SEC\t\tSeconds to wait for the first response (default 10)
\t\t\t(after all -c CNT packets are sent)
\t-w SEC\t\tSeconds until ping exits (default:infinite)
\t\t\t(can exit earlier with -c CNT)
\t-q\t\tQuiet, only display output at start/finish
\t-p HEXBYTE\tPayload pattern
"""
# Text of an ICMP error by type and code (iputils pr_icmph).
_ERRORS = {
    (3, 0): "Destination Net Unreachable",
    (3, 1): "Destination Host Unreachable",
    (3, 2): "Destination Protocol Unreachable",
    (3, 3): "Destination Port Unreachable",
    (3, 9): "Destination Net Prohibited",
    (3, 10): "Destination Host Prohibited",
    (3, 13): "Packet filtered",
    (11, 0): "Time to live exceeded",
    (11, 1): "Frag reassembly time exceeded",
}


@dataclass(slots=True)
class Options:
    """The command line; ``count`` 0 is for ever, times are seconds."""

    host: str = ""
    count: int = 0
    interval_s: float = 1.0
    size: int = 56
    ttl: int = 64
    timeout_s: float = 0.0
    deadline_s: float = 0.0
    quiet: bool = False
    fragment: bool = False
    source: str = ""


def parse_options(argv: Sequence[str]) -> Options:
    """Read the command line; UsageError with ping's complaint."""
    options = Options()
    words = list(argv[1:])
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            options.host = word
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in "ciwWstIMpQ":
                value = letters or (words.pop(0) if words else "")
                if not value:
                    raise UsageError(f"option requires an argument -- '{letter}'")
                _value(options, letter, value)
                break
            if letter == "q":
                options.quiet = True
            elif letter not in "n46AOabDLrUvh":
                raise UsageError(f"invalid option -- '{letter}'")
    return options


def _value(options: Options, letter: str, value: str) -> None:
    if letter == "I":
        options.source = value
        return
    if letter == "M":
        options.fragment = value == "dont"
        return
    if letter in "pQ":
        return
    number = seconds_of(value)
    if number is None or (letter in "cst" and number != int(number)):
        raise UsageError(f"invalid argument: '{value}'")
    match letter:
        case "c":
            if number < 1:
                raise UsageError(
                    f"invalid argument: '{value}': out of range: 1 <= value <= 9223372036854775807"
                )
            options.count = int(number)
        case "i":
            if number < MIN_INTERVAL_S:
                raise UsageError(
                    "cannot flood; minimal interval allowed for user is 2ms, see man page"
                )
            options.interval_s = number
        case "s":
            if number > MAX_PAYLOAD:
                raise UsageError(f"packet size {int(number)} too large, maximum is {MAX_PAYLOAD}")
            options.size = int(number)
        case "t":
            if not 1 <= number <= 255:
                raise UsageError(f"invalid argument: '{value}': out of range: 0 <= value <= 255")
            options.ttl = int(number)
        case "w":
            options.deadline_s = number
        case "W":
            options.timeout_s = number


@dataclass(slots=True)
class Statistics:
    """Counts and round-trip times in milliseconds."""

    sent: int = 0
    received: int = 0
    errors: int = 0
    duplicates: int = 0
    min_ms: float = math.inf
    max_ms: float = 0.0
    sum_ms: float = 0.0
    squares: float = 0.0

    def add(self, rtt_ms: float) -> None:
        """Count one reply."""
        self.received += 1
        self.min_ms = min(self.min_ms, rtt_ms)
        self.max_ms = max(self.max_ms, rtt_ms)
        self.sum_ms += rtt_ms
        self.squares += rtt_ms * rtt_ms

    @property
    def loss(self) -> float:
        """Percent of the requests without a reply."""
        return (self.sent - self.received) * 100 / self.sent if self.sent else 0.0


def render_statistics(stats: Statistics, host: str, elapsed_s: float, *, busybox: bool) -> str:
    """The closing lines."""
    lines = [f"\n--- {host} ping statistics ---\n"]
    if busybox:
        lines.append(
            f"{stats.sent} packets transmitted, {stats.received} packets received, "
            f"{int(stats.loss)}% packet loss\n"
        )
        if stats.received:
            mean = stats.sum_ms / stats.received
            lines.append(
                f"round-trip min/avg/max = {stats.min_ms:.3f}/{mean:.3f}/{stats.max_ms:.3f} ms\n"
            )
        return "".join(lines)
    errors = f", +{stats.errors} errors" if stats.errors else ""
    duplicates = f", +{stats.duplicates} duplicates" if stats.duplicates else ""
    loss = f"{stats.loss:.6g}"
    lines.append(
        f"{stats.sent} packets transmitted, {stats.received} received{duplicates}{errors}, "
        f"{loss}% packet loss, time {round(elapsed_s * 1000)}ms\n"
    )
    if stats.received:
        mean = stats.sum_ms / stats.received
        deviation = math.sqrt(max(stats.squares / stats.received - mean * mean, 0.0))
        lines.append(
            f"rtt min/avg/max/mdev = {stats.min_ms:.3f}/{mean:.3f}/{stats.max_ms:.3f}/"
            f"{deviation:.3f} ms\n"
        )
    else:
        lines.append("\n")
    return "".join(lines)


def format_ms(value: float) -> str:
    """Three significant digits, as iputils prints a time."""
    if value >= 99.95:
        return f"{value:.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    if value >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3f}"


async def ping(ctx: ShellContext, argv: Sequence[str]) -> int:
    """The command: 0 with any reply, 1 without, 2 for everything else."""
    busybox = ctx.style == "busybox"
    try:
        options = parse_options(argv)
    except UsageError as error:
        ctx.err(f"ping: {error}\n")
        if "option" in str(error):
            ctx.err(BUSYBOX_USAGE if busybox else USAGE)
        return 1 if busybox or "argument:" in str(error) else 2
    if not options.host:
        ctx.err(BUSYBOX_USAGE if busybox else "ping: usage error: Destination address required\n")
        return 1
    try:
        address = await resolve(ctx, options.host)
    except ResolveError:
        if busybox:
            ctx.err(f"ping: bad address '{options.host}'\n")
            return 1
        ctx.err(f"ping: {options.host}: Name or service not known\n")
        return 2
    try:
        opened = ctx.network.open_ping(_source_address(ctx, options.source))
    except OSError as error:
        ctx.err(f"ping: bind: {os_error_text(error)}\n")
        return 1 if busybox else 2
    with opened as sock:
        return await _Session(ctx, options, address, sock, busybox=busybox).run()


def _source_address(ctx: ShellContext, source: str) -> str:
    """``-I`` takes an address or a device."""
    if not source:
        return source
    with contextlib.suppress(UsageError):
        return format_ip(parse_ip(source))
    found = [each.ip for each in ctx.ns.addrs() if each.dev == source]
    return format_ip(found[0]) if found else ""


class _Session:
    def __init__(
        self,
        ctx: ShellContext,
        options: Options,
        address: str,
        sock: StackPing,
        *,
        busybox: bool,
    ) -> None:
        self._ctx = ctx
        self._options = options
        self._address = address
        self._sock = sock
        self._busybox = busybox
        self._stats = Statistics()
        self._sent_at: dict[int, float] = {}
        self._done = asyncio.Event()
        self._failed = 0

    async def run(self) -> int:
        ctx, options = self._ctx, self._options
        first = ctx.clock.monotonic()
        try:
            self._send(1)
        except OSError as error:
            return self._no_route(error)
        self._header()
        await ctx.stdout.drain()
        limit = options.deadline_s or None
        try:
            async with asyncio.timeout(limit), asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._receive(), name="ping.receive"),
                    group.create_task(self._send_all(), name="ping.send"),
                    group.create_task(self._watch_interrupt(), name="ping.interrupt"),
                ]
                await self._done.wait()
                for task in tasks:
                    task.cancel()
        except TimeoutError:
            pass
        last = max(self._sent_at.values(), default=first)
        elapsed = (ctx.clock.monotonic() if ctx.interrupt.is_set() else last) - first
        ctx.out(render_statistics(self._stats, options.host, elapsed, busybox=self._busybox))
        return 0 if self._stats.received else 1

    def _header(self) -> None:
        size, host = self._options.size, self._options.host
        if self._busybox:
            self._ctx.out(f"PING {host} ({self._address}): {size} data bytes\n")
        else:
            self._ctx.out(f"PING {host} ({self._address}) {size}({size + 28}) bytes of data.\n")

    def _no_route(self, error: OSError) -> int:
        text = os_error_text(error)
        if self._busybox:
            self._header()
            self._ctx.err(f"ping: sendto: {text}\n")
            return 1
        if error.errno in _OF_CONNECT:
            self._ctx.err(f"ping: connect: {text}\n")
            return 2
        self._header()
        self._ctx.err(f"ping: sendmsg: {text}\n")
        return 1

    def _send(self, seq: int) -> None:
        self._stats.sent += 1
        self._sent_at[seq] = self._ctx.clock.monotonic()
        payload = bytes(index & 255 for index in range(self._options.size))
        self._sock.send(
            self._address,
            seq,
            payload,
            ttl=self._options.ttl,
            dont_fragment=not self._options.fragment,
        )

    async def _send_all(self) -> None:
        options, clock = self._options, self._ctx.clock
        begun = clock.monotonic()
        seq = 1
        while not options.count or seq < options.count:
            # Against the schedule, not the last packet: the interval does not drift.
            await asyncio.sleep(max(0.0, begun + seq * options.interval_s - clock.monotonic()))
            seq += 1
            try:
                self._send(seq & 0xFFFF)
            except OSError as error:
                self._ctx.err(f"ping: sendmsg: {os_error_text(error)}\n")
        wait = options.timeout_s or LAST_ANSWER_WAIT_S
        if self._stats.received and not options.timeout_s:
            wait = max(2 * self._stats.max_ms / 1000, options.interval_s)
        await asyncio.sleep(wait)
        self._done.set()

    async def _receive(self) -> None:
        while True:
            answer = await self._sock.receive()
            self._note(answer)
            await self._ctx.stdout.drain()
            answered = self._stats.received + self._stats.errors
            if self._options.count and answered >= self._options.count:
                self._done.set()

    async def _watch_interrupt(self) -> None:
        await self._ctx.interrupt.wait()
        self._done.set()

    def _note(self, answer: EchoAnswer) -> None:
        source = format_ip(answer.source)
        if answer.icmp_type != 0:
            self._stats.errors += 1
            if not self._options.quiet and not self._busybox:
                text = _ERRORS.get((answer.icmp_type, answer.code))
                if (answer.icmp_type, answer.code) == (3, 4):
                    text = f"Frag needed and DF set (mtu = {answer.mtu})"
                text = text or f"Bad ICMP type: {answer.icmp_type}"
                self._ctx.out(f"From {source} icmp_seq={answer.seq} {text}\n")
            return
        sent_at = self._sent_at.get(answer.seq)
        if sent_at is None:
            return
        rtt_ms = (self._ctx.clock.monotonic() - sent_at) * 1000
        self._stats.add(rtt_ms)
        if self._options.quiet:
            return
        if self._busybox:
            self._ctx.out(
                f"{answer.size} bytes from {source}: seq={answer.seq - 1} ttl={answer.ttl} "
                f"time={rtt_ms:.3f} ms\n"
            )
        else:
            self._ctx.out(
                f"{answer.size} bytes from {source}: icmp_seq={answer.seq} ttl={answer.ttl} "
                f"time={format_ms(rtt_ms)} ms\n"
            )
