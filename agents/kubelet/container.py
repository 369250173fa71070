"""One running container: its program, its streams, its exec."""

from __future__ import annotations

import asyncio
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agents.kubelet.texts import start_failed
from emulator.errors import PodwireError
from emulator.shell.context import ShellContext
from emulator.shell.registry import base_name, has_command, run_command
from emulator.workloads.context import ContainerContext

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agents.kubelet.logs import ContainerLog
    from agents.kubelet.sandbox import Sandbox
    from agents.kubelet.spec import ContainerSpec
    from emulator.netstack.kernel import Kernel
    from emulator.runtime.role import RoleEnv
    from emulator.shell.files import MemoryFiles
    from emulator.workloads.context import ByteSink, Program
    from emulator.workloads.registry import Image

# Bytes of output an attached client may lag behind before the rest is dropped for it.
ATTACH_BUFFER_CHUNKS = 1024
EXIT_CRASH = 1


class ContainerStartError(PodwireError):
    """The image does not hold the program: StartError, exit code 128."""


class Broadcast:
    """A sink that writes to the log and to everybody attached."""

    def __init__(self, log: ByteSink) -> None:
        self._log = log
        self._listeners: dict[asyncio.Queue[bytes | None], None] = {}

    def write(self, data: bytes) -> None:
        """Pass the bytes on; a listener that lags too far misses them."""
        self._log.write(data)
        for queue in self._listeners:
            if not queue.full():
                queue.put_nowait(data)

    async def drain(self) -> None:
        """As the log's."""
        await self._log.drain()

    def attach(self) -> asyncio.Queue[bytes | None]:
        """A queue of what is written from now on; None at the end."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(ATTACH_BUFFER_CHUNKS)
        self._listeners[queue] = None
        return queue

    def detach(self, queue: asyncio.Queue[bytes | None]) -> None:
        """Forget a queue."""
        self._listeners.pop(queue, None)

    def close(self) -> None:
        """Tell every listener that nothing more comes."""
        for queue in list(self._listeners):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)
        self._listeners.clear()


@dataclass(slots=True)
class Container:
    """What ``run`` needs, fixed before the start; made anew for every restart."""

    spec: ContainerSpec
    container_id: str
    image: Image
    argv: tuple[str, ...]
    env: dict[str, str]
    files: MemoryFiles
    sandbox: Sandbox
    log: ContainerLog
    kernel: Kernel
    role: RoleEnv
    era: str
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    stdout: Broadcast = field(init=False)
    stderr: Broadcast = field(init=False)
    stdin: asyncio.StreamReader | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.stdout = Broadcast(self.log.sink("stdout"))
        self.stderr = Broadcast(self.log.sink("stderr"))
        if self.spec.stdin:
            self.stdin = asyncio.StreamReader()

    def program(self) -> Program | None:
        """The native program of the command line; None when it is a command of the shell.

        Raises ContainerStartError for a word the image does not hold.
        """
        word = self.argv[0] if self.argv else ""
        name = base_name(word)
        native = self.image.definition.programs.get(name)
        if native is not None:
            return native
        if not self.image.definition.style or not has_command(name):
            raise ContainerStartError(start_failed(word))
        return None

    async def run(self) -> int:
        """Run to the end and return the exit code; cancelling is SIGKILL."""
        native = self.program()
        try:
            if native is not None:
                return await native(self._context())
            context = self.shell_context(
                self.stdin, self.stdout, self.stderr, asyncio.Event(), tty=self.spec.tty
            )
            return await run_command(context, self.argv)
        # A program is foreign code to the kubelet: its bug ends its own container only.
        except Exception:
            self.stderr.write(traceback.format_exc().encode())
            return EXIT_CRASH
        finally:
            self.stdout.close()
            self.stderr.close()
            self.log.close()

    def _context(self) -> ContainerContext:
        return ContainerContext(
            argv=self.argv,
            env=self.env,
            hostname=self.sandbox.hostname,
            addresses=self.sandbox.addresses(),
            network=self.sandbox.network,
            files=self.files,
            stdout=self.stdout,
            stderr=self.stderr,
            stdin=self.stdin,
            stop=self.stop,
            clock=self.role.clock,
            rng=self.role.rng,
            run=self.execute,
        )

    def shell_context(
        self,
        stdin: asyncio.StreamReader | None,
        stdout: ByteSink,
        stderr: ByteSink,
        interrupt: asyncio.Event,
        *,
        tty: bool = False,
    ) -> ShellContext:
        """A place to run commands in this container."""
        return ShellContext(
            kernel=self.kernel,
            ns=self.sandbox.ns,
            network=self.sandbox.network,
            files=self.files,
            hostname=self.sandbox.hostname,
            env=dict(self.env),
            stdout=stdout,
            stderr=stderr,
            clock=self.role.clock,
            rng=self.role.rng,
            stdin=stdin,
            style=self.image.definition.style,
            era=self.era,
            interrupt=interrupt,
            tty=tty,
            cwd=self.spec.working_dir or self.image.definition.working_dir,
        )

    def can_execute(self, word: str) -> bool:
        """True if the image holds this command."""
        return bool(self.image.definition.style) and has_command(word)

    async def execute(
        self,
        argv: Sequence[str],
        *,
        stdin: asyncio.StreamReader | None,
        stdout: ByteSink,
        stderr: ByteSink,
        interrupt: asyncio.Event,
        tty: bool = False,
    ) -> int:
        """Run one command beside the program; its exit code."""
        context = self.shell_context(stdin, stdout, stderr, interrupt, tty=tty)
        try:
            return await run_command(context, argv)
        # As in ``run``: a command's bug is no business of the pod's worker or of an exec's stream.
        except Exception:
            stderr.write(traceback.format_exc().encode())
            return EXIT_CRASH
