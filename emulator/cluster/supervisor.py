"""The supervisor: starts a cluster's roles, restarts what crashes, takes everything down.

Its state is one ``RoleState`` per role; ``status`` on its control socket shows them.  A role that
fails before the cluster first came up fails the start: its one line is the start's error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgpack

from emulator.addr import format_ip
from emulator.cluster.zygote import MAX_MESSAGE_BYTES
from emulator.errors import PodwireError, UsageError
from emulator.runtime.control import Call, ControlServer

if TYPE_CHECKING:
    import logging
    import socket
    from collections.abc import Callable

    from emulator.cluster.plan import ClusterPlan

# Backoff of a crashing role: first restart almost at once, then doubling, as kubelet's does from
# 10 s; ours is for developers who wait.
RESTART_FIRST_S: Final = 0.1
RESTART_MAX_S: Final = 10.0
# A role that ran this long is healthy again: its next crash restarts at the first backoff.
STABLE_AFTER_S: Final = 10.0
# From the first fork to all roles ready; a laptop needs about 1 s for 3 nodes, 10 s for 100.
START_TIMEOUT_S: Final = 120.0
STOP_GRACE_S: Final = 3.0
# Forks asked for but not confirmed; keeps the channel's buffers small at any number of nodes.
MAX_FORKS_IN_FLIGHT: Final = 16
# How often processes whose parent died are looked at; each ends by its lifeline in milliseconds.
ORPHAN_POLL_S: Final = 0.02


@dataclass(slots=True)
class RoleState:
    """One process of the cluster; instants are monotonic seconds."""

    role: str
    pid: int = 0
    ready: bool = False
    info: str = ""
    restarts: int = 0
    error: str = ""
    last_exit: str = ""
    backoff_s: float = RESTART_FIRST_S
    started_at: float = 0.0


class Supervisor:
    """Runs one cluster until told to stop."""

    def __init__(
        self,
        plan: ClusterPlan,
        channel: socket.socket,
        log: logging.Logger,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        """``channel`` is ``start_zygote``'s; ``on_progress(role, ready, total)`` at each step."""
        self._plan = plan
        self._channel = channel
        self._log = log
        self._on_progress = on_progress
        names = ["etcd"] if plan.embedded_etcd else []
        names += ["controlplane", *(node.spec.name for node in plan.nodes)]
        self.roles = {name: RoleState(name) for name in names}
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._up = False
        self._failure: str | None = None
        self._restarts: dict[str, asyncio.TimerHandle] = {}
        self._to_fork: deque[RoleState] = deque()
        self._forks_in_flight = 0
        self._orphaned = False

    async def run(self, on_up: Callable[[], None]) -> None:
        """Start everything, call ``on_up``, then watch until stopped.

        Raises UsageError with a role's own line when the cluster cannot start, PodwireError when
        it ended by itself.
        """
        loop = asyncio.get_running_loop()
        self._channel.setblocking(False)
        loop.add_reader(self._channel, self._read)
        server = ControlServer(
            {
                "status": self._serve_status,
                "down": self._serve_down,
                "restart": self._serve_restart,
            },
            self._log,
        )
        try:
            await server.start_unix(str(self._plan.socket("supervisor")))
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._start_all()
            self._up = True
            if not self._stopping.is_set():
                on_up()
            await self._stopping.wait()
            if self._failure is not None:
                raise PodwireError(f"{self._failure}; the cluster is down")
        except TimeoutError:
            raise PodwireError(self._why_late()) from None
        finally:
            await self._stop_all()
            loop.remove_reader(self._channel)
            self._channel.close()
            await server.close()

    def stop(self) -> None:
        """Ask ``run`` to take the cluster down; safe to call from a signal handler."""
        self._stopping.set()
        self._changed.set()

    async def _start_all(self) -> None:
        # etcd first: everyone else needs it at once, and it is ready in milliseconds.
        if "etcd" in self.roles:
            self._spawn(self.roles["etcd"])
            await self._until_ready(["etcd"])
        if self._stopping.is_set():
            return
        rest = [name for name in self.roles if name != "etcd"]
        for name in rest:
            self._spawn(self.roles[name])
        await self._until_ready(rest)

    async def _until_ready(self, names: list[str]) -> None:
        while not self._stopping.is_set() and not all(self.roles[name].ready for name in names):
            if self._failure is not None:
                raise UsageError(self._failure)
            self._changed.clear()
            await self._changed.wait()

    def _why_late(self) -> str:
        """Who is not ready, and what the first of them said last (its log will be gone)."""
        late = [state.role for state in self.roles.values() if not state.ready]
        lines = ""
        with contextlib.suppress(OSError):
            lines = self._plan.log(late[0]).read_text(errors="replace").strip()
        said = f"; {late[0]} said last: {lines.splitlines()[-1]}" if lines else ""
        return f"not ready within {START_TIMEOUT_S:.0f} s: {', '.join(late)}{said}"

    def _spawn(self, state: RoleState) -> None:
        self._restarts.pop(state.role, None)
        state.ready = False
        self._to_fork.append(state)
        self._fork_next()

    def _fork_next(self) -> None:
        while self._to_fork and self._forks_in_flight < MAX_FORKS_IN_FLIGHT:
            state = self._to_fork.popleft()
            self._forks_in_flight += 1
            state.started_at = time.monotonic()
            log = str(self._plan.log(state.role))
            self._channel.send(msgpack.packb({"spawn": state.role, "log": log}))

    def _read(self) -> None:
        while True:
            try:
                data = self._channel.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""  # gone before it read our last message
            if not data:
                self._failure = "the parent of all processes died"
                self._orphaned = True
                self._log.error("%s", self._failure)
                asyncio.get_running_loop().remove_reader(self._channel)
                self.stop()
                return
            self._handle(msgpack.unpackb(data))

    def _handle(self, message: dict[str, Any]) -> None:
        match message:
            case {"spawned": role, "pid": pid}:
                self.roles[role].pid = pid
                self._forks_in_flight -= 1
                self._fork_next()
            case {"ready": role, "pid": pid, "info": info}:
                state = self.roles[role]
                state.pid, state.ready, state.info = pid, True, info
                ready = sum(other.ready for other in self.roles.values())
                self._on_progress(role, ready, len(self.roles))
            case {"failed": role, "error": error}:
                self.roles[role].error = error
            case {"exited": role, "status": status}:
                self._exited(self.roles[role], status)
            case _:
                self._log.warning("unexpected message %r", message)
        self._changed.set()

    def _exited(self, state: RoleState, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        how = how_ended(code)
        state.pid, state.ready = 0, False
        if self._stopping.is_set():
            return
        error, state.error = state.error, ""
        if not self._up and code == 2 and error:
            # 2 is bad input (a taken port, an unwritable directory): trying again cannot help.
            self._failure = f"{state.role}: {error}"
            return
        state.last_exit = f"{how}: {error}" if code > 0 and error else how
        if time.monotonic() - state.started_at >= STABLE_AFTER_S:
            state.backoff_s = RESTART_FIRST_S
        self._log.warning(
            "%s ended (%s), restarting in %.1f s", state.role, state.last_exit, state.backoff_s
        )
        state.restarts += 1
        self._restarts[state.role] = asyncio.get_running_loop().call_later(
            state.backoff_s, self._spawn, state
        )
        state.backoff_s = min(state.backoff_s * 2, RESTART_MAX_S)

    async def _stop_all(self) -> None:
        self._stopping.set()
        self._to_fork.clear()
        for handle in self._restarts.values():
            handle.cancel()
        nodes = [node.spec.name for node in self._plan.nodes]
        for group in (nodes, ["controlplane"], ["etcd"]):
            await self._stop([self.roles[name] for name in group if name in self.roles])

    async def _stop(self, states: list[RoleState]) -> None:
        """SIGTERM, then SIGKILL after the grace."""
        for number, grace_s in ((signal.SIGTERM, STOP_GRACE_S), (signal.SIGKILL, STOP_GRACE_S)):
            told: set[int] = set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    while any(state.pid for state in states):
                        # Again each time: a fork may be confirmed only now.
                        for state in states:
                            if state.pid and state.pid not in told:
                                told.add(state.pid)
                                with contextlib.suppress(ProcessLookupError):
                                    os.kill(state.pid, number)
                        self._changed.clear()
                        if self._orphaned:
                            await self._look_for_ends(states)
                        else:
                            await self._changed.wait()
            if not any(state.pid for state in states):
                return

    async def _look_for_ends(self, states: list[RoleState]) -> None:
        """Do what the zygote did when it lived: notice who ended."""
        for state in states:
            if state.pid and _has_ended(state.pid):
                state.pid, state.ready = 0, False
        await asyncio.sleep(ORPHAN_POLL_S)

    async def _serve_status(self, call: Call) -> dict[str, Any]:
        return self.status()

    async def _serve_down(self, call: Call) -> None:
        self.stop()

    async def _serve_restart(self, call: Call) -> int:
        """Kill one role (SIGKILL) so that it is restarted; returns the killed pid."""
        name = call.param("role", str)
        if name not in self.roles:
            raise UsageError(f"no role {name!r} (there are: {', '.join(self.roles)})")
        pid = self.roles[name].pid
        if not pid:
            raise UsageError(f"{name} is not running")
        os.kill(pid, signal.SIGKILL)
        return pid

    def status(self) -> dict[str, Any]:
        """The shape ``podwire status -o json`` prints."""
        plan = self._plan

        def process(name: str) -> dict[str, Any]:
            state = self.roles[name]
            return {
                "pid": state.pid,
                "ready": state.ready,
                "restarts": state.restarts,
                "last_exit": state.last_exit,
            }

        etcd: dict[str, Any] = {"name": "etcd", "endpoints": list(plan.etcd_endpoints)}
        if plan.embedded_etcd:
            etcd |= {"ip": format_ip(plan.spec.etcd_ip), "underlay": plan.etcd_host}
            etcd |= process("etcd")
        etcd |= plan.spec.etcd_access.shown()
        return {
            "name": plan.spec.name,
            "up": self._up,
            "directory": str(plan.directory),
            "kubeconfig": str(plan.kubeconfig),
            "network": plan.spec.network.type,
            "pod_cidr": str(plan.spec.network.pod_cidr),
            "service_cidr": str(plan.spec.service_cidr),
            "supervisor": {"pid": os.getpid()},
            "etcd": etcd,
            "controlplane": {
                "name": "controlplane",
                "ip": format_ip(plan.spec.control_plane_ip),
                "underlay": plan.api_host,
                "server": plan.server,
                **process("controlplane"),
            },
            "nodes": [
                {
                    "name": node.spec.name,
                    "ip": format_ip(node.spec.ip),
                    "underlay": node.host,
                    "vxlan_port": node.vxlan_port,
                    "carrier_port": node.carrier_port,
                    "kubelet_port": node.kubelet_port,
                    "control": str(plan.socket(node.spec.name)),
                    **plan.speaker_of(node),
                    **process(node.spec.name),
                }
                for node in plan.nodes
            ],
        }


def how_ended(code: int) -> str:
    """An exit code of ``os.waitstatus_to_exitcode`` in words."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # most real-time signals have no name
        return f"killed by signal {-code}"


def _has_ended(pid: int) -> bool:
    """True if a process that is not our child has ended, waited for or not."""
    if sys.platform == "linux":
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        except OSError:
            pass  # an old kernel, or one that forbids it
        else:
            try:
                return bool(select.select([descriptor], [], [], 0)[0])
            finally:
                os.close(descriptor)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
