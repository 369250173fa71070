"""Joins two byte streams, each of either world: a real socket and an emulated one.

Used where the host meets the emulated network: a NodePort's listening socket, and the addresses
of processes that have no emulated kernel of their own (API server, etcd).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Iterator

    Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]

# One read of a fast peer: as much as a super-segment of the emulated TCP carries.
CHUNK_BYTES: Final = 64 * 1024


@contextlib.contextmanager
def kept(tasks: set[asyncio.Task[None]]) -> Iterator[None]:
    """Hold the running task in ``tasks`` meanwhile.

    asyncio itself holds a task only by what it waits for.  A relay waits for sockets that only the
    relay knows, so without this the garbage collector may end it in the middle.
    """
    task = asyncio.current_task()
    assert task is not None
    tasks.add(task)
    try:
        yield
    finally:
        tasks.discard(task)


async def relay(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    dial: Dial,
    *,
    what: str,
    log: logging.Logger,
) -> None:
    """Serve an accepted connection by joining it to the one ``dial`` opens.

    Ends when both directions have ended; an end of file is passed on as one (half-close), a reset
    or a failed dial as a reset, with its reason in the log.
    """
    try:
        far_reader, far_writer = await dial()
    except OSError as error:
        log.info("%s: not connected: %s", what, error)
        _reset(writer)
        return
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(reader, far_writer), name="relay.out")
            group.create_task(_copy(far_reader, writer), name="relay.back")
    except* OSError as group_error:
        log.info("%s: reset: %s", what, group_error.exceptions[0])
        _reset(writer)
        _reset(far_writer)
    finally:
        for end in (writer, far_writer):
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a RST: a real socket needs SO_LINGER 0 for that, an emulated one ``abort``."""
    real = writer.get_extra_info("socket")
    if real is not None:
        with contextlib.suppress(OSError):
            real.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
