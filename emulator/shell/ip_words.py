"""What the objects of ``ip`` share: options, the request, values of the command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from emulator.addr import parse_ip, parse_mac
from emulator.errors import UsageError
from emulator.shell.context import whole_number

if TYPE_CHECKING:
    from emulator.netstack.netns import NetNs
    from emulator.netstack.show.route import Style
    from emulator.shell.context import ShellContext


@dataclass(slots=True)
class Options:
    """Options before the object."""

    family: str = ""
    statistics: bool = False
    details: bool = False
    brief: bool = False
    oneline: bool = False
    netns: str = ""
    words: list[str] = field(default_factory=list)


class Request(NamedTuple):
    """One command: the namespace it is about, the verb after the object, the words after that."""

    ctx: ShellContext
    ns: NetNs
    options: Options
    verb: str
    words: list[str]


class CommandError(UsageError):
    """The command line is wrong: exit code 255 (or what the tool gives)."""

    def __init__(self, text: str, code: int = 255) -> None:
        super().__init__(text)
        self.code = code


def style_of(ctx: ShellContext) -> Style:
    """The renderers' name for the context's era."""
    return "modern" if ctx.era == "modern" else "2017"


def is_verb(verb: str, *names: str) -> bool:
    """iproute2 takes any prefix of a command."""
    return any(name.startswith(verb) for name in names)


def unknown_verb(request: Request, obj: str) -> CommandError:
    """The complaint about a verb the object does not have."""
    return CommandError(f'Command "{request.verb}" is unknown, try "ip {obj} help".')


def need_device(ns: NetNs, name: str) -> str:
    """The name, if there is such a device; UsageError with show's text."""
    if all(link.name != name for link in ns.links()):
        raise UsageError(f'Device "{name}" does not exist.')
    return name


def selected(request: Request) -> tuple[str, list[str]]:
    """The device of a show command, and the words that are left."""
    words, dev = list(request.words), ""
    rest: list[str] = []
    while words:
        word = words.pop(0)
        if word == "dev" and words:
            dev = words.pop(0)
        elif word in (
            "type",
            "master",
            "up",
            "scope",
            "to",
            "table",
            "proto",
            "root",
            "via",
            "nud",
        ):
            rest.append(word)
            if word not in ("up",) and words:
                rest.append(words.pop(0))
        else:
            rest.append(word)
    return dev, rest


def next_word(words: list[str], after: str) -> str:
    """Take the value of the keyword ``after``."""
    if not words:
        raise CommandError('Command line is not complete. Try option "help"')
    return words.pop(0)


def parse_number(text: str, name: str) -> int:
    """A decimal number of 32 bits."""
    number = whole_number(text)
    if number is None or number >= 1 << 32:
        raise CommandError(f'Error: argument "{text}" is wrong: Invalid "{name}" value')
    return number


def parse_address(text: str) -> int:
    """An IPv4 address."""
    try:
        return parse_ip(text)
    except UsageError:
        raise CommandError(
            f'Error: any valid address is expected rather than "{text}".', 1
        ) from None


def parse_hardware(text: str) -> bytes:
    """A MAC address."""
    try:
        return parse_mac(text)
    except UsageError:
        raise CommandError(f'"{text}" is invalid lladdr.') from None
