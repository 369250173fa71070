"""Read one iptables command: from a command line or from a line of a rule file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

from emulator.netstack.netfilter.extension import Extension, Given, ParameterError, RuleScope
from emulator.netstack.netfilter.lexer import parse_network, parse_protocol, parse_unsigned
from emulator.netstack.netfilter.registry import (
    MATCHES,
    PROTOCOL_MATCHES,
    STANDARD_VERDICTS,
    TARGETS,
)
from emulator.netstack.netfilter.rules import NetworkTest, RuleSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.netstack.netfilter.extension import Match, Target

MAX_CHAIN_NAME: Final = 28  # XT_EXTENSION_MAXNAMELEN less the final zero
MAX_DEVICE_NAME: Final = 15

LONG_OPTIONS: Final[dict[str, str]] = {
    "append": "A",
    "delete": "D",
    "check": "C",
    "insert": "I",
    "replace": "R",
    "list": "L",
    "list-rules": "S",
    "flush": "F",
    "zero": "Z",
    "new-chain": "N",
    "delete-chain": "X",
    "rename-chain": "E",
    "policy": "P",
    "source": "s",
    "src": "s",
    "destination": "d",
    "dst": "d",
    "protocol": "p",
    "proto": "p",
    "in-interface": "i",
    "out-interface": "o",
    "jump": "j",
    "goto": "g",
    "table": "t",
    "match": "m",
    "numeric": "n",
    "verbose": "v",
    "exact": "x",
    "fragments": "f",
    "fragment": "f",
    "line-numbers": "0",
    "set-counters": "c",
    "wait": "w",
    "wait-interval": "W",
    "modprobe": "M",
    "version": "V",
    "help": "h",
    "ipv4": "4",
    "ipv6": "6",
}
COMMANDS: Final = frozenset("ADCIRLSFZNXEPVh")
# Short options that must have a value, that may have one, and those with a chain as their value.
_NEEDS_VALUE: Final = frozenset("ADCIRNEPsdpiojgtmcWM")
_MAY_HAVE_VALUE: Final = frozenset("LSFZXwhV")
_RULE_COMMANDS: Final = frozenset("ADCIR")


class BadArgumentError(ParameterError):
    """A word where an option belongs."""


class Command:
    """One command as typed.  ``rule_number`` is 0 where none was given."""

    __slots__ = (
        "chain",
        "counters",
        "letter",
        "listing",
        "new_name",
        "policy",
        "rule_number",
        "specs",
        "table",
        "verbose",
    )

    def __init__(self) -> None:
        self.letter = ""
        self.chain = ""
        self.new_name = ""
        self.policy = ""
        self.rule_number = 0
        self.table = "filter"
        self.specs: tuple[RuleSpec, ...] = ()
        self.counters = (0, 0)
        self.verbose = False
        # numeric, exact, line-numbers as the letters n, x, 0
        self.listing: frozenset[str] = frozenset()


E = TypeVar("E", bound=Extension)


class _Loaded(Generic[E]):
    """One -m or -j with the options given to it so far."""

    __slots__ = ("extension", "given")

    def __init__(self, extension: type[E]) -> None:
        self.extension = extension
        self.given: list[Given] = []

    def canonical(self, option: str) -> str | None:
        option = self.extension.aliases.get(option, option)
        return option if option in self.extension.options else None


def check_chain_name(name: str) -> None:
    """Raise ParameterError for a name no chain may have."""
    if len(name) > MAX_CHAIN_NAME:
        raise ParameterError(
            f"chain name `{name}' too long (must be under {MAX_CHAIN_NAME + 1} chars)"
        )
    if name[:1] in ("-", "!"):
        raise ParameterError(f"chain name not allowed to start with `{name[0]}'")
    if name in TARGETS or name in STANDARD_VERDICTS:
        raise ParameterError("chain name may not clash with target name")
    if not name or any(char.isspace() for char in name):
        raise ParameterError("chain name may not be empty or contain whitespace")


class CommandParser:
    """Reads the words of one command, left to right, as getopt_long(3) would."""

    def __init__(self, words: Sequence[str], *, in_restore: bool = False) -> None:
        self._words = list(words)
        self._at = 0
        self._in_restore = in_restore
        self._command = Command()
        self._loaded: list[_Loaded[Match]] = []
        self._target: _Loaded[Target] | None = None
        self._seen: set[str] = set()
        self._listing: set[str] = set()
        self._inverted = False
        self._sources: list[NetworkTest] = []
        self._destinations: list[NetworkTest] = []
        self._proto = 0
        self._proto_inverted = False
        self._in: tuple[str, bool] = ("", False)
        self._out: tuple[str, bool] = ("", False)
        self._fragment = 0
        self._jump = ""
        self._goto = False

    def parse(self) -> Command:
        """Return the command; raises ParameterError with iptables' text."""
        words = self._words
        while self._at < len(words):
            word = words[self._at]
            self._at += 1
            if word == "!":
                if self._inverted:
                    raise ParameterError("multiple consecutive ! not allowed")
                if self._at >= len(words):
                    raise ParameterError("nothing appropriate following !")
                self._inverted = True
                continue
            if word.startswith("--") and len(word) > 2:
                self._long(word[2:])
            elif word.startswith("-") and len(word) > 1:
                self._short(word[1:])
            else:
                raise BadArgumentError(f"Bad argument `{word}'")
            self._inverted = False
        return self._finish()

    # -- words -----------------------------------------------------------------------------------

    def _next_is_value(self) -> bool:
        return self._at < len(self._words) and self._words[self._at][:1] not in ("-", "!")

    def _value(self, option: str) -> str:
        if self._at >= len(self._words):
            raise ParameterError(f'option "{option}" requires an argument')
        self._at += 1
        return self._words[self._at - 1]

    def _short(self, cluster: str) -> None:
        for index, letter in enumerate(cluster):
            rest = cluster[index + 1 :]
            if letter in _NEEDS_VALUE:
                self._core(letter, rest or self._value(f"-{letter}"))
                return
            if letter in _MAY_HAVE_VALUE:
                value = rest
                if not value and self._next_is_value():
                    value = self._value(f"-{letter}")
                self._core(letter, value)
                return
            if letter not in "nvxf46":
                raise ParameterError(f'unknown option "-{letter}"')
            self._core(letter, "")

    def _long(self, text: str) -> None:
        name, equals, attached = text.partition("=")
        option = f"--{name}"
        for loaded in self._extensions():
            canonical = loaded.canonical(option)
            if canonical is not None:
                self._extension_option(loaded, canonical, attached if equals else None)
                return
        letter = LONG_OPTIONS.get(name)
        if letter is None:
            letter = self._resolve_prefix(option, attached if equals else None)
            if letter is None:
                return
        if equals:
            value = attached
        elif letter in _NEEDS_VALUE or (letter in _MAY_HAVE_VALUE and self._next_is_value()):
            value = self._value(option)
        else:
            value = ""
        self._core(letter, value)

    def _extensions(self) -> list[_Loaded[Match] | _Loaded[Target]]:
        target = [self._target] if self._target is not None else []
        return [*target, *reversed(self._loaded)]

    def _resolve_prefix(self, option: str, attached: str | None) -> str | None:
        """Take an abbreviated option, or load the protocol's match; None when that was done."""
        hits: dict[object, tuple[_Loaded[Match] | _Loaded[Target] | None, str]] = {}
        for loaded in self._extensions():
            for name in (*loaded.extension.options, *loaded.extension.aliases):
                if name.startswith(option):
                    canonical = loaded.canonical(name)
                    assert canonical is not None
                    hits.setdefault((loaded.extension, canonical), (loaded, canonical))
        for name, letter in LONG_OPTIONS.items():
            if f"--{name}".startswith(option):
                hits.setdefault(letter, (None, letter))
        if len(hits) == 1:
            owner, found = next(iter(hits.values()))
            if owner is None:
                return found
            self._extension_option(owner, found, attached)
            return None
        match = PROTOCOL_MATCHES.get(self._proto)
        if (
            not hits
            and match is not None
            and not self._proto_inverted
            and all(loaded.extension is not match for loaded in self._loaded)
        ):
            self._loaded.append(_Loaded(match))
            self._long(option[2:] if attached is None else f"{option[2:]}={attached}")
            return None
        raise ParameterError(f'unknown option "{option}"')

    def _extension_option(
        self, loaded: _Loaded[Match] | _Loaded[Target], option: str, attached: str | None
    ) -> None:
        count = loaded.extension.options[option]
        values = [] if attached is None else [attached]
        while len(values) < count:
            if values and self._at >= len(self._words):
                raise ParameterError(f"{option} requires two args.")
            values.append(self._value(option))
        loaded.given.append(Given(option, self._inverted, tuple(values)))

    # -- iptables' own options -------------------------------------------------------------------

    def _core(self, letter: str, value: str) -> None:
        if letter in COMMANDS:
            self._take_command(letter, value)
            return
        if letter in "nx0":
            self._listing.add(letter)
            return
        if self._inverted and letter not in "sdpiof":
            raise ParameterError(f"cannot have ! before -{letter}")
        if letter in "sdpiojgc" and letter != "m":
            self._once("j" if letter == "g" else letter)
        match letter:
            case "s":
                self._sources = self._networks(value)
            case "d":
                self._destinations = self._networks(value)
            case "p":
                self._proto = parse_protocol(value)
                if self._inverted and not self._proto:
                    raise ParameterError("rule would never match protocol")
                self._proto_inverted = self._inverted
            case "i":
                self._in = self._device(value)
            case "o":
                self._out = self._device(value)
            case "f":
                self._once("f")
                self._fragment = -1 if self._inverted else 1
            case "j" | "g":
                self._take_jump(value, goto=letter == "g")
            case "m":
                match = MATCHES.get(value)
                if match is None:
                    raise ParameterError(
                        f"Couldn't load match `{value}':No such file or directory\n"
                    )
                self._loaded.append(_Loaded(match))
            case "t":
                if self._in_restore:
                    raise ParameterError("The -t option cannot be used in iptables-restore.\n")
                self._command.table = value
            case "c":
                self._take_counters(value)
            case "v":
                self._command.verbose = True
            case "6":
                raise ParameterError("this is the IPv4 version of iptables; -6 is for ip6tables")

    def _once(self, letter: str) -> None:
        if letter in self._seen:
            raise ParameterError(f"multiple -{letter} flags not allowed")
        self._seen.add(letter)

    def _networks(self, text: str) -> list[NetworkTest]:
        parts = text.split(",")
        if len(parts) > 1 and self._inverted:
            raise ParameterError("! not allowed with multiple source or destination IP addresses")
        return [NetworkTest(*parse_network(part), self._inverted) for part in parts]

    def _device(self, name: str) -> tuple[str, bool]:
        if not name:
            raise ParameterError("Empty interface is likely to be undesired")
        if len(name) > MAX_DEVICE_NAME:
            raise ParameterError(
                f"interface name `{name}' must be shorter than IFNAMSIZ ({MAX_DEVICE_NAME})"
            )
        return ("", False) if name == "+" else (name, self._inverted)

    def _take_jump(self, name: str, *, goto: bool) -> None:
        if not name:
            raise ParameterError("Invalid target name (too short)")
        if len(name) > MAX_CHAIN_NAME:
            raise ParameterError(f"Invalid target name `{name}' ({MAX_CHAIN_NAME} chars max)")
        self._jump = name
        self._goto = goto
        if not goto and name in TARGETS:
            self._target = _Loaded(TARGETS[name])

    def _take_counters(self, value: str) -> None:
        packets_text, comma, octets_text = value.partition(",")
        if not comma:
            if not self._next_is_value():
                raise ParameterError("-c requires packet and byte counter")
            octets_text = self._value("-c")
        limit = 2**64 - 1
        packets = parse_unsigned(packets_text, 0, limit)
        octets = parse_unsigned(octets_text, 0, limit)
        if packets is None:
            raise ParameterError("-c packet counter not numeric")
        if octets is None:
            raise ParameterError("-c byte counter not numeric")
        self._command.counters = (packets, octets)

    def _take_command(self, letter: str, value: str) -> None:
        command = self._command
        if command.letter and {command.letter, letter} != {"L", "Z"}:
            raise ParameterError(f"Cannot use -{letter} with -{command.letter}")
        if self._inverted:
            raise ParameterError(f"unexpected '!' flag before --{_long_name(letter)}")
        if not (command.letter == "L" and letter == "Z"):
            command.letter = letter
        command.chain = value or command.chain
        if letter == "N":
            check_chain_name(value)
        elif letter == "E":
            if not self._next_is_value():
                raise ParameterError("-E requires old-chain-name and new-chain-name")
            command.new_name = self._value("-E")
        elif letter == "P":
            if not self._next_is_value():
                raise ParameterError("-P requires a chain and a policy")
            command.policy = self._value("-P")
        elif letter in "IDRLSZ" and value and self._next_is_value():
            text = self._value(f"-{letter}")
            number = parse_unsigned(text, 1, 2**31 - 1)
            if number is None:
                raise ParameterError(f"Invalid rule number `{text}'")
            command.rule_number = number
        elif letter == "R":
            raise ParameterError("-R requires a rule number")

    # -- the end ---------------------------------------------------------------------------------

    def _finish(self) -> Command:
        command = self._command
        letter = command.letter
        if not letter:
            raise ParameterError("no command specified")
        command.listing = frozenset(self._listing)
        if letter in "LS":
            if letter == "S":
                command.listing |= {"n"}
        elif self._listing:
            raise ParameterError(
                f"Illegal option `-{_option_text(min(self._listing))}' with this command"
            )
        given = [word for word in "sdpiojf" if word in self._seen]
        if letter not in _RULE_COMMANDS:
            if given or self._loaded:
                raise ParameterError(
                    f"Illegal option `-{given[0] if given else 'm'}' with this command"
                )
            return command
        if letter == "D" and command.rule_number:
            if given or self._loaded:
                raise ParameterError(f"Illegal option `-{given[0] if given else 'm'}' with -D N")
            return command
        self._check_devices(command.chain)
        command.specs = self._specs()
        return command

    def _check_devices(self, chain: str) -> None:
        if chain in ("PREROUTING", "INPUT") and self._out[0]:
            raise ParameterError(f"Can't use -o with {chain}\n")
        if chain in ("POSTROUTING", "OUTPUT") and self._in[0]:
            raise ParameterError(f"Can't use -i with {chain}\n")

    def _specs(self) -> tuple[RuleSpec, ...]:
        scope = RuleScope(self._proto, self._proto_inverted)
        matches = tuple(loaded.extension.build(loaded.given, scope) for loaded in self._loaded)
        target: Target | None = None
        if self._target is not None:
            target = self._target.extension.build(self._target.given, scope)
        return tuple(
            RuleSpec(
                _unless_any(src),
                _unless_any(dst),
                self._proto,
                self._proto_inverted,
                *self._in,
                *self._out,
                self._fragment,
                matches,
                self._jump,
                self._goto,
                target,
            )
            for src in self._sources or (None,)
            for dst in self._destinations or (None,)
        )


def _unless_any(test: NetworkTest | None) -> NetworkTest | None:
    """``-s 0.0.0.0/0`` is the same as no -s."""
    return None if test is None or (test.mask == 0 and not test.inverted) else test


def _long_name(letter: str) -> str:
    return next(name for name, value in LONG_OPTIONS.items() if value == letter)


def _option_text(letter: str) -> str:
    return "-line-numbers" if letter == "0" else letter
