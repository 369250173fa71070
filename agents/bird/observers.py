"""Shells of those who look on: a BMP collector's connection, a file of all messages (MRT).

Both are ``MessageTap``s; ``Taps`` lets several be one.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from agents.bird.bmp import BmpFeed, termination
from agents.bird.events import StateChanged
from agents.bird.mrt import Ends, message_record, state_record
from agents.bird.net import Afi

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from agents.bird.bmp import Ports
    from agents.bird.events import Event, MessageTap
    from agents.bird.speaker import Speaker
    from emulator.runtime.clock import Clock

# Between two attempts to reach a collector.
RETRY_S: Final = 5.0
STATISTICS_S: Final = 60.0
# A collector that lets so much wait is dropped and told everything anew when it comes back.
MAX_BACKLOG: Final = 16 << 20
# A file of messages grows no further: a day of a small mesh, or a million routes four times.
MAX_MRT: Final = 256 << 20
DESCRIPTION: Final = "Podwire BGP speaker"


class Taps:
    """Several taps as one."""

    def __init__(self, taps: Iterable[MessageTap]) -> None:
        self._taps = tuple(taps)

    def message(
        self, peer: str, connection: int, kind: int, body: bytes, *, received: bool, now: float
    ) -> None:
        """As ``MessageTap``."""
        for tap in self._taps:
            tap.message(peer, connection, kind, body, received=received, now=now)


class BmpClient:
    """Keeps a collector informed; comes back when it went away."""

    def __init__(self, address: tuple[str, int], clock: Clock, log: logging.Logger) -> None:
        self._address = address
        self._clock = clock
        self._log = log
        self._speaker: Speaker | None = None
        self._ports_of: Callable[[int], Ports] = lambda _: (0, 0)
        self._feed: BmpFeed | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._backlog: bytearray | None = None

    def attach(self, speaker: Speaker, ports_of: Callable[[int], Ports]) -> None:
        """What to report on; to be called before ``run``."""
        self._speaker = speaker
        self._ports_of = ports_of

    def _unix(self, at: float) -> float:
        return self._clock.time() - asyncio.get_running_loop().time() + at

    async def run(self) -> None:
        """Report until cancelled."""
        told = False
        host, port = self._address
        while True:
            try:
                reader, writer = await asyncio.open_connection(host, port)
            except OSError as error:
                if not told:
                    why = error.strerror or error
                    self._log.warning("bmp: no collector at %s:%d: %s", host, port, why)
                told = True
            else:
                told = False
                self._log.info("bmp: collector %s:%d", host, port)
                try:
                    await self._report(reader, writer)
                finally:
                    self._feed = self._writer = self._backlog = None
                    writer.close()
                self._log.info("bmp: collector %s:%d went away", host, port)
            await asyncio.sleep(RETRY_S)

    async def _report(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Tell everything, then what happens, until the collector hangs up."""
        assert self._speaker is not None
        self._writer = writer
        feed = self._feed = BmpFeed(self._speaker, self._unix, self._ports_of)
        try:
            # What happens meanwhile follows what was there before.
            self._backlog = bytearray()
            for data in feed.start(DESCRIPTION):
                writer.write(data)
                await writer.drain()
            waiting, self._backlog = self._backlog, None
            self._write(bytes(waiting))
            while not writer.is_closing():
                try:
                    async with asyncio.timeout(STATISTICS_S):
                        # Collectors say nothing: the end is all there is to read.
                        while await reader.read(4096):
                            continue
                    return
                except TimeoutError:
                    self._write(feed.statistics(asyncio.get_running_loop().time()))
        except asyncio.CancelledError:
            writer.write(termination())
            raise
        except OSError:
            return

    def _write(self, data: bytes) -> None:
        writer = self._writer
        if not data or writer is None or writer.is_closing():
            return
        if self._backlog is not None:
            self._backlog += data
            if len(self._backlog) > MAX_BACKLOG:
                self._drop(writer)
            return
        writer.write(data)
        if writer.transport.get_write_buffer_size() > MAX_BACKLOG:
            self._drop(writer)

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        self._log.warning("bmp: the collector does not read; it is dropped")
        writer.transport.abort()

    def message(
        self, peer: str, connection: int, kind: int, body: bytes, *, received: bool, now: float
    ) -> None:
        """As ``MessageTap``."""
        if received and self._feed is not None:
            self._write(self._feed.message(peer, connection, kind, body, now))

    def event(self, event: Event) -> None:
        """What the speaker tells."""
        if self._feed is not None:
            self._write(self._feed.event(event, asyncio.get_running_loop().time()))


class MrtLog:
    """Every message and state change of a speaker in a file, as BGP4MP_ET."""

    def __init__(self, path: Path, clock: Clock, log: logging.Logger) -> None:
        self._path = path
        self._clock = clock
        self._log = log
        self._speaker: Speaker | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=1 << 16)
        self._room = MAX_MRT - self._file.tell()
        self._flushing = False

    def attach(self, speaker: Speaker) -> None:
        """Whose messages these are; to be called before the first."""
        self._speaker = speaker

    def close(self) -> None:
        """Write what waits."""
        with contextlib.suppress(OSError):
            self._file.close()

    def message(
        self, peer: str, connection: int, kind: int, body: bytes, *, received: bool, now: float
    ) -> None:
        """As ``MessageTap``."""
        ends = self._ends(peer)
        if ends is None:
            return
        as4, path_ids = True, False
        assert self._speaker is not None
        session = self._speaker.peers[peer].session
        if session is not None and session.terms is not None and session.number == connection:
            terms = session.terms
            as4 = terms.as4
            path_ids = Afi.IPV4 in (terms.add_path_rx if received else terms.add_path_tx)
        at = self._clock.time()
        self._write(
            message_record(at, ends, kind, body, received=received, as4=as4, path_ids=path_ids)
        )

    def event(self, event: Event) -> None:
        """What the speaker tells."""
        if isinstance(event, StateChanged):
            ends = self._ends(event.peer)
            if ends is not None:
                self._write(state_record(self._clock.time(), ends, event.old, event.new))

    def _ends(self, name: str) -> Ends | None:
        peer = self._speaker.peers.get(name) if self._speaker is not None else None
        if peer is None:
            return None
        config = peer.config
        return Ends(config.peer_as, config.local_as, config.neighbor, peer.source_address)

    def _write(self, data: bytes) -> None:
        if self._file.closed:
            return
        if len(data) > self._room:
            self._log.warning("mrt: %s is full (%d octets)", self._path, MAX_MRT)
            self.close()
            return
        self._room -= len(data)
        try:
            self._file.write(data)
        except OSError as error:
            self._log.warning("mrt: %s: %s", self._path, error.strerror or error)
            self.close()
            return
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._file.flush()
