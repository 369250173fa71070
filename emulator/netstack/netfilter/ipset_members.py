"""What a set holds: members as tuples of numbers, and their text.

A dimension is an address (one number), a network (network, length) or a port (protocol, port; in a
bitmap the port alone).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import IP_MAX, format_ip, parse_ip
from emulator.errors import UsageError
from emulator.netstack.netfilter.lexer import SERVICES
from emulator.netstack.netfilter.match_l4 import ICMP_NAMES
from emulator.netstack.packet import ICMP, TCP, UDP

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

IP, NET, PORT = "ip", "net", "port"
Member = tuple[int, ...]
# Members one text may stand for.
MAX_RANGE: Final = 65536

PROTOCOLS: Final = {"tcp": TCP, "udp": UDP, "sctp": 132, "udplite": 136, "icmp": ICMP}
_PROTOCOL_NAMES: Final = {number: name for name, number in PROTOCOLS.items()}
_SERVICE_PORTS: Final = {name: port for port, name in SERVICES.items()}
# The exact name of a type and code, else that of the type for code 0.
_ICMP_CODES: Final = {
    **{n << 8: name for name, (n, low, high) in reversed(ICMP_NAMES.items()) if low != high},
    **{n << 8 | low: name for name, (n, low, high) in ICMP_NAMES.items() if low == high},
}


def parse_members(kind: str, dimensions: tuple[str, ...], text: str) -> list[Member]:
    """The members a text stands for in a set of a kind; UsageError as ipset complains."""
    if dimensions == (PORT,):
        low, high = _port_range(text.removeprefix("tcp:").removeprefix("udp:"))
        return [(port,) for port in range(low, high + 1)]
    parts = text.split(",")
    if len(parts) < len(dimensions):
        raise UsageError(f"Syntax error: Second element is missing from {text}.")
    if len(parts) > len(dimensions):
        raise UsageError(
            f"Syntax error: Elem separator in {text}, but settype {kind} supports none."
        )
    heads: list[Member]
    if dimensions[0] == IP:
        heads = [(address,) for address in _addresses(parts[0])]
    else:
        heads = list(_networks(parts[0]))
    if len(dimensions) == 1:
        return heads
    ports = list(_ports(parts[1]))
    if len(heads) * len(ports) > MAX_RANGE:
        raise UsageError(f"{text} is {len(heads) * len(ports)} elements, at most {MAX_RANGE} fit")
    return [(*head, *port) for head in heads for port in ports]


def _parse_ip(text: str) -> int:
    try:
        return parse_ip(text)
    except UsageError:
        raise UsageError(
            f"Syntax error: cannot parse {text}: resolving to IPv4 address failed"
        ) from None


def _addresses(text: str) -> Iterable[int]:
    """One address, ``A-B`` or a whole network."""
    first_text, dash, last_text = text.partition("-")
    if dash:
        first, last = _parse_ip(first_text), _parse_ip(last_text)
    else:
        network, length = _cidr(text)
        first, last = network, network + (1 << 32 - length) - 1
    if last < first or last - first >= MAX_RANGE:
        raise UsageError("The range is too large or its ends are in the wrong order")
    return range(first, last + 1)


def _is_number(text: str) -> bool:
    """True for decimal digits; ``isdigit`` alone also takes those int() cannot read."""
    return text.isascii() and text.isdigit()


def _cidr(text: str) -> tuple[int, int]:
    address, slash, length_text = text.partition("/")
    ip = _parse_ip(address)
    if not slash:
        return ip, 32
    if not _is_number(length_text) or int(length_text) > 32:
        raise UsageError(
            f"Syntax error: '{length_text}' is out of range 0-32"
            if _is_number(length_text)
            else f"Syntax error: '{length_text}' is invalid as number"
        )
    length = int(length_text)
    return ip & (IP_MAX << (32 - length) & IP_MAX), length


def _networks(text: str) -> Iterator[Member]:
    """One network, or the networks that make up ``A-B``."""
    first_text, dash, last_text = text.partition("-")
    if not dash:
        network, length = _cidr(text)
        if length == 0:
            raise UsageError("The value of the CIDR parameter of the IP address is invalid")
        yield network, length
        return
    first, last = _parse_ip(first_text), _parse_ip(last_text)
    if last < first:
        raise UsageError("The range is too large or its ends are in the wrong order")
    while first <= last:
        # ip_set_range_to_cidr: the largest network that starts here and does not go too far.
        size = min(first & -first or 1 << 31, 1 << (last - first + 1).bit_length() - 1)
        yield first, 33 - size.bit_length()
        first += size


def _ports(text: str) -> Iterator[Member]:
    """``[proto:]port[-port]`` or ``icmp:type/code``."""
    name, colon, rest = text.partition(":")
    if not colon:
        name, rest = "tcp", text
    proto = PROTOCOLS.get(name.lower())
    if proto is None:
        raise UsageError(f"Syntax error: cannot parse '{name}' as a protocol")
    if proto == ICMP:
        yield ICMP, _icmp(rest)
        return
    low, high = _port_range(rest)
    for port in range(low, high + 1):
        yield proto, port


def _icmp(text: str) -> int:
    if text in ICMP_NAMES:
        number, code, _ = ICMP_NAMES[text]
        return number << 8 | code
    kind, _, code_text = text.partition("/")
    if not _is_number(kind) or not _is_number(code_text or "0"):
        raise UsageError(f"Cannot parse {text} as an ICMP type/code.")
    return (int(kind) & 0xFF) << 8 | int(code_text or 0) & 0xFF


def _port_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    low = _port(first)
    high = _port(last) if dash else low
    return (low, high) if low <= high else (high, low)


def _port(text: str) -> int:
    if text in _SERVICE_PORTS:
        return _SERVICE_PORTS[text]
    if not _is_number(text):
        raise UsageError(f"Syntax error: '{text}' is invalid as number")
    if int(text) > 65535:
        raise UsageError(f"Syntax error: '{text}' is out of range 0-65535")
    return int(text)


def format_member(dimensions: tuple[str, ...], member: Member) -> str:
    """A member as ``ipset list`` prints it."""
    if dimensions == (PORT,):
        return str(member[0])
    if dimensions[0] == NET:
        network, length, *rest = member
        head = format_ip(network) if length == 32 else f"{format_ip(network)}/{length}"
    else:
        head, rest = format_ip(member[0]), list(member[1:])
    if not rest:
        return head
    proto, port = rest
    if proto == ICMP:
        shown = _ICMP_CODES.get(port, f"{port >> 8}/{port & 0xFF}")
        return f"{head},icmp:{shown}"
    return f"{head},{_PROTOCOL_NAMES[proto]}:{port}"
