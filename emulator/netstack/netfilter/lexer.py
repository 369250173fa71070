"""Words and numbers of iptables command lines and rule files."""

from __future__ import annotations

import re
from typing import Final

from emulator.addr import IP_MAX, format_ip, mask_of, parse_ip
from emulator.errors import UsageError
from emulator.netstack.netfilter.extension import ParameterError

_ESCAPES: Final = str.maketrans({char: "\\" + char for char in "\"'\\"})
_NO_QUOTES_NEEDED: Final = re.compile(r"[A-Za-z0-9_-]+\Z")

# iptables' own list first, then /etc/protocols.
PROTOCOLS: Final[dict[int, str]] = {
    6: "tcp",
    132: "sctp",
    17: "udp",
    136: "udplite",
    1: "icmp",
    58: "ipv6-icmp",
    50: "esp",
    51: "ah",
    135: "ipv6-mh",
    2: "igmp",
    4: "ipencap",
    33: "dccp",
    41: "ipv6",
    46: "rsvp",
    47: "gre",
    89: "ospf",
    103: "pim",
    112: "vrrp",
}
_PROTOCOL_NUMBERS: Final = {
    **{name: number for number, name in PROTOCOLS.items()},
    "all": 0,
    "icmpv6": 58,
    "ipip": 4,
}
# The part of /etc/services that a cluster's rules meet; others are printed as numbers.
SERVICES: Final[dict[int, str]] = {
    1: "tcpmux",
    20: "ftp-data",
    21: "ftp",
    22: "ssh",
    23: "telnet",
    25: "smtp",
    53: "domain",
    67: "bootps",
    68: "bootpc",
    69: "tftp",
    80: "http",
    110: "pop3",
    123: "ntp",
    143: "imap2",
    161: "snmp",
    179: "bgp",
    389: "ldap",
    443: "https",
    514: "shell",
    993: "imaps",
    3306: "mysql",
    5432: "postgresql",
    6379: "redis",
    8080: "http-alt",
}
_SERVICE_PORTS: Final = {name: port for port, name in SERVICES.items()}


def tokenize(line: str) -> list[str]:
    """Split a line of a rule file into words.

    As iptables-restore: only the double quote quotes, inside it a backslash escapes the next
    character, and a quote left open runs to the end of the line.
    """
    if '"' not in line:
        return line.split()
    words: list[str] = []
    word: list[str] = []
    quoted = escaped = started = False
    for char in line:
        if quoted:
            if escaped:
                word.append(char)
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                quoted = False
            else:
                word.append(char)
        elif char == '"':
            quoted = started = True
        elif char in " \t\n":
            if started:
                words.append("".join(word))
                word, started = [], False
        else:
            word.append(char)
            started = True
    if started:
        words.append("".join(word))
    return words


def quote(value: str) -> str:
    """Return a word as iptables-save writes it."""
    if _NO_QUOTES_NEEDED.match(value):
        return value
    return '"' + value.translate(_ESCAPES) + '"'


def parse_unsigned(text: str, low: int = 0, high: int = 0xFFFFFFFF) -> int | None:
    """Read a decimal, 0x or 0 (octal) number as strtoul(3) does; None if it is none."""
    try:
        if not text.isascii() or not text[:1].isdigit() or "_" in text:
            return None
        if text[:2].lower() == "0x":
            value = int(text, 16)
        elif text[0] == "0" and len(text) > 1:
            value = int(text, 8)
        else:
            value = int(text)
    except ValueError:
        return None
    return value if low <= value <= high else None


def parse_port(text: str) -> int:
    """Read a port number or service name."""
    value = parse_unsigned(text, 0, 65535)
    if value is None:
        value = _SERVICE_PORTS.get(text)
    if value is None:
        raise ParameterError(f"invalid port/service `{text}' specified")
    return value


def parse_protocol(text: str) -> int:
    """Read a protocol number or name; 0 means all."""
    value = parse_unsigned(text, 0, 255)
    if value is None:
        value = _PROTOCOL_NUMBERS.get(text.lower())
    if value is None:
        raise ParameterError(f'unknown protocol "{text}" specified')
    return value


def parse_masked(text: str, name: str, option: str) -> tuple[int, int]:
    """Read ``value[/mask]``, 32 bits each."""
    value_text, slash, mask_text = text.partition("/")
    value = parse_unsigned(value_text)
    mask = parse_unsigned(mask_text) if slash else 0xFFFFFFFF
    if value is None or mask is None:
        raise ParameterError(f'{name}: bad integer value for option "{option}", or out of range.\n')
    return value, mask


def masked(value: int, mask: int) -> str:
    """Print ``value[/mask]`` in hexadecimal."""
    return f"{value:#x}" if mask == 0xFFFFFFFF else f"{value:#x}/{mask:#x}"


def parse_network(text: str) -> tuple[int, int]:
    """Read ``address[/length or mask]`` as (network, mask) with the host bits cut."""
    ip_text, slash, mask_text = text.partition("/")
    mask = IP_MAX
    if slash:
        length = parse_unsigned(mask_text, 0, 32)
        if length is not None:
            mask = mask_of(length)
        else:
            try:
                mask = parse_ip(mask_text)
            except UsageError:
                raise ParameterError(f"invalid mask `{mask_text}' specified") from None
    return _parse_host(ip_text, slash, mask_text) & mask, mask


def _parse_host(text: str, slash: str, mask_text: str) -> int:
    parts = text.split(".")
    if slash and len(parts) < 4 and mask_text:
        parts += ["0"] * (4 - len(parts))
    elif text == "localhost":
        return 0x7F000001
    try:
        return parse_ip(".".join(parts))
    except UsageError:
        raise ParameterError(f"host/network `{text}' not found") from None


def format_network(network: int, mask: int, *, save: bool) -> str:
    """Print a network; iptables-save shows the length of a single address, -L does not."""
    length = mask.bit_count()
    if mask != mask_of(length):
        return f"{format_ip(network)}/{format_ip(mask)}"
    if length == 32 and not save:
        return format_ip(network)
    return f"{format_ip(network)}/{length}"
