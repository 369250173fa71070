"""The conntrack command (conntrack-tools 1.4.7): list, count, delete, flush."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import format_ip
from emulator.netstack.netfilter.connection import (
    ASSURED,
    DST_NAT,
    SEEN_REPLY,
    SRC_NAT,
    Tuple,
)
from emulator.netstack.netfilter.extension import ParameterError
from emulator.netstack.netfilter.lexer import (
    PROTOCOLS,
    parse_masked,
    parse_network,
    parse_port,
    parse_protocol,
)
from emulator.netstack.netfilter.result import CommandResult
from emulator.netstack.packet import ICMP, TCP, UDP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from emulator.netstack.netfilter.connection import (
        Connection,
    )
    from emulator.netstack.netfilter.netfilter import Netfilter

VERSION: Final = "v1.4.7"

_COMMANDS: Final = {
    "-L": "L",
    "--dump": "L",
    "-D": "D",
    "--delete": "D",
    "-F": "F",
    "--flush": "F",
    "-C": "C",
    "--count": "C",
    "-S": "S",
    "--stats": "S",
    "-V": "V",
    "--version": "V",
}
_LONG: Final = {
    "-s": "--src",
    "--orig-src": "--src",
    "-d": "--dst",
    "--orig-dst": "--dst",
    "-r": "--reply-src",
    "-q": "--reply-dst",
    "-p": "--proto",
    "--orig-port-src": "--sport",
    "--orig-port-dst": "--dport",
    "-m": "--mark",
    "-j": "--any-nat",
    "-n": "--src-nat",
    "-g": "--dst-nat",
    "-f": "--family",
    "-o": "--output",
}
_OPTIONAL_VALUE: Final = ("--src-nat", "--dst-nat", "--any-nat")
_TABLE_NAMES: Final = ("conntrack",)


def render_connection(connection: Connection, now: float, *, accounting: bool = False) -> str:
    """Return one line of ``conntrack -L``, without the line end."""
    name = PROTOCOLS.get(connection.proto, "unknown")
    if name not in ("tcp", "udp", "icmp", "sctp", "dccp", "udplite", "gre"):
        name = "unknown"
    left = max(0, int(connection.expire_at - now))
    parts = [f"{name:<8} {connection.proto} {left}"]
    if connection.proto == TCP:
        parts.append(connection.tcp_state.name)
    parts.append(_tuple_text(connection.original))
    if accounting:
        parts.append(f"packets={connection.packets[0]} bytes={connection.octets[0]}")
    if not connection.status & SEEN_REPLY:
        parts.append("[UNREPLIED]")
    parts.append(_tuple_text(connection.reply))
    if accounting:
        parts.append(f"packets={connection.packets[1]} bytes={connection.octets[1]}")
    if connection.status & ASSURED:
        parts.append("[ASSURED]")
    parts.append(f"mark={connection.mark} use=1")
    return " ".join(parts)


def _tuple_text(value: Tuple) -> str:
    text = f"src={format_ip(value.src)} dst={format_ip(value.dst)}"
    if value.proto == ICMP:
        return f"{text} type={value.dport >> 8} code={value.dport & 255} id={value.sport}"
    if value.proto in (TCP, UDP):
        return f"{text} sport={value.sport} dport={value.dport}"
    return text


def run_conntrack(
    netfilter: Netfilter, argv: Sequence[str], *, accounting: bool = False
) -> CommandResult:
    """Run ``conntrack`` with the arguments after the program's name.

    ``accounting`` shows packets and bytes, as with net.netfilter.nf_conntrack_acct=1.
    """
    try:
        command, tests = _parse(argv)
    except ParameterError as error:
        hint = "Try `conntrack -h' or 'conntrack --help' for more information."
        return CommandResult(2, "", f"conntrack {VERSION} (conntrack-tools): {error}\n{hint}\n")
    table = netfilter.conntrack
    if command == "V":
        return CommandResult(0, f"conntrack {VERSION} (conntrack-tools)\n", "")
    if command == "C":
        return CommandResult(0, f"{sum(1 for _ in table)}\n", "")
    if command == "S":
        stats = table.statistics
        text = (
            f"cpu=0   \tfound={stats.found} invalid={stats.invalid} insert=0 "
            f"insert_failed={stats.insert_failed} drop={stats.drop} "
            f"early_drop={stats.early_drop} error=0 search_restart=0 \n"
        )
        return CommandResult(0, text, "")
    if command == "F":
        table.flush()
        netfilter.view.invalidate_flows()
        return CommandResult(0, "", _verdict("connection tracking table has been emptied."))
    now = netfilter.clock()
    hits = [c for c in table if all(test(c) for test in tests)]
    text = "".join(f"{render_connection(c, now, accounting=accounting)}\n" for c in hits)
    if command == "L":
        return CommandResult(0, text, _verdict(f"{len(hits)} flow entries have been shown."))
    for connection in hits:
        table.delete(connection)
    if hits:
        netfilter.view.invalidate_flows()
    return CommandResult(
        0 if hits else 1, text, _verdict(f"{len(hits)} flow entries have been deleted.")
    )


def _verdict(text: str) -> str:
    return f"conntrack {VERSION} (conntrack-tools): {text}\n"


def _parse(argv: Sequence[str]) -> tuple[str, list[Callable[[Connection], bool]]]:
    command = ""
    tests: list[Callable[[Connection], bool]] = []
    proto = 0
    words = list(argv)
    while words:
        word = words.pop(0)
        option, equals, attached = word.partition("=")
        if option in _COMMANDS:
            if command:
                raise ParameterError("Can't specify more than one command")
            command = _COMMANDS[option]
            if words and words[0] in _TABLE_NAMES:
                words.pop(0)
            continue
        option = _LONG.get(option, option)
        if equals:
            value = attached
        elif option in _OPTIONAL_VALUE and (not words or words[0].startswith("-")):
            value = ""
        elif words:
            value = words.pop(0)
        else:
            raise ParameterError(f"option `{word}' requires an argument")
        if option == "--proto":
            proto = parse_protocol(value)
        test = _test(option, value, proto)
        if test is not None:
            tests.append(test)
    if not command:
        raise ParameterError("You need to supply a command")
    return command, tests


def _test(option: str, value: str, proto: int) -> Callable[[Connection], bool] | None:
    if option in ("--family", "--output"):
        return None
    if option == "--proto":
        return lambda c: c.proto == proto
    if option == "--mark":
        mark, mask = parse_masked(value, "conntrack", "--mark")
        return lambda c: c.mark & mask == mark
    if option in ("--src", "--dst", "--reply-src", "--reply-dst"):
        network, mask = parse_network(value)
        if option == "--src":
            return lambda c: c.original.src & mask == network
        if option == "--dst":
            return lambda c: c.original.dst & mask == network
        if option == "--reply-src":
            return lambda c: c.reply.src & mask == network
        return lambda c: c.reply.dst & mask == network
    if option in ("--sport", "--dport", "--reply-port-src", "--reply-port-dst"):
        port = parse_port(value)
        if option == "--sport":
            return lambda c: c.original.sport == port and c.proto != ICMP
        if option == "--dport":
            return lambda c: c.original.dport == port and c.proto != ICMP
        if option == "--reply-port-src":
            return lambda c: c.reply.sport == port and c.proto != ICMP
        return lambda c: c.reply.dport == port and c.proto != ICMP
    if option in _OPTIONAL_VALUE:
        return _nat_test(option, value)
    raise ParameterError(f"unknown option `{option}'")


def _nat_test(option: str, value: str) -> Callable[[Connection], bool]:
    """-n and -g: translated at all, or translated to this address."""
    network, mask = parse_network(value) if value else (0, 0)

    def source(c: Connection) -> bool:
        return bool(c.status & SRC_NAT) and c.reply.dst & mask == network

    def destination(c: Connection) -> bool:
        return bool(c.status & DST_NAT) and c.reply.src & mask == network

    if option == "--src-nat":
        return source
    if option == "--dst-nat":
        return destination
    return lambda c: source(c) or destination(c)
