"""The ipset command (7.17) as a pure function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.errors import UsageError
from emulator.netstack.netfilter.ipset import DEFAULT_HASHSIZE, DEFAULT_MAXELEM
from emulator.netstack.netfilter.result import CommandResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.netstack.netfilter.ipset import IpSets, SetInfo

VERSION: Final = "ipset v7.17, protocol version: 7\n"
_HELP: Final = "Try `ipset help' for more information."
_ALIASES: Final = {
    "n": "create",
    "new": "create",
    "-N": "create",
    "-A": "add",
    "-D": "del",
    "-T": "test",
    "x": "destroy",
    "-X": "destroy",
    "-F": "flush",
    "-L": "list",
    "-S": "save",
    "-R": "restore",
    "-E": "rename",
    "-W": "swap",
}
_COMMANDS: Final = (
    *("create", "add", "del", "test", "destroy", "list", "save", "restore", "flush"),
    *("rename", "swap", "version", "help"),
)


class CommandLineError(UsageError):
    """The command line itself is wrong: ipset points at its help; exit code 2."""


def run_ipset(sets: IpSets, argv: Sequence[str], stdin: str = "") -> CommandResult:
    """Run ``ipset`` with the arguments after the program's name; ``stdin`` is for restore."""
    try:
        return _run(sets, list(argv), stdin)
    except CommandLineError as error:
        return CommandResult(2, "", f"ipset v7.17: {error}\n{_HELP}\n")
    except UsageError as error:
        return CommandResult(1, "", f"ipset v7.17: {error}\n")


class _Line:
    """One command line, its options taken off."""

    def __init__(self, words: list[str]) -> None:
        self.exist = self.sorted = self.terse = self.names = self.quiet = False
        self.output = "plain"
        self.words: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word in ("-exist", "-!", "--exist"):
                self.exist = True
            elif word in ("-s", "-sorted", "--sorted"):
                self.sorted = True
            elif word in ("-t", "-terse", "--terse"):
                self.terse = True
            elif word in ("-n", "-name", "--name"):
                self.names = True
            elif word in ("-q", "-quiet", "--quiet"):
                self.quiet = True
            elif word in ("-o", "-output", "--output"):
                self.output = rest.pop(0) if rest else "plain"
            else:
                self.words.append(word)


def _run(sets: IpSets, argv: list[str], stdin: str) -> CommandResult:
    if argv[:1] in (["--version"], ["-v"], ["-V"], ["version"], ["-version"]):
        return CommandResult(0, VERSION, "")
    line = _Line(argv)
    if not line.words:
        raise CommandLineError("No command specified.")
    word, *words = line.words
    if line.output not in ("plain", "save"):
        raise UsageError(f"Syntax error: unknown output mode '{line.output}'")
    command = _ALIASES.get(word) or next((c for c in _COMMANDS if c.startswith(word)), "")
    if not command:
        raise CommandLineError(f"No command specified: unknown argument {word}")
    if command == "help":
        return CommandResult(0, f"{VERSION}Usage: ipset [options] COMMAND\n", "")
    if command in ("list", "save", "destroy", "flush") and len(words) > 1:
        raise CommandLineError(f"Unknown argument {words[1]}")
    if command in ("list", "save"):
        return CommandResult(0, _show(sets, line, command, words), "")
    if command == "restore":
        _restore(sets, stdin, exist=line.exist)
        return CommandResult(0, "", "")
    if command == "test":
        return _test(sets, words, quiet=line.quiet)
    _change(sets, command, words, exist=line.exist)
    return CommandResult(0, "", "")


def _take(words: list[str], command: str, count: int) -> list[str]:
    if len(words) < count:
        which = "" if not words else "second "
        raise CommandLineError(f"Missing {which}mandatory argument to command {command}")
    return words[:count]


def _change(sets: IpSets, command: str, words: list[str], *, exist: bool) -> None:
    match command:
        case "create":
            name, kind = _take(words, command, 2)
            _create(sets, name, kind, words[2:], exist=exist)
        case "add":
            name, member = _take(words, command, 2)
            sets.get(name)
            nomatch = _member_options(words[2:])
            sets.add(name, member, nomatch=nomatch, exist=exist)
        case "del":
            name, member = _take(words, command, 2)
            sets.delete(name, member, exist=exist)
        case "destroy" if words:
            sets.destroy(words[0])
        case "destroy":
            sets.destroy_all()
        case "flush" if words:
            sets.flush(words[0])
        case "flush":
            for each in sets:
                sets.flush(each.name)
        case "rename":
            sets.rename(*_take(words, command, 2))
        case "swap":
            sets.swap(*_take(words, command, 2))
        case _:
            raise CommandLineError(f"No command specified: unknown argument {command}")


def _create(sets: IpSets, name: str, kind: str, words: list[str], *, exist: bool) -> None:
    maxelem, hashsize = DEFAULT_MAXELEM, DEFAULT_HASHSIZE
    ports: tuple[int, int] | None = None
    rest = list(words)
    while rest:
        option = rest.pop(0)
        if option in (
            "timeout",
            "counters",
            "comment",
            "skbinfo",
            "netmask",
            "forceadd",
            "markmask",
        ):
            raise UsageError(f"Set cannot be created: option {option} is not emulated")
        if not rest:
            raise CommandLineError(f"Missing mandatory argument of option `{option}'")
        value = rest.pop(0)
        match option:
            case "family":
                if value not in ("inet", "-4"):
                    raise UsageError("Set cannot be created: only family inet is emulated")
            case "maxelem":
                maxelem = _number(value)
            case "hashsize":
                hashsize = _number(value)
            case "range":
                low, _, high = value.partition("-")
                ports = _number(low), _number(high)
            case "bucketsize" | "initval":
                continue
            case _:
                raise CommandLineError(f"Unknown argument: `{option}'")
    if kind == "bitmap:port" and ports is None:
        raise CommandLineError("Mandatory option `range' is missing")
    sets.create(
        *(name, kind), maxelem=maxelem, hashsize=hashsize, ports=ports or (0, 65535), exist=exist
    )


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UsageError(f"Syntax error: '{text}' is invalid as number") from None


def _member_options(words: list[str]) -> bool:
    nomatch = False
    for word in words:
        if word == "nomatch":
            nomatch = True
        elif word == "timeout":
            raise UsageError("Timeout cannot be used: set was created without timeout support")
        else:
            raise CommandLineError(f"Unknown argument: `{word}'")
    return nomatch


def _test(sets: IpSets, words: list[str], *, quiet: bool) -> CommandResult:
    name, member = _take(words, "test", 2)
    shown = _shown_member(sets, name, member)
    found = sets.test(name, member)
    text = f"Warning: {shown} is in set {name}.\n" if found else f"{shown} is NOT in set {name}.\n"
    return CommandResult(0 if found else 1, "", "" if quiet else text)


def _shown_member(sets: IpSets, name: str, member: str) -> str:
    dimensions = sets.get(name).dimensions
    head, comma, port = member.partition(",")
    return f"{head},tcp:{port}" if comma and ":" not in port and len(dimensions) > 1 else member


def _restore(sets: IpSets, text: str, *, exist: bool) -> None:
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#") or words == ["COMMIT"]:
            continue
        options = _Line(words)
        word, *rest = options.words
        command = _ALIASES.get(word, word)
        if command not in _COMMANDS:
            raise CommandLineError(f"No command specified: unknown argument {word}")
        try:
            _change(sets, command, rest, exist=exist or options.exist)
        except UsageError as error:
            raise UsageError(f"Error in line {number}: {error}") from error


def _show(sets: IpSets, line: _Line, command: str, words: list[str]) -> str:
    found = sets.snapshot(words[0] if words else "")
    if line.names:
        return "".join(f"{each.name}\n" for each in found)
    if command == "save" or line.output == "save":
        return "".join(_saved(each, line) for each in found)
    return "\n".join(_listed(each, line) for each in found)


def _members(found: SetInfo, line: _Line) -> tuple[str, ...]:
    return tuple(sorted(found.members, key=_natural)) if line.sorted else found.members


def _natural(text: str) -> tuple[object, ...]:
    """Numbers by value, so that 10.0.0.2 comes before 10.0.0.10."""
    words = text.replace(",", ".").replace(":", ".").replace("/", ".").split(".")
    return tuple((0, int(word), "") if word.isdecimal() else (1, 0, word) for word in words)


def _saved(found: SetInfo, line: _Line) -> str:
    lines = [f"create {found.name} {found.kind} {found.header}"]
    lines += [f"add {found.name} {member}" for member in _members(found, line)]
    return "".join(f"{each}\n" for each in lines)


def _listed(found: SetInfo, line: _Line) -> str:
    lines = [
        f"Name: {found.name}",
        f"Type: {found.kind}",
        f"Revision: {found.revision}",
        f"Header: {found.header}",
        f"Size in memory: {found.size_bytes}",
        f"References: {found.references}",
        f"Number of entries: {len(found.members)}",
    ]
    if not line.terse:
        lines += ["Members:", *_members(found, line)]
    return "".join(f"{each}\n" for each in lines)
