"""The event loop of a simulated world: a virtual clock and nothing that would block.

Mechanism, with asyncio's public interface only: the selector's ``select(timeout)`` never blocks but
moves the clock by ``timeout``; ``select(None)`` means that nothing can ever happen again, which is
``Stalled``.  Three sources of disorder in asyncio are closed:

- timers of equal deadline leave asyncio's heap in any order, so ``call_at`` moves repeats apart by
  the smallest float there is, in the order they were set;
- ``TaskGroup`` and ``asyncio.wait`` keep tasks in sets, so tasks hash by their number;
- task names count per process, so they are given per loop.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import selectors
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from emulator.errors import PodwireError
from emulator.sim.host import current_host

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Mapping
    from contextvars import Context

    from emulator.sim.fabric import Fabric
    from emulator.sim.host import SimHost

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Deadlines remembered to keep equal ones apart; past ones are dropped when there are so many.
MAX_DEADLINES = 4096


class StalledError(PodwireError):
    """Everybody waits and no timer is set: the text says where each task waits."""


class NotSimulatedError(PodwireError):
    """The simulated program asked for something of the real machine."""


class _VirtualSelector(selectors.BaseSelector):
    """Never blocks; ``now`` is the world's time in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.on_stall: Callable[[], NoReturn] | None = None
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = selectors.SelectorKey(fileobj, number, events, data)
        self._keys[number] = key
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return self._keys.pop(number)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            assert self.on_stall is not None
            self.on_stall()
        if timeout > 0:
            self.now += timeout
        return []


class SimTask(asyncio.Task[T]):
    """A task that hashes by its number in its loop."""

    _number: int

    def __new__(
        cls, coro: Coroutine[Any, Any, T], *, loop: SimLoop, **_: Any
    ) -> SimTask[T]:  # asyncio's constructor already hashes the task
        task = super().__new__(cls)
        task._number = loop.next_task_number()
        return task

    def __hash__(self) -> int:
        return self._number


def _refused(what: str) -> Any:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise NotSimulatedError(f"{what} does not exist in a simulated world")

    return refuse


class SimLoop(asyncio.SelectorEventLoop):
    """Runs a simulated world; ``fabric`` is its network, set by the world."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)
        self._virtual.on_stall = self._stall
        self._tasks_made = 0
        self._next_deadline: dict[float, float] = {}
        self.set_task_factory(_make_task)
        self.fabric: Fabric | None = None

    # Time

    def time(self) -> float:
        """Seconds since the world began."""
        return self._virtual.now

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Call at a time; equal times in the order of the calls."""
        return super().call_at(self._apart(when), callback, *args, context=context)

    def _apart(self, when: float) -> float:
        following = self._next_deadline
        if len(following) > MAX_DEADLINES:
            now = self.time()
            kept = {deadline: after for deadline, after in following.items() if deadline >= now}
            self._next_deadline = following = kept
        free = when
        while free in following:
            free = following[free]
        after = math.nextafter(free, math.inf)
        following[free] = after
        # The next caller with this deadline need not walk the chain again.
        following[when] = after
        return free

    # Tasks

    def next_task_number(self) -> int:
        """Number the tasks of this loop from 1."""
        self._tasks_made += 1
        return self._tasks_made

    def _stall(self) -> NoReturn:
        lines = [
            f"  {task.get_name()}: {_where(task)}"
            for task in sorted(asyncio.all_tasks(self), key=hash)
        ]
        raise StalledError(
            f"at {self.time():.6f} s nothing can happen any more; waiting tasks:\n"
            + "\n".join(lines or ["  none"])
        )

    # The network

    @property
    def network(self) -> Fabric:
        """The fabric; an error if this loop has none."""
        if self.fabric is None:
            raise NotSimulatedError("this loop has no fabric: use emulator.sim.world.simulate")
        return self.fabric

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        """Connect through the fabric; TLS and ready-made sockets do not exist in it."""
        if options.get("ssl") or host is None or port is None:
            raise NotSimulatedError("a simulated connection has a host, a port and no TLS")
        return await self.network.connect(protocol_factory, str(host), int(port))

    async def create_server(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        """Listen in the fabric on addresses of the current host."""
        if options.get("ssl") or options.get("sock") is not None:
            raise NotSimulatedError("a simulated server has no TLS and no ready-made socket")
        hosts = [host] if host is None or isinstance(host, str) else list(host)
        return self.network.listen(protocol_factory, hosts, int(port or 0))

    async def create_datagram_endpoint(
        self, protocol_factory: Any, local_addr: Any = None, remote_addr: Any = None, **_: Any
    ) -> Any:
        """Open a UDP socket in the fabric."""
        return self.network.open_datagram(protocol_factory, local_addr, remote_addr)

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> Any:
        """Literals and names of simulated hosts."""
        return [(2, 1, 6, "", (self.network.resolve(str(host)), int(port or 0)))]

    # What the real machine would have to do

    run_in_executor: Any = _refused("run_in_executor (a thread)")
    add_reader: Any = _refused("add_reader (a real file descriptor)")
    add_writer: Any = _refused("add_writer (a real file descriptor)")
    add_signal_handler: Any = _refused("add_signal_handler (a real signal)")
    subprocess_exec: Any = _refused("subprocess_exec (a process)")
    subprocess_shell: Any = _refused("subprocess_shell (a process)")
    connect_read_pipe: Any = _refused("connect_read_pipe (a pipe)")
    connect_write_pipe: Any = _refused("connect_write_pipe (a pipe)")
    create_unix_connection: Any = _refused("create_unix_connection (a unix socket)")
    create_unix_server: Any = _refused("create_unix_server (a unix socket)")
    sock_connect: Any = _refused("sock_connect (a real socket)")
    sock_accept: Any = _refused("sock_accept (a real socket)")
    sock_recv: Any = _refused("sock_recv (a real socket)")
    sock_recv_into: Any = _refused("sock_recv_into (a real socket)")
    sock_recvfrom: Any = _refused("sock_recvfrom (a real socket)")
    sock_sendall: Any = _refused("sock_sendall (a real socket)")
    sock_sendto: Any = _refused("sock_sendto (a real socket)")


def _make_task(
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
    **options: Any,
) -> SimTask[T]:
    assert isinstance(loop, SimLoop)
    task: SimTask[T] = SimTask(coro, loop=loop, **options)  # type: ignore[arg-type]
    if options.get("name") is None:
        task.set_name(f"task-{hash(task)}")
    context: Context | None = options.get("context")
    host: SimHost | None = context.get(current_host) if context is not None else current_host.get()
    if host is not None:
        host.adopt(task)
    return task


def _where(task: asyncio.Task[Any]) -> str:
    """The innermost coroutine a task waits in."""
    coro: Any = task.get_coro()
    while inspect.iscoroutine(getattr(coro, "cr_await", None)):
        coro = coro.cr_await
    frame = getattr(coro, "cr_frame", None)
    if frame is None:
        return "in no frame"
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
