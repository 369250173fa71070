"""What the commands do to a speaker (pure): one ``Engine`` a daemon, one ``Session`` a connection.

``Engine.execute`` gives the lines of a reply as they are asked for, with pauses between slices of a
big table: nothing is computed for a reader who does not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Protocol

from agents.bird.ctl import reply, show_daemon
from agents.bird.ctl.command import (
    PRIVILEGED,
    PRIVILEGED_VERBS,
    Act,
    Configure,
    Debug,
    Echo,
    Evaluate,
    MrtDump,
    Show,
    ShowProtocols,
    ShowRoute,
    Simple,
    Symbols,
    Target,
    parse,
)
from agents.bird.ctl.expression import evaluate
from agents.bird.ctl.listing import Listing
from agents.bird.ctl.memory import memory_use
from agents.bird.ctl.reply import DONE, CommandError, Dialect, Line, Part, final
from agents.bird.ctl.show_protocols import show_protocols, table_name
from agents.bird.ctl.switches import Switches
from agents.bird.ctl.times import Times
from agents.bird.ctl.trace import ProtocolTrace
from agents.bird.events import Traced
from agents.bird.net import Afi
from agents.bird.peer_host import Life
from agents.bird.snapshot import protocols, status
from emulator.errors import PodwireError

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterable, Iterator, Sequence

    from agents.bird.config import SpeakerConfig, StaticConfig, StaticRoute
    from agents.bird.ctl.command import Command
    from agents.bird.ctl.show_daemon import BfdRow
    from agents.bird.speaker import Speaker

VERSIONS: Final = {Dialect.BIRD1: "v0.3.3+birdv1.6.8", Dialect.BIRD2: "2.0.12"}


class Host(Protocol):
    """The daemon around the speaker, as far as commands need it."""

    speaker: Speaker

    def now(self) -> float:
        """The speaker's clock."""

    def wall(self, at: float) -> datetime.datetime:
        """The local time of a reading of that clock."""

    def settle(self) -> None:
        """The speaker was changed: see to what follows."""

    def read_config(self) -> SpeakerConfig:
        """The configuration as it is wanted now; PodwireError if there is none."""

    def find_file(self, name: str) -> str:
        """ "" if a configuration file can be read, else why not, in strerror's words."""

    def shut_down(self) -> None:
        """End the daemon; the peers hear it."""

    def leave_for_restart(self) -> None:
        """End the daemon; the peers keep its routes."""

    def bfd_rows(self) -> Sequence[BfdRow]:
        """BFD sessions."""

    def dump_tables(self, afis: Sequence[Afi], file: str) -> Iterator[None]:
        """Write an MRT dump slice by slice; OSError if that fails."""


@dataclass(slots=True)
class Session:
    """One connection's own state: may it change anything, what does it want to hear."""

    restricted: bool = False
    echo: tuple[str, ...] = ()


class Engine:
    """Understands and carries out commands."""

    def __init__(
        self,
        host: Host,
        *,
        dialect: Dialect = Dialect.BIRD1,
        version: str = "",
        config_name: str = "bird.cfg",
    ) -> None:
        """``version`` is what the banner says, by default Calico's BIRD or BIRD 2.0.12."""
        self._host = host
        self.dialect = dialect
        self.version = version or VERSIONS[dialect]
        self._config_name = config_name
        self._switches = Switches()
        self._previous: SpeakerConfig | None = None
        self._applied = host.speaker.config
        self._undo_at: float | None = None
        self._traces: dict[str, ProtocolTrace] = {}

    # -- for the shell -----------------------------------------------------------------------------

    def banner(self) -> Line:
        """What a client reads first."""
        return final(reply.WELCOME, f"BIRD {self.version} ready.")

    def configure(self, config: SpeakerConfig) -> None:
        """Put a configuration in force, with what was switched by hand.

        Nothing is traced any more: BIRD's configurations say what is, and Calico's nothing.
        """
        for name in list(self._traces):
            self._trace(name, ())
        self._previous, self._applied = self._applied, config
        self._host.speaker.configure(self._switches.apply(config), now=self._host.now())
        self._host.settle()

    def get_timer(self) -> float | None:
        """When ``handle_timer`` is due: the end of ``configure timeout``."""
        return self._undo_at

    def handle_timer(self, *, now: float) -> None:
        """Undo what was not confirmed."""
        if self._undo_at is not None and now >= self._undo_at:
            self._undo()

    def execute(self, line: str, session: Session) -> Iterator[Part]:
        """The reply to one line."""
        try:
            command = parse(line, self._symbols(), self.dialect)
            if session.restricted and self._is_privileged(command):
                raise CommandError(reply.DENIED, "Access denied")
            yield from self._run(command, session)
        except CommandError as error:
            yield error.line

    @staticmethod
    def _is_privileged(command: Command) -> bool:
        if isinstance(command, Simple):
            return command.verb in PRIVILEGED_VERBS
        return isinstance(command, PRIVILEGED)

    def _symbols(self) -> Symbols:
        config = self._host.speaker.config
        names = [static.name for static in config.static]
        if config.kernel is not None:
            names.append(config.kernel.name)
        names.append(config.device.name)
        if config.direct is not None:
            names.append(config.direct.name)
        if config.bfd is not None:
            names.append(config.bfd.name)
        names += [bgp.name for bgp in config.bgp]
        afis = (Afi.IPV4,) if self.dialect is Dialect.BIRD1 else (Afi.IPV4, Afi.IPV6)
        return Symbols(tuple(names), tuple(table_name(afi, self.dialect) for afi in afis))

    def _times(self) -> Times:
        return Times(self.dialect, self._host.now(), self._host.wall)

    def _run(self, command: Command, session: Session) -> Iterable[Part]:
        match command:
            case ShowRoute():
                return Listing(self._host.speaker, command, self._times()).lines()
            case ShowProtocols():
                return self._show_protocols(command)
            case Show():
                return self._show(command)
            case Configure():
                return self._configure(command)
            case Act():
                return self._act(command)
            case Debug(target, flags):
                for name in self._matching(target):
                    self._trace(name, flags)
                return (DONE,)
            case Echo(flags):
                session.echo = flags
                return (DONE,)
            case Evaluate(expression):
                return (final(reply.EVALUATED, evaluate(expression, self.dialect)),)
            case MrtDump():
                return self._dump(command)
            case Simple(verb):
                return (self._simple(verb, session),)

    def _simple(self, verb: str, session: Session) -> Line:
        match verb:
            case "restrict":
                session.restricted = True
                return final(reply.RESTRICTED, "Access restricted")
            case "down":
                self._host.shut_down()
                return final(reply.SHUTDOWN, "Shutdown requested")
            case "graceful restart":
                self._host.leave_for_restart()
                return final(reply.GRACEFUL_RESTART, "Graceful restart requested")
            case _:
                return DONE

    def _trace(self, name: str, flags: tuple[str, ...]) -> None:
        speaker = self._host.speaker
        self._traces.pop(name, None)
        if flags:
            self._traces[name] = ProtocolTrace(
                name,
                flags,
                self.dialect,
                lambda text: speaker.emit(Traced(text)),
                self._index_of,
                is_static=name in speaker.local.statics,
            )
        speaker.set_trace(name, self._traces.get(name))

    def _index_of(self, dev: str) -> int:
        found = (i.index for i in self._host.speaker.local.interfaces if i.name == dev)
        return next(found, 0)

    # -- show --------------------------------------------------------------------------------------

    def _matching(self, target: Target) -> list[str]:
        """Names of protocols; CommandError if a glob matches none."""
        names = self._symbols().protocols
        if target.name:
            return [target.name]
        found = [name for name in names if not target.glob or fnmatchcase(name, target.glob)]
        if not found:
            raise CommandError(reply.NO_MATCH, "No protocols match")
        return found

    def _show_protocols(self, command: ShowProtocols) -> Iterator[Part]:
        speaker = self._host.speaker
        wanted = self._matching(command.target)
        configs = {name: peer.config for name, peer in speaker.peers.items()}
        known = {info.name: info for info in protocols(speaker, now=self._host.now())}
        infos = [known[name] for name in wanted if name in known]
        yield from show_protocols(infos, configs, self._times(), detail=command.all)
        yield DONE

    def _show(self, command: Show) -> Iterator[Part]:
        speaker, times = self._host.speaker, self._times()
        match command.what:
            case "status":
                info = status(speaker, now=self._host.now())
                yield from show_daemon.show_status(info, self.version, times)
                return
            case "interfaces" if command.detail:
                yield from show_daemon.show_interfaces_summary(
                    speaker.local.interfaces, self.dialect
                )
            case "interfaces":
                yield from show_daemon.show_interfaces(speaker.local.interfaces, self.dialect)
            case "memory":
                yield from show_daemon.show_memory(memory_use(speaker, self.dialect), self.dialect)
            case "static":
                yield from self._show_static(command.detail)
            case "symbols":
                yield from self._show_symbols(command.detail)
            case _:
                yield from self._show_bfd(command.detail)
        yield DONE

    def _show_static(self, name: str) -> Iterator[Line]:
        statics = self._host.speaker.local.statics
        if name and name not in statics:
            raise CommandError(reply.WRONG_SYMBOL, f"{name} is not a static protocol")
        for static in statics.values():
            if not name or static.config.name == name:
                yield from show_daemon.show_static(self._static_routes(static.config), self.dialect)

    def _show_bfd(self, wanted: str) -> Iterator[Line]:
        bfd = self._host.speaker.config.bfd
        if wanted and (bfd is None or bfd.name != wanted):
            raise CommandError(reply.SYNTAX, f"{wanted}: Not a BFD protocol")
        if bfd is None or (bfd.disabled and not wanted):
            raise CommandError(reply.SYNTAX, "There is no BFD protocol running")
        if bfd.disabled:
            yield Line(reply.BFD, f"{bfd.name}: is not up")
        else:
            yield from show_daemon.show_bfd(self._host.bfd_rows(), bfd.name, self._times())

    def _static_routes(self, config: StaticConfig) -> Iterator[tuple[StaticRoute, bool]]:
        static = self._host.speaker.local.statics[config.name]
        for route in config.routes:
            if self.dialect is Dialect.BIRD2 or route.net.afi is Afi.IPV4:
                yield route, route.net.key not in static.channels[route.net.afi].received

    def _show_symbols(self, wanted: str) -> Iterator[Line]:
        symbols = self._symbols()
        names = [(name, "routing table") for name in symbols.tables]
        names += [(name, "protocol") for name in symbols.protocols]
        if not wanted:
            yield from show_daemon.show_symbols(names)
            return
        found = [item for item in names if item[0] == wanted] or [
            item for item in names if f"{item[1]}s".endswith(wanted)
        ]
        if not found:
            raise CommandError(reply.NOT_FOUND, f"{wanted}\tundefined")
        yield from show_daemon.show_symbols(found)

    # -- change ------------------------------------------------------------------------------------

    def _act(self, command: Act) -> Iterator[Part]:
        names = self._matching(command.target)
        for name in names:
            if name in self._host.speaker.peers:
                line = self._act_on_bgp(command, name)
            else:
                line = self._act_on_other(command, name)
            if line is not None:
                yield line
        self._host.settle()
        yield DONE

    def _act_on_bgp(self, command: Act, name: str) -> Line | None:
        speaker, now = self._host.speaker, self._host.now()
        peer = speaker.peers[name]
        match command.verb:
            case "disable":
                return _disabled(name, speaker.disable(name, now=now, text=command.text))
            case "enable":
                return _enabled(name, speaker.enable(name, now=now))
            case _ if not peer.enabled:
                return Line(reply.DISABLED_ALREADY, f"{name}: already disabled")
            case "restart":
                speaker.restart(name, now=now)
                return Line(reply.RESTARTED, f"{name}: restarted")
        if peer.life is not Life.UP:
            return None
        done = speaker.reload(
            name,
            now=now,
            incoming=command.direction != "out",
            outgoing=command.direction != "in",
        )
        return _reloaded(name, done)

    def _act_on_other(self, command: Act, name: str) -> Line | None:
        off = self._is_off(name)
        match command.verb:
            case "disable":
                if not off:
                    self._switch(name, off=True)
                return _disabled(name, not off)
            case "enable":
                if off:
                    self._switch(name, off=False)
                return _enabled(name, off)
            case _ if off:
                return Line(reply.DISABLED_ALREADY, f"{name}: already disabled")
            case "restart":
                self._switch(name, off=True)
                self._switch(name, off=False)
                return Line(reply.RESTARTED, f"{name}: restarted")
        speaker = self._host.speaker
        kernel = speaker.local.kernel
        if kernel is not None and kernel.config.name == name:
            if command.direction != "in":
                kernel.refresh()
            if command.direction != "out":
                speaker.kernel_changed(now=self._host.now())
            return _reloaded(name, True)
        # BIRD 1 cannot make static, direct and device repeat what they said.
        return _reloaded(name, command.direction == "out" or self.dialect is Dialect.BIRD2)

    def _is_off(self, name: str) -> bool:
        config = self._host.speaker.config
        parts = [*config.static, config.device, config.kernel, config.direct, config.bfd]
        return any(part is not None and part.name == name and part.disabled for part in parts)

    def _switch(self, name: str, *, off: bool) -> None:
        now = self._host.now()
        self._switches.off[name] = off
        speaker = self._host.speaker
        reconfigured_at = speaker.configured_at
        trace = self._traces.get(name)
        if trace is not None:
            trace.switched(off=off)
        speaker.configure(self._switches.apply(self._applied), now=now)
        if trace is not None:
            if not off:
                speaker.local.trace_interfaces(name)
            trace.settled(off=off)
        speaker.configured_at = reconfigured_at
        speaker.local.since[name] = now

    # -- configure ---------------------------------------------------------------------------------

    def _configure(self, command: Configure) -> Iterator[Part]:
        match command.action:
            case "undo":
                yield Line(reply.UNDO_REQUESTED, "Undo requested")
                done = self._undo()
                text = "Reconfigured" if done else "Nothing to do"
                yield final(reply.RECONFIGURED if done else reply.NOTHING_TO_DO, text)
                return
            case "confirm":
                if self._undo_at is None:
                    yield final(reply.NOTHING_TO_DO, "Nothing to do")
                else:
                    self._undo_at = None
                    yield final(reply.CONFIRMED, "Reconfiguration confirmed")
                return
        yield Line(reply.READING, f"Reading configuration from {command.file or self._config_name}")
        config = self._read(command.file)
        if command.action == "check":
            yield final(reply.CONFIG_OK, "Configuration OK")
            return
        self.configure(config)
        self._undo_at = None
        if command.timeout_s is not None:
            self._undo_at = self._host.now() + command.timeout_s
            yield Line(reply.UNDO_SCHEDULED, f"Undo scheduled in {command.timeout_s} s")
        yield final(reply.RECONFIGURED, "Reconfigured")

    def _read(self, file: str) -> SpeakerConfig:
        """The wanted configuration; its text is confd's, other files mean nothing here."""
        if file and file != self._config_name:
            why = self._host.find_file(file) or (
                "the speaker is configured by confd, which writes this file for reading; "
                "change Calico's resources"
            )
            raise CommandError(reply.CONFIG_ERROR, f"{file}: {why}")
        try:
            return self._host.read_config()
        except PodwireError as error:
            raise CommandError(reply.CONFIG_ERROR, str(error)) from None

    def _undo(self) -> bool:
        self._undo_at = None
        previous = self._previous
        if previous is None:
            return False
        self.configure(previous)
        self._previous = None
        return True

    # -- mrt ---------------------------------------------------------------------------------------

    def _dump(self, command: MrtDump) -> Iterator[Part]:
        afis = [
            afi
            for afi in (Afi.IPV4, Afi.IPV6)
            if fnmatchcase(table_name(afi, self.dialect), command.tables)
            and (afi is Afi.IPV4 or self.dialect is Dialect.BIRD2)
        ]
        if afis:
            try:
                for _ in self._host.dump_tables(afis, command.file):
                    yield None
            except OSError as error:
                why = error.strerror or str(error)
                raise CommandError(
                    reply.CONFIG_ERROR, f"Unable to open MRT file '{command.file}': {why}"
                ) from None
        yield DONE


def _disabled(name: str, changed: bool) -> Line:
    if changed:
        return Line(reply.DISABLED, f"{name}: disabled")
    return Line(reply.DISABLED_ALREADY, f"{name}: already disabled")


def _enabled(name: str, changed: bool) -> Line:
    if changed:
        return Line(reply.ENABLED, f"{name}: enabled")
    return Line(reply.ENABLED_ALREADY, f"{name}: already enabled")


def _reloaded(name: str, done: bool) -> Line:
    if done:
        return Line(reply.RELOADING, f"{name}: reloading")
    return Line(reply.RELOAD_FAILED, f"{name}: reload failed")
