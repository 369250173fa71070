"""felix: the datastore in front, one reconcile behind; shell.

Changes of the datastore only say that something changed.  One task then reads everything known
into a state, computes what the kernel must hold and applies what differs; changes that come while
it works or rests are one call.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agents.calico.felix.apply import Dataplane
from agents.calico.felix.compute import compute
from agents.calico.felix.model import Host, State
from agents.calico.felix.reading import BLOCKS, PREFIXES, StateReader
from agents.calico.mirror import Mirror
from agents.calico.pace import Pace
from emulator.errors import PodwireError

if TYPE_CHECKING:
    from agents.calico.datastore import Datastore
    from emulator.netstack.kernel import Kernel
    from emulator.netstack.netns import NetNs
    from emulator.runtime.role import RoleEnv

# A device that was not there may come with the next moment.
RETRY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class FelixConfig:
    """What one felix needs; times in seconds.

    ``vxlan_source_ports`` are the ports VXLAN really leaves from.  ``min_sync_s`` is the least rest
    after a sync; ``resync_s`` looks for what others changed (IptablesRefreshInterval: 90).
    """

    node_name: str
    nic: str = "eth0"
    vxlan_source_ports: tuple[int, int] = (0, 0)
    min_sync_s: float = 0.02
    resync_s: float = 30.0


async def run_felix(
    config: FelixConfig,
    env: RoleEnv,
    kernel: Kernel,
    datastore: Datastore,
    mirror: Mirror | None = None,
) -> None:
    """Serve until cancelled; ready when the kernel is programmed for the first time.

    ``mirror`` is one that somebody else runs and that covers ``reading.PREFIXES``.
    """
    await _Felix(config, env, kernel.root, datastore, mirror).run()


class _Felix:
    def __init__(
        self,
        config: FelixConfig,
        env: RoleEnv,
        ns: NetNs,
        datastore: Datastore,
        mirror: Mirror | None,
    ) -> None:
        self._config = config
        self._env = env
        self._ns = ns
        self._dirty = asyncio.Event()
        self._pace = Pace(env.clock.monotonic, config.min_sync_s)
        self._runs_mirror = mirror is None
        self._mirror = mirror or Mirror(datastore, PREFIXES, None, env.log)
        self._mirror.subscribe(PREFIXES, self._note)
        # Followed from the moment VXLAN is in use; elsewhere BGP carries the blocks' routes.
        self._blocks = Mirror(datastore, (BLOCKS,), self._note_blocks, env.log)
        self._follows_blocks = False
        self._dataplane = Dataplane(ns, vxlan_source_ports=config.vxlan_source_ports)
        self._reader = StateReader(config.node_name)
        self._refused: tuple[str, ...] = ()
        self._complaint = ""
        self._nodes = 1
        # What the kernel was last brought to, completely.
        self._applied: State | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            if self._runs_mirror:
                group.create_task(self._mirror.run(), name="felix.datastore")
            group.create_task(self._sync_for_ever(group), name="felix.sync")

    def _note(self, keys: tuple[str, ...]) -> None:
        if self._reader.note(self._mirror.items, keys) or self._applied is None:
            self._dirty.set()

    def _note_blocks(self, keys: tuple[str, ...]) -> None:
        if self._applied is None or self._applied.vxlan_enabled:
            self._dirty.set()

    async def _sync_for_ever(self, group: asyncio.TaskGroup) -> None:
        await self._mirror.synced.wait()
        first, anew = True, True
        while True:
            self._dirty.clear()
            began = self._env.clock.monotonic()
            complete = False
            state = self._read()
            if state.vxlan_enabled and not self._follows_blocks:
                self._follows_blocks = True
                group.create_task(self._blocks.run(), name="felix.blocks")
                await self._blocks.synced.wait()
                state = self._read()
            try:
                complete = self._sync(state, anew=anew)
            except PodwireError as error:
                self._complain(str(error))
            else:
                if first:
                    first = False
                    self._env.ready(f"felix programs {self._config.node_name}")
            took = self._env.clock.monotonic() - began
            await self._pace.rest(took, self._dirty, self._nodes)
            try:
                async with asyncio.timeout(self._config.resync_s if complete else RETRY_S):
                    await self._dirty.wait()
                    anew = False
            except TimeoutError:
                anew = True

    def _read(self) -> State:
        return self._reader.read(self._blocks.items, self._host()).relevant()

    def _sync(self, state: State, *, anew: bool) -> bool:
        """Apply a state; unless ``anew`` only if it is not what was applied last."""
        self._say(state)
        self._nodes = len(state.nodes)
        if not anew and state == self._applied:
            return True
        self._applied = None
        known = self._dataplane.refused
        complete = self._dataplane.apply(compute(state), insert=state.settings.insert, anew=anew)
        for text in self._dataplane.refused:
            if text not in known:
                self._env.log.error("felix: the dataplane refused: %s", text)
        self._complaint = ""
        if self._host() != state.host:
            # A tunnel's address is one of the host's.
            self._dirty.set()
        if complete:
            self._applied = state
        return complete

    def _host(self) -> Host:
        ns = self._ns
        nic = ns.devices.get(self._config.nic)
        addresses = tuple(sorted({each.ip for each in ns.addrs()}))
        return Host(self._config.nic, nic.mtu if nic is not None else 1500, addresses)

    def _complain(self, text: str) -> None:
        """The same refusal again is no news."""
        level = logging.DEBUG if text == self._complaint else logging.ERROR
        self._complaint = text
        self._env.log.log(level, "felix: the dataplane refused: %s", text)

    def _say(self, state: State) -> None:
        """What is asked for in vain is said once."""
        for text in state.refused:
            if text not in self._refused:
                self._env.log.warning("felix: %s", text)
        self._refused = state.refused
