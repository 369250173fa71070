"""Running one role as a process: loop, log, signals, exit code.

The same whether the zygote forked it or a person started it in a terminal.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from emulator.errors import PodwireError, UsageError
from emulator.runtime.clock import real_clock
from emulator.runtime.rng import real_rng
from emulator.runtime.role import RoleEnv
from emulator.runtime.tls import use_small_tls_buffers

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    Role = Callable[[RoleEnv], Coroutine[Any, Any, None]]

# What an HTTP parser quotes of garbage, as far as it is of use in a log.
MAX_GARBAGE_CHARS: Final = 120


def set_up_log(name: str, path: Path | None = None) -> logging.Logger:
    """Log in klog-like lines to a file, or to stderr without one; returns the role's logger."""
    handler = logging.StreamHandler(sys.stderr) if path is None else logging.FileHandler(path)
    handler.setFormatter(
        logging.Formatter(
            "%(asctime)s.%(msecs)03d %(levelname).1s %(name)s: %(message)s", "%H:%M:%S"
        )
    )
    handler.addFilter(_one_line_for_garbage)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # One line a request is for a person who asks for it, not for every kubelet's heartbeat.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    return logging.getLogger(name)


def _one_line_for_garbage(record: logging.LogRecord) -> bool:
    """A client that does not speak HTTP is its own problem: no error of ours, no traceback."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if error is None:
        return True
    from aiohttp.http_exceptions import HttpProcessingError

    if isinstance(error, HttpProcessingError):
        what = " ".join(error.message.split())[:MAX_GARBAGE_CHARS]
        record.msg, record.args = f"{record.getMessage()}: {what}", ()
        record.exc_info = None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True


def run_role(
    role: Role,
    *,
    name: str,
    on_ready: Callable[[str], None],
    on_failed: Callable[[str], None],
    lifeline: int | None = None,
) -> int:
    """Run a role until SIGTERM, SIGINT or the end of its lifeline; returns the exit code.

    0 stopped when asked, 2 bad input (UsageError), 1 any other failure; the text goes to
    ``on_failed`` and the log.
    """
    log = set_up_log(name)
    use_small_tls_buffers()
    try:
        asyncio.run(_until_told(role, RoleEnv(real_clock(), real_rng(), log, on_ready), lifeline))
    except BaseExceptionGroup as group:
        return _report(_first(group), log, on_failed)
    except (Exception, asyncio.CancelledError) as error:
        return _report(error, log, on_failed)
    return 0


async def _until_told(role: Role, env: RoleEnv, lifeline: int | None) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(role(env), name=env.log.name)
    told = False

    def stop() -> None:
        nonlocal told
        told = True
        if lifeline is not None:
            loop.remove_reader(lifeline)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if lifeline is not None:
        loop.add_reader(lifeline, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not told:
            raise


def _first(error: BaseException) -> BaseException:
    """The cause inside nested groups: a UsageError if there is one, else the first."""
    while isinstance(error, BaseExceptionGroup):
        usage = error.subgroup(UsageError)
        error = (usage or error).exceptions[0]
    return error


def _report(error: BaseException, log: logging.Logger, on_failed: Callable[[str], None]) -> int:
    if isinstance(error, UsageError):
        log.error("%s", error)
        on_failed(str(error))
        return 2
    if isinstance(error, PodwireError):
        log.error("%s: %s", type(error).__name__, error)
    else:
        log.error("crashed", exc_info=error)
    on_failed(f"{type(error).__name__}: {error}")
    return 1
