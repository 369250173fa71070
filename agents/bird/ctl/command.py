"""What a line of the control protocol asks for (pure).  Source: BIRD's config grammars (*.Y)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agents.bird.ctl.expression import parse_expression
from agents.bird.ctl.lexer import Tokens
from agents.bird.ctl.reply import SYNTAX, WRONG_SYMBOL, CommandError, Dialect
from agents.bird.ctl.values import network_of
from agents.bird.net import parse_address
from emulator.errors import UsageError

if TYPE_CHECKING:
    from agents.bird.ctl.expression import Expression
    from agents.bird.net import Net

# `configure timeout` without a number (BIRD's UNDO_TIMEOUT_DEFAULT).
UNDO_TIMEOUT_S: Final = 300
_ANY_PROTOCOL: Final = "CF_SYM_KNOWN or TEXT or ALL"


@dataclass(frozen=True, slots=True)
class Symbols:
    """Names a command may use."""

    protocols: tuple[str, ...]
    tables: tuple[str, ...]
    filters: tuple[str, ...] = ()

    def known(self, name: str) -> bool:
        """True for the name of anything."""
        return name in self.protocols or name in self.tables or name in self.filters


@dataclass(frozen=True, slots=True)
class Target:
    """Protocols: one by name, those a glob matches, or (both empty) all."""

    name: str = ""
    glob: str = ""


@dataclass(frozen=True, slots=True)
class Show:
    """``show``: status, interfaces, memory, static, symbols, bfd; ``detail`` a word or a name."""

    what: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ShowProtocols:
    """``show protocols [all]``."""

    target: Target
    all: bool


@dataclass(frozen=True, slots=True)
class ShowRoute:
    """``show route``.

    ``export`` is "", export, noexport or preexport and then ``channel`` names the protocol;
    ``longest`` takes the longest network that holds ``net`` instead of ``net`` itself.
    """

    net: Net | None = None
    longest: bool = False
    tables: tuple[str, ...] = ()
    all: bool = False
    export: str = ""
    channel: str = ""
    protocol: str = ""
    primary: bool = False
    filtered: bool = False
    where: Expression | None = None
    stats: str = ""


@dataclass(frozen=True, slots=True)
class Configure:
    """``configure``; ``action`` is apply, check, undo or confirm."""

    action: str = "apply"
    file: str = ""
    timeout_s: int | None = None


@dataclass(frozen=True, slots=True)
class Act:
    """``disable enable restart reload``; ``direction`` of a reload is "", in or out."""

    verb: str
    target: Target
    direction: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Debug:
    """``debug``: what is told of protocols."""

    target: Target
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Echo:
    """``echo``: which log messages this session sees."""

    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Evaluate:
    """``eval``."""

    expression: Expression


@dataclass(frozen=True, slots=True)
class MrtDump:
    """``mrt dump``: tables by glob, to a file."""

    tables: str
    file: str
    where: Expression | None = None


@dataclass(frozen=True, slots=True)
class Simple:
    """A verb without more to say: dump, restrict, down, graceful restart."""

    verb: str


Command = (
    Show | ShowProtocols | ShowRoute | Configure | Act | Debug | Echo | Evaluate | MrtDump | Simple
)
# What a restricted session may not do.
PRIVILEGED: Final = (Configure, Act, Debug, MrtDump)
PRIVILEGED_VERBS: Final = frozenset({"down", "graceful restart"})

_DUMPS: Final = (
    "resources",
    "sockets",
    "events",
    "interfaces",
    "neighbors",
    "attributes",
    "routes",
)
_DEBUG_FLAGS: Final = ("states", "routes", "filters", "interfaces", "events", "packets")
_LOG_CLASSES: Final = (
    "debug",
    "trace",
    "info",
    "remote",
    "warning",
    "error",
    "auth",
    "fatal",
    "bug",
)


def parse(line: str, symbols: Symbols, dialect: Dialect) -> Command:
    """Understand a line; CommandError carries the reply for one that is not understood."""
    return _Parser(line, symbols, dialect).command()


class _Parser:
    def __init__(self, line: str, symbols: Symbols, dialect: Dialect) -> None:
        self._tokens = Tokens(line, dialect, symbols.known)
        self._symbols = symbols
        self._dialect = dialect

    def command(self) -> Command:
        tokens = self._tokens
        verb = tokens.accept(
            "show", "configure", "disable", "enable", "restart", "reload", "debug", "echo",
            "eval", "dump", "mrt", "restrict", "down", "graceful",
        )  # fmt: skip
        command: Command
        match verb:
            case "show":
                command = self._show()
            case "configure":
                command = self._configure()
            case "disable" | "enable" | "restart" | "reload":
                command = self._act(verb)
            case "debug":
                command = Debug(self._target(_ANY_PROTOCOL), self._flags(_DEBUG_FLAGS))
            case "echo":
                command = Echo(self._flags(_LOG_CLASSES))
            case "eval":
                command = Evaluate(parse_expression(tokens))
            case "dump":
                if not tokens.accept(*_DUMPS, "protocols"):
                    raise tokens.error()
                command = Simple("dump")
            case "mrt":
                command = self._mrt()
            case "restrict" | "down":
                command = Simple(verb)
            case "graceful" if self._dialect is Dialect.BIRD2:
                tokens.expect("restart")
                command = Simple("graceful restart")
            case _:
                raise tokens.error()
        tokens.end()
        return command

    # -- show --------------------------------------------------------------------------------------

    def _show(self) -> Command:
        tokens = self._tokens
        what = tokens.accept(
            "status", "memory", "protocols", "route", "interfaces", "static", "symbols", "bfd"
        )
        match what:
            case "status" | "memory":
                return Show(what)
            case "protocols":
                all_ = tokens.accept("all") is not None
                expecting = "END or CF_SYM_KNOWN or TEXT" + ("" if all_ else " or ALL")
                return ShowProtocols(self._target(expecting, optional=True), all_)
            case "route":
                return self._route()
            case "interfaces":
                return Show(what, tokens.accept("summary") or "")
            case "static":
                name = tokens.name()
                return Show(what, self._protocol(name) if name else "")
            case "symbols":
                return Show(what, tokens.text() or tokens.name() or "")
            case "bfd":
                tokens.expect("sessions")
                name = tokens.name()
                if name is not None and name not in self._symbols.protocols:
                    if self._dialect is Dialect.BIRD1:
                        raise CommandError(SYNTAX, f"{name}: Not a protocol")
                    self._check_protocol(name, WRONG_SYMBOL, "END or CF_SYM_KNOWN")
                return Show(what, name or "")
            case _:
                raise tokens.error()

    def _route(self) -> ShowRoute:
        tokens = self._tokens
        fields: dict[str, object] = {}
        while tokens.next.kind != "END":
            if tokens.next.kind in ("IP4", "IP6"):
                fields["net"] = self._net()
                continue
            option = tokens.accept(
                "for", "table", "filter", "where", "all", "export", "noexport", "preexport",
                "primary", "filtered", "protocol", "stats", "count",
            )  # fmt: skip
            match option:
                case "for":
                    fields["net"], fields["longest"] = self._address(), True
                case "table":
                    tables = fields.get("tables", ())
                    assert isinstance(tables, tuple)
                    fields["tables"] = (*tables, *self._tables())
                case "filter":
                    self._filter()
                case "where":
                    fields["where"] = parse_expression(tokens)
                case "all" | "primary" | "filtered":
                    fields[option] = True
                case "export" | "noexport" | "preexport":
                    fields["export"] = option
                    expecting = "CF_SYM_KNOWN or TABLE" if option == "export" else "CF_SYM_KNOWN"
                    fields["channel"] = self._protocol(tokens.name(), expecting)
                case "protocol":
                    fields["protocol"] = self._protocol(tokens.name(), "CF_SYM_KNOWN")
                case "stats" | "count":
                    fields["stats"] = option
                case _:
                    if self._dialect is Dialect.BIRD1 and tokens.next.kind == "WORD":
                        raise CommandError(SYNTAX, "IP address expected")
                    raise tokens.error()
        return ShowRoute(**fields)  # type: ignore[arg-type]

    def _tables(self) -> tuple[str, ...]:
        tokens = self._tokens
        if self._dialect is Dialect.BIRD2 and tokens.accept("all"):
            return self._symbols.tables
        token = tokens.next
        if token.kind not in ("WORD", "SYMBOL"):
            raise tokens.error()
        if token.text not in self._symbols.tables:
            if self._dialect is Dialect.BIRD1:
                raise CommandError(SYNTAX, f"{token.text} is not a table")
            raise tokens.error("CF_SYM_KNOWN or ALL")
        return (tokens.take().text,)

    def _filter(self) -> None:
        """A filter by name; the speaker's filters are not text, so ``where`` is the way."""
        tokens = self._tokens
        name = tokens.next
        if name.kind not in ("WORD", "SYMBOL") or self._dialect is Dialect.BIRD2:
            raise tokens.error()
        raise CommandError(SYNTAX, f"{name.text} is not a filter")

    def _address(self) -> Net:
        tokens = self._tokens
        if tokens.next.kind not in ("IP4", "IP6"):
            if self._dialect is Dialect.BIRD1:
                raise CommandError(SYNTAX, "IP address expected")
            raise tokens.error("IP4 or IP6 or VPN_RD or CF_SYM_KNOWN")
        return self._net()

    def _net(self) -> Net:
        """A network, or an address as the network of one."""
        tokens = self._tokens
        text = tokens.take().text
        try:
            address = parse_address(text)
        except UsageError:
            raise CommandError(SYNTAX, f"Invalid IP address {text}") from None
        length: int | None = 8 * len(address)
        if tokens.accept("/"):
            length = tokens.number()
            if length is None:
                raise tokens.error()
        assert length is not None
        return network_of(address, length)

    # -- protocols ---------------------------------------------------------------------------------

    def _protocol(self, name: str | None, expecting: str = "") -> str:
        """The name of a protocol, after it was taken."""
        if name is None:
            raise self._tokens.error(expecting)
        self._check_protocol(name, SYNTAX, expecting)
        return name

    def _check_protocol(self, name: str, code: int, expecting: str) -> None:
        if name in self._symbols.protocols:
            return
        if self._dialect is Dialect.BIRD1:
            raise CommandError(code, f"{name} is not a protocol")
        more = f", expecting {expecting}" if expecting else ""
        raise CommandError(SYNTAX, f"syntax error, unexpected CF_SYM_UNDEFINED{more}")

    def _target(self, expecting: str, *, optional: bool = False) -> Target:
        tokens = self._tokens
        if tokens.next.kind == "TEXT":
            return Target(glob=tokens.take().text)
        if not optional and tokens.accept("all"):
            return Target()
        if optional and tokens.next.kind == "END":
            return Target()
        name = tokens.name()
        if name is None:
            raise tokens.error(expecting)
        self._check_protocol(name, WRONG_SYMBOL, expecting)
        return Target(name)

    def _act(self, verb: str) -> Act:
        tokens = self._tokens
        direction = (tokens.accept("in", "out") or "") if verb == "reload" else ""
        target = self._target("" if verb == "reload" else _ANY_PROTOCOL)
        text = (tokens.text() or "") if verb in ("disable", "restart") else ""
        return Act(verb, target, direction, text)

    def _flags(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """``all``, ``off`` or ``{ a, b }``."""
        tokens = self._tokens
        if tokens.accept("all"):
            return known
        if tokens.accept("off"):
            return ()
        tokens.expect("{")
        flags = []
        while True:
            flag = tokens.accept(*known)
            if flag is None:
                raise tokens.error()
            flags.append(flag)
            if tokens.accept("}"):
                return tuple(flags)
            tokens.expect(",")

    # -- the daemon --------------------------------------------------------------------------------

    def _configure(self) -> Configure:
        tokens = self._tokens
        action = tokens.accept("check", "undo", "confirm")
        if action is not None:
            return Configure(action, (tokens.text() or "") if action == "check" else "")
        tokens.accept("soft")
        file = tokens.text() or ""
        timeout_s = None
        if tokens.accept("timeout"):
            timeout_s = tokens.number()
            if timeout_s is None:
                timeout_s = UNDO_TIMEOUT_S
        return Configure("apply", file, timeout_s)

    def _mrt(self) -> MrtDump:
        tokens = self._tokens
        tokens.expect("dump")
        tables = file = ""
        where = None
        while option := tokens.accept("table", "to", "where"):
            if option == "table":
                tables = tokens.text() or tokens.name() or ""
            elif option == "to":
                file = tokens.text() or ""
            else:
                where = parse_expression(tokens)
        if not tables:
            raise CommandError(SYNTAX, "Table not specified")
        if not file:
            raise CommandError(SYNTAX, "File not specified")
        return MrtDump(tables, file, where)
