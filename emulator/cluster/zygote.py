"""The warm parent: a process that has imported everything and forks roles on request.

A fork of it is a new role in about two milliseconds with nearly all memory shared.  It must stay
free of threads, event loops and open connections, so it is a plain blocking loop; the supervisor
talks to it over a SOCK_SEQPACKET pair of msgpack messages:

    supervisor → zygote   {"spawn": role, "log": path}
    zygote → supervisor   {"spawned": role, "pid"}         {"exited": role, "pid", "status"}
    child → supervisor    {"ready": role, "pid", "info"}   {"failed": role, "pid", "error"}

A fast child's "ready" may overtake the zygote's "spawned"; its "exited" never overtakes either.

Nobody is left behind: the zygote ends its children when the supervisor's end closes, and each
child ends when its lifeline (a pipe only the zygote holds open) closes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# A message holds a role name and a path or an error line; longer error texts are cut.
MAX_MESSAGE_BYTES: Final = 16 * 1024
MAX_ERROR_CHARS: Final = 4000
# The wait status told of a role that could not be forked: exit status 1.
FORK_FAILED: Final = 1 << 8
# How long children get between SIGTERM and SIGKILL when the supervisor has gone away.
ORPHAN_GRACE_S: Final = 3.0


class Child:
    """What a forked role gets: its name, how to say ready or failed, its lifeline."""

    __slots__ = ("_channel", "lifeline", "role")

    def __init__(self, role: str, channel: socket.socket, lifeline: int) -> None:
        """``lifeline`` is a file descriptor that becomes readable when the parent is gone."""
        self.role = role
        self._channel = channel
        self.lifeline = lifeline

    def ready(self, info: str) -> None:
        self._tell({"ready": self.role, "pid": os.getpid(), "info": info})

    def failed(self, error: str) -> None:
        self._tell({"failed": self.role, "pid": os.getpid(), "error": error[:MAX_ERROR_CHARS]})

    def _tell(self, message: Mapping[str, Any]) -> None:
        # A supervisor that went away has nobody to tell; the lifeline ends this process.
        with contextlib.suppress(OSError):
            self._channel.send(msgpack.packb(message))


def start_zygote(
    run_child: Callable[[Child], int], close: Iterable[int] = ()
) -> tuple[socket.socket, int]:
    """Fork the zygote; returns the supervisor's end of the channel and the zygote's pid.

    ``run_child`` runs in each forked role and returns its exit status; ``close`` are descriptors
    that are the supervisor's alone (the directory's lock, the way back to a waiting terminal).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Move what the imports made out of the collector's sight, so that a collection in a child does
    # not touch, and thereby copy, shared pages.
    gc.collect()
    gc.freeze()
    # A new entry of the cache of attribute lookups drops an old one: a write to some shared page.
    sys._clear_type_cache()
    pid = os.fork()
    if pid:
        theirs.close()
        return ours, pid
    ours.close()
    for descriptor in close:
        os.close(descriptor)
    os.setpgrp()  # Ctrl-C in the terminal is for the supervisor alone
    status = 1
    try:
        status = _Zygote(theirs, run_child).serve()
    finally:
        os._exit(status)


class _Zygote:
    def __init__(self, channel: socket.socket, run_child: Callable[[Child], int]) -> None:
        self._channel = channel
        self._run_child = run_child
        self._children: dict[int, str] = {}
        self._lifeline_read, self._lifeline_write = os.pipe()

    def serve(self) -> int:
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        _name_process("podwire")
        while True:
            channel = self._channel.fileno()
            readable, _, _ = select.select([channel, wake_read], [], [])
            if wake_read in readable:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
            self._reap()
            if channel in readable:
                try:
                    data = self._channel.recv(MAX_MESSAGE_BYTES)
                except ConnectionResetError:
                    data = b""  # closed before it read our last message
                if not data:
                    self._end_children()
                    return 0
                self._spawn(msgpack.unpackb(data), (wake_read, wake_write))

    def _tell(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(msgpack.packb(message))

    def _spawn(self, request: Mapping[str, Any], wake: tuple[int, int]) -> None:
        role = request["spawn"]
        # A SIGTERM for the child before it stops ignoring it would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            pid = os.fork()
        except OSError as error:
            # Out of processes or memory for now: that is this role's failure, not everybody's end.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            self._tell({"spawned": role, "pid": 0})
            self._tell({"failed": role, "pid": 0, "error": f"cannot fork: {error.strerror}"})
            self._tell({"exited": role, "pid": 0, "status": FORK_FAILED})
            return
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for descriptor in (*wake, self._lifeline_write):
                os.close(descriptor)
            self._become(role, request["log"])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        self._children[pid] = role
        self._tell({"spawned": role, "pid": pid})

    def _become(self, role: str, log_path: str) -> NoReturn:
        status = 1
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            null = os.open(os.devnull, os.O_RDONLY)
            log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(null, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(null)
            os.close(log)
            _name_process(f"podwire {role}")
            status = self._run_child(Child(role, self._channel, self._lifeline_read))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            # Neither the parent's exit handlers nor its buffers are this process's business.
            os._exit(status)

    def _reap(self) -> None:
        while self._children:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            role = self._children.pop(pid)
            self._tell({"exited": role, "pid": pid, "status": status})

    def _end_children(self) -> None:
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + ORPHAN_GRACE_S
        while self._children and time.monotonic() < deadline:
            signal.sigtimedwait([signal.SIGCHLD], 0.05)
            self._reap()
        for pid in self._children:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _name_process(name: str) -> None:
    """Show ``name`` in ps and top (15 characters, Linux only)."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name[:15])
