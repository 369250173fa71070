"""The control socket: asyncio around ``Engine``.

A reply is written in pieces as its reader takes them, so a client that stops reading holds up
nobody but itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import os
from typing import TYPE_CHECKING, Final

from agents.bird.ctl.engine import Engine, Session
from agents.bird.ctl.reply import TOO_LONG, Dialect, final, frame
from agents.bird.events import ProtocolLogged, Traced
from agents.bird.mrt import table_dump
from emulator.errors import UsageError

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from agents.bird.config import SpeakerConfig
    from agents.bird.ctl.reply import Part
    from agents.bird.ctl.show_daemon import BfdRow
    from agents.bird.daemon import BirdDaemon
    from agents.bird.events import Event
    from agents.bird.net import Afi
    from emulator.runtime.clock import Clock

# A command's length: BIRD's CLI_RX_BUF_SIZE.
MAX_COMMAND: Final = 4096
# Connections at once.  BIRD has no limit; a person has three, calico-node two a probe.
MAX_SESSIONS: Final = 64
# Octets of a reply made before its reader is waited for: some 200 routes, 2 ms of work.
PIECE: Final = 16 * 1024
# Log lines wait for a slow reader up to this (BIRD's ring is 4096); then they are lost to it.
ECHO_LIMIT: Final = 64 * 1024
READ_WRITE: Final = 0o660


class BirdControl:
    """Serves ``bird.ctl`` of one daemon."""

    def __init__(
        self,
        daemon: BirdDaemon,
        *,
        path: Path,
        read_config: Callable[[], SpeakerConfig | None],
        clock: Clock,
        log: logging.Logger,
        root: Path,
        dialect: Dialect = Dialect.BIRD1,
        version: str = "",
        config_name: str = "/etc/calico/confd/config/bird.cfg",
        bfd_rows: Callable[[], Sequence[BfdRow]] = tuple,
    ) -> None:
        """``root`` is the node's "/": files that commands name are inside it.

        ``read_config`` gives what ``configure`` puts in force, None while there is nothing yet.
        """
        self._daemon = daemon
        self._path = path
        self._read_config = read_config
        self._clock = clock
        self._log = log
        self._root = root
        self._bfd_rows = bfd_rows
        self.speaker = daemon.speaker
        self.engine = Engine(self, dialect=dialect, version=version, config_name=config_name)
        self._sessions: dict[asyncio.Task[None], tuple[Session, asyncio.StreamWriter]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serve until cancelled; UsageError if the socket cannot be made."""
        path = self._path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            server = await asyncio.start_unix_server(self._connected, path=str(path))
            path.chmod(READ_WRITE)
        except OSError as error:
            raise UsageError(f"bird cannot serve {path}: {error.strerror or error}") from None
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()
            path.unlink(missing_ok=True)
            if self._timer is not None:
                self._timer.cancel()
            # Sessions end as if their clients had gone: their tasks are the server's own.
            for _, writer in self._sessions.values():
                writer.transport.abort()
            await asyncio.gather(*self._sessions, return_exceptions=True)

    def configure(self, config: SpeakerConfig) -> None:
        """Another configuration is wanted: put it in force."""
        self.engine.configure(config)

    # -- sessions ----------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        session = Session()
        try:
            if len(self._sessions) >= MAX_SESSIONS:
                writer.write(b"8007 Too many sessions\n")
                return
            self._sessions[task] = (session, writer)
            await self._reply(writer, [self.engine.banner()])
            await self._serve(reader, writer, session)
        except OSError:
            # The client went away.
            return
        except Exception:
            self._log.exception("bird.ctl: a command failed; its session is closed")
        finally:
            self._sessions.pop(task, None)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: Session
    ) -> None:
        buffer = b""
        skipping = False
        while data := await reader.read(MAX_COMMAND):
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                if skipping or len(line) > MAX_COMMAND:
                    skipping = False
                    await self._reply(writer, [final(TOO_LONG, "Command too long")])
                    continue
                text = line.replace(b"\r", b"").decode("utf-8", "replace")
                await self._reply(writer, self.engine.execute(text, session))
                self._arm()
            if len(buffer) > MAX_COMMAND:
                buffer, skipping = b"", True

    async def _reply(
        self, writer: asyncio.StreamWriter, parts: Iterator[Part] | Sequence[Part]
    ) -> None:
        piece: list[str] = []
        size = 0
        for text in frame(parts):
            if text is None:
                await asyncio.sleep(0)
                if writer.is_closing():
                    return
                continue
            piece.append(text)
            size += len(text)
            if size >= PIECE:
                writer.write("".join(piece).encode())
                piece, size = [], 0
                await writer.drain()
                if writer.is_closing():
                    return
                # drain returns at once while the socket takes everything; others want their turn.
                await asyncio.sleep(0)
        writer.write("".join(piece).encode())
        await writer.drain()

    def event(self, event: Event) -> None:
        """Show what happened to the sessions that listen (``echo``)."""
        if isinstance(event, ProtocolLogged):
            kind, text = "info", f"{event.protocol}: {event.text}".removeprefix(": ")
        elif isinstance(event, Traced):
            kind, text = "trace", event.text
            self._log.info("%s", text)
        else:
            return
        for session, writer in self._sessions.values():
            if kind in session.echo and not writer.is_closing():
                transport = writer.transport
                if transport.get_write_buffer_size() < ECHO_LIMIT:
                    writer.write(f"+{text}\n".encode())

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.engine.get_timer()
        if at is not None:
            self._timer = asyncio.get_running_loop().call_at(at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.engine.handle_timer(now=self.now())
        self._arm()

    # -- the engine's host -------------------------------------------------------------------------

    def now(self) -> float:
        """The loop's time, which is the speaker's."""
        return asyncio.get_running_loop().time()

    def wall(self, at: float) -> datetime.datetime:
        """In the time zone of this host."""
        unix = self._clock.time() - self.now() + at
        return datetime.datetime.fromtimestamp(unix, datetime.UTC).astimezone()

    def settle(self) -> None:
        """Let the daemon do what the speaker wants now."""
        self._daemon.after_input()

    def read_config(self) -> SpeakerConfig:
        """What confd computed last."""
        config = self._read_config()
        if config is None:
            raise UsageError("confd has not computed a configuration yet")
        return config

    def _inside(self, name: str) -> Path:
        """A file by its name on the node; OSError for one outside of it."""
        path = (self._root / name.lstrip("/")).resolve()
        if not path.is_relative_to(self._root.resolve()):
            raise PermissionError(1, "Operation not permitted")
        return path

    def find_file(self, name: str) -> str:
        """Why a file cannot be read, "" if it can."""
        try:
            with self._inside(name).open("rb"):
                return ""
        except OSError as error:
            return error.strerror or os.strerror(error.errno or 0)

    def shut_down(self) -> None:
        """``down``: after the reply is written."""
        asyncio.get_running_loop().call_soon(self._daemon.shut_down)

    def leave_for_restart(self) -> None:
        """``graceful restart``: after the reply is written."""
        asyncio.get_running_loop().call_soon(self._daemon.leave_for_restart)

    def bfd_rows(self) -> Sequence[BfdRow]:
        """The BFD sessions of this daemon."""
        return self._bfd_rows()

    def dump_tables(self, afis: Sequence[Afi], file: str) -> Iterator[None]:
        """Write tables into a file of the node."""
        path = self._inside(file)
        with path.open("wb") as target:
            unix = self._clock.time()
            for afi in afis:
                for records in table_dump(self.speaker, afi, unix, unix - self.now()):
                    target.write(records)
                    yield
