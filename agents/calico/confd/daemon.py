"""confd as a daemon: follows the datastore and the services, keeps files and speaker current.

A change only marks the configuration stale; one task then makes the whole plan anew, writes the
files that differ and hands the speaker what it is to do.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agents.bird.config import CALICO_TIMERS
from agents.calico.confd.plan import make_plan
from agents.calico.confd.render import render
from agents.calico.confd.services import read_services, wants_services
from agents.calico.confd.speaker import speaker_config
from agents.calico.confd.state import read_state
from agents.calico.ipam.model import BLOCK_PREFIX, HOST_PREFIX
from agents.calico.mirror import Mirror
from agents.calico.resources import resource_prefix
from emulator.errors import PodwireError, UsageError
from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.informer import SharedInformers
from emulator.kubeclient.resource import ENDPOINTSLICES, SECRETS, SERVICES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agents.bird.config import SpeakerConfig, Timers
    from agents.calico.confd.peering import Secret
    from agents.calico.confd.plan import BgpPlan
    from agents.calico.confd.services import Service
    from agents.calico.confd.state import State
    from agents.calico.datastore import Datastore
    from emulator.kubeclient.rest import RestClient
    from emulator.runtime.role import RoleEnv

CONFIG_DIR: Final = "etc/calico/confd/config"
# calico-node's namespace, where the Secrets of BGP passwords are.
NAMESPACE: Final = "kube-system"
# Changes come in bursts (a node joins: its resource, its claim, its block); one plan serves all.
SETTLE_S: Final = 0.01
# Between two tries of what could not be done: a Secret that is not there yet, a full disk.
RETRY_S: Final = 2.0
_KINDS: Final = ("Node", "BGPConfiguration", "BGPPeer", "BGPFilter", "IPPool")


@dataclass(frozen=True, slots=True)
class ConfdConfig:
    """``root`` is the node's ``/``; ``router_id`` is calico-node's CALICO_ROUTER_ID."""

    node_name: str
    root: Path
    router_id: str = ""
    timers: Timers = CALICO_TIMERS
    recovery_wait_s: float = 240.0


async def run_confd(
    config: ConfdConfig,
    env: RoleEnv,
    datastore: Datastore,
    client: RestClient,
    on_config: Callable[[SpeakerConfig], None],
) -> None:
    """Run until cancelled; ready with the first configuration.

    ``client`` is for Secrets and Services, which are read only where the configuration needs them;
    ``on_config`` is called with every new configuration.
    """
    await _Confd(config, env, datastore, client, on_config).run()


class _Confd:
    def __init__(
        self,
        config: ConfdConfig,
        env: RoleEnv,
        datastore: Datastore,
        client: RestClient,
        on_config: Callable[[SpeakerConfig], None],
    ) -> None:
        self._config = config
        self._env = env
        self._client = client
        self._on_config = on_config
        self._informers: SharedInformers | None = None
        self._stale = asyncio.Event()
        prefixes = [resource_prefix(kind) for kind in _KINDS]
        self._mirror = Mirror(
            datastore, [*prefixes, BLOCK_PREFIX, HOST_PREFIX], self._changed, env.log
        )
        self._told: SpeakerConfig | None = None
        self._problems: tuple[str, ...] = ()
        self._passwords: dict[Secret, str] = {}
        self._retry = False

    def _changed(self, _: object = None, old: object = None, new: object = None) -> None:
        self._stale.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._mirror.run(), name="confd.mirror")
            await self._mirror.synced.wait()
            while True:
                self._stale.clear()
                await self._update(group)
                try:
                    async with asyncio.timeout(RETRY_S if self._retry else None):
                        await self._stale.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(SETTLE_S)

    async def _update(self, group: asyncio.TaskGroup) -> None:
        """Make the plan and carry it out; what fails is tried again."""
        self._retry = False
        state = read_state(self._mirror.items.values())
        if self._informers is None and wants_services(state.config):
            await self._follow_services(group)
        plan = self._plan(state)
        if plan is None:
            return
        problems = list(plan.problems)
        await self._read_passwords(plan, problems)
        try:
            speaker = speaker_config(
                plan,
                passwords=self._passwords,
                timers=self._config.timers,
                recovery_wait_s=self._config.recovery_wait_s,
            )
            self._write(plan)
        except (PodwireError, OSError) as error:
            self._retry = True
            self._tell((*problems, str(error)))
            return
        self._tell(tuple(problems))
        if speaker != self._told:
            first = self._told is None
            self._told = speaker
            self._on_config(speaker)
            if first:
                self._env.ready(f"confd configures {len(speaker.bgp)} BGP sessions")

    async def _follow_services(self, group: asyncio.TaskGroup) -> None:
        """Watch Services from now on: few clusters announce any."""
        informers = self._informers = SharedInformers(self._client, self._env.log)
        for resource in (SERVICES, ENDPOINTSLICES):
            informers.informer(resource).add_handler(self._changed)
        group.create_task(informers.run(), name="confd.informers")
        await informers.wait_synced()

    def _services(self) -> tuple[Service, ...]:
        informers = self._informers
        if informers is None:
            return ()
        services, slices = (
            informers.informer(resource).lister.list() for resource in (SERVICES, ENDPOINTSLICES)
        )
        return read_services(services, slices)

    def _plan(self, state: State) -> BgpPlan | None:
        services = self._services()
        try:
            return make_plan(
                state, self._config.node_name, services, router_id=self._config.router_id
            )
        except UsageError as error:
            self._tell((str(error),))
            return None

    async def _read_passwords(self, plan: BgpPlan, problems: list[str]) -> None:
        wanted = dict.fromkeys(peer.password for peer in plan.peers if peer.password is not None)
        found: dict[Secret, str] = {}
        for secret in wanted:
            try:
                obj = await self._client.get(SECRETS, NAMESPACE, secret.name)
                data = (obj.get("data") or {})[secret.key]
                found[secret] = base64.b64decode(data, validate=True).decode()
            except KeyError:
                problems.append(f"Secret {NAMESPACE}/{secret.name} has no key {secret.key}")
            except (ApiError, ApiUnreachableError) as error:
                problems.append(f"password of a BGP peer: {error}")
            except (binascii.Error, UnicodeDecodeError):
                problems.append(f"Secret {NAMESPACE}/{secret.name}: {secret.key} is no text")
        self._retry = self._retry or len(found) < len(wanted)
        self._passwords = found

    def _write(self, plan: BgpPlan) -> None:
        """Write the files that differ, each whole or not at all."""
        directory = self._config.root / CONFIG_DIR
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in render(plan, self._passwords).items():
            path = directory / name
            if path.exists() and path.read_text() == text:
                continue
            temporary = path.with_name(f".{name}.tmp")
            temporary.write_text(text)
            temporary.chmod(0o600)
            temporary.replace(path)

    def _tell(self, problems: tuple[str, ...]) -> None:
        """Say what is wrong, once for as long as it is."""
        for problem in problems:
            if problem not in self._problems:
                self._env.log.warning("%s", problem)
        self._problems = problems
