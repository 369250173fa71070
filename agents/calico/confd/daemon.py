"""confd as a daemon: follows the datastore and the services, keeps files and speaker current.

A change only marks the configuration stale; one task then makes the whole plan anew and hands the
speaker what it is to do.  The files, which are for reading, follow when changes pause.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from agents.bird.config import CALICO_TIMERS
from agents.calico.confd.plan import make_plan
from agents.calico.confd.render import render
from agents.calico.confd.services import read_services, wants_services
from agents.calico.confd.speaker import SpeakerConfigs
from agents.calico.confd.state import StateReader, confirmed_claims, owned_blocks
from agents.calico.datastore import Query
from agents.calico.errors import DatastoreError
from agents.calico.ipam.model import affinity_prefix, block_key
from agents.calico.mirror import Mirror
from agents.calico.pace import MAX_PAUSE_S, Pace
from agents.calico.resources import resource_prefix
from emulator.errors import PodwireError, UsageError
from emulator.kubeclient.informer import Informer, SharedInformers
from emulator.kubeclient.resource import ENDPOINTSLICES, SECRETS, SERVICES
from etcd.client import EtcdError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agents.bird.config import BfdOptions, SpeakerConfig, Timers
    from agents.calico.confd.peering import Secret
    from agents.calico.confd.plan import BgpPlan
    from agents.calico.confd.services import Service
    from agents.calico.confd.state import State
    from agents.calico.datastore import Datastore
    from agents.calico.ipam.model import Affinity
    from emulator.kubeclient.rest import RestClient
    from emulator.runtime.role import RoleEnv

CONFIG_DIR: Final = "etc/calico/confd/config"
# calico-node's namespace, where the Secrets of BGP passwords are.
NAMESPACE: Final = "kube-system"
# Files are written when nothing has changed for so long, at the latest after so long.
QUIET_S: Final = 0.3
MAX_UNWRITTEN_S: Final = 5.0
# How long a configuration waits for the first list of Secrets; then it does without.
SECRETS_WAIT_S: Final = 2.0
# Between two tries of what could not be done: a Secret that is not there yet, a full disk.
RETRY_S: Final = 2.0
# Sessions wait for a configuration: others do not go first for longer.
MAX_TURN_S: Final = 0.2
_KINDS: Final = ("Node", "BGPConfiguration", "BGPPeer", "BGPFilter", "IPPool")


@dataclass(frozen=True, slots=True)
class ConfdConfig:
    """``root`` is the node's ``/``; ``router_id`` is calico-node's CALICO_ROUTER_ID.

    ``bfd`` watches the peers; Calico's resources have no word for it.
    """

    node_name: str
    root: Path
    router_id: str = ""
    timers: Timers = CALICO_TIMERS
    recovery_wait_s: float = 240.0
    bfd: BfdOptions | None = None


async def run_confd(
    config: ConfdConfig,
    env: RoleEnv,
    datastore: Datastore,
    client: RestClient,
    on_config: Callable[[SpeakerConfig], None],
    mirror: Mirror | None = None,
) -> None:
    """Run until cancelled; ready with the first configuration.

    ``client`` is for Secrets and Services, which are read only where the configuration needs them;
    ``on_config`` is called with every new configuration.  ``mirror`` is one that somebody else runs
    and that covers ``prefixes_of`` the node.
    """
    await _Confd(config, env, datastore, client, on_config, mirror).run()


def prefixes_of(node_name: str) -> tuple[str, ...]:
    """What of the datastore decides a node's configuration."""
    return *(resource_prefix(kind) for kind in _KINDS), affinity_prefix(node_name, 4)


class _Confd:
    def __init__(
        self,
        config: ConfdConfig,
        env: RoleEnv,
        datastore: Datastore,
        client: RestClient,
        on_config: Callable[[SpeakerConfig], None],
        mirror: Mirror | None,
    ) -> None:
        self._config = config
        self._env = env
        self._client = client
        self._on_config = on_config
        self._informers: SharedInformers | None = None
        self._secrets: Informer | None = None
        self._stale = asyncio.Event()
        self._pace = Pace(env.clock.monotonic, max_turn_s=MAX_TURN_S)
        self._datastore = datastore
        self._claims = affinity_prefix(config.node_name, 4)
        prefixes = prefixes_of(config.node_name)
        self._runs_mirror = mirror is None
        self._mirror = mirror or Mirror(datastore, prefixes, None, env.log)
        self._mirror.subscribe(prefixes, self._note)
        self._configs = SpeakerConfigs(config.timers, config.recovery_wait_s)
        self._reader = StateReader()
        self._told: SpeakerConfig | None = None
        self._nodes = 1
        # What the files do not say yet, and since when.
        self._unwritten: BgpPlan | None = None
        self._unwritten_since = 0.0
        self._problems: tuple[str, ...] = ()
        self._complaint = ""
        self._passwords: dict[Secret, str] = {}
        self._retry = False
        # This node's claims that may be announced, by key.
        self._confirmed: dict[str, Affinity] = {}
        # Those whose block was seen to be ours.
        self._borne_out: dict[str, Affinity] = {}

    def _note(self, keys: tuple[str, ...]) -> None:
        """Few changes of the datastore mean anything to BGP: a node's address, not its tunnel's."""
        news = self._reader.note(self._mirror.items, keys)
        if self._note_claims(keys) or news:
            self._stale.set()

    def _note_claims(self, keys: tuple[str, ...]) -> bool:
        """Take in this node's claims; True if one that may be announced came, changed or went."""
        items, news = self._mirror.items, False
        for key in keys:
            if not key.startswith(self._claims):
                continue
            kvp = items.get(key)
            claims = () if kvp is None else confirmed_claims((kvp,))
            if claims:
                self._confirmed[key] = claims[0]
            elif self._confirmed.pop(key, None) is None:
                continue
            news = True
        return news

    def _changed(self, event: object, old: object, new: object) -> None:
        self._stale.set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            if self._runs_mirror:
                group.create_task(self._mirror.run(), name="confd.mirror")
            await self._mirror.synced.wait()
            while True:
                self._stale.clear()
                began = self._env.clock.monotonic()
                await self._update(group)
                took = self._env.clock.monotonic() - began
                ended = self._env.clock.monotonic()
                await self._idle()
                if self._stale.is_set():
                    # What comes after a pause is followed as soon as its burst is over.
                    paused = self._env.clock.monotonic() - ended >= MAX_PAUSE_S
                    await self._pace.rest(0.0 if paused else took, self._stale, self._nodes)

    async def _idle(self) -> None:
        """Until something changed or is to be tried again."""
        if self._unwritten is not None:
            await self._changes_within(QUIET_S)
            waited = self._env.clock.monotonic() - self._unwritten_since
            if not self._stale.is_set() or waited >= MAX_UNWRITTEN_S:
                self._write_files()
        await self._changes_within(RETRY_S if self._retry else None)

    async def _changes_within(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stale.wait()

    def _write_files(self) -> None:
        """Bring the files to what the speaker was told; what fails is tried again."""
        assert self._unwritten is not None
        try:
            self._write(self._unwritten)
        except (PodwireError, OSError) as error:
            self._retry = True
            if str(error) != self._complaint:
                self._complaint = str(error)
                self._env.log.warning("%s", error)
        else:
            self._unwritten, self._complaint = None, ""

    async def _update(self, group: asyncio.TaskGroup) -> None:
        """Make the plan and carry it out; what fails is tried again."""
        self._retry = False
        try:
            state = await self._read()
        except (DatastoreError, EtcdError) as error:
            self._retry = True
            self._tell((str(error),))
            return
        self._nodes = len(state.nodes)
        if self._informers is None and wants_services(state.config):
            await self._follow_services(group)
        plan = self._plan(state)
        if plan is None:
            return
        problems = list(plan.problems)
        await self._read_passwords(group, plan, problems)
        try:
            speaker = self._configs.make(plan, self._passwords)
        except PodwireError as error:
            self._retry = True
            self._tell((*problems, str(error)))
            return
        self._tell((*problems, *self._configs.problems))
        if speaker != self._told:
            first = self._told is None
            self._told = speaker
            if self._unwritten is None:
                self._unwritten_since = self._env.clock.monotonic()
            # BIRD would refuse what was left out, and speak without the password it waits for.
            spoken = {bgp.name for bgp in speaker.bgp if not bgp.disabled}
            peers = tuple(peer for peer in plan.peers if peer.name in spoken)
            self._unwritten = replace(plan, peers=peers)
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

    async def _read(self) -> State:
        """What is known now; whether a claimed block is really ours, the block says."""
        claims = dict(self._confirmed)
        borne_out = {
            key: claim for key, claim in claims.items() if self._borne_out.get(key) is claim
        }
        unseen = [claim for key, claim in claims.items() if key not in borne_out]
        if unseen:
            queries = (Query(block_key(claim.cidr)) for claim in unseen)
            found = await self._datastore.read(*queries)
            blocks = {
                claim.cidr: kvps[0].value
                for claim, kvps in zip(unseen, found.results, strict=True)
                if kvps
            }
            ours = owned_blocks(unseen, blocks).get(self._config.node_name, ())
            borne_out |= {key: claim for key, claim in claims.items() if claim.cidr in ours}
        self._borne_out = borne_out
        self._retry = self._retry or len(borne_out) < len(claims)
        own = tuple(claim.cidr for claim in borne_out.values())
        blocks_of = {self._config.node_name: tuple(sorted(own))} if own else {}
        return self._reader.read(blocks_of)

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
                state,
                self._config.node_name,
                services,
                router_id=self._config.router_id,
                bfd=self._config.bfd,
            )
        except UsageError as error:
            self._tell((str(error),))
            return None

    async def _follow_secrets(self, group: asyncio.TaskGroup) -> Informer:
        """Watch Secrets from now on: few clusters have passwords."""
        secrets = self._secrets = Informer(
            self._client, SECRETS, namespace=NAMESPACE, log=self._env.log
        )
        secrets.add_handler(self._changed)
        group.create_task(secrets.run(), name="confd.secrets")
        return secrets

    async def _read_passwords(
        self, group: asyncio.TaskGroup, plan: BgpPlan, problems: list[str]
    ) -> None:
        wanted = dict.fromkeys(peer.password for peer in plan.peers if peer.password is not None)
        if not wanted:
            self._passwords = {}
            return
        secrets = self._secrets or await self._follow_secrets(group)
        try:
            async with asyncio.timeout(SECRETS_WAIT_S):
                await secrets.synced.wait()
        except TimeoutError:
            # What was known goes on; a change of the informer wakes us.
            problems.append(f"Secrets of {NAMESPACE} cannot be read yet")
            self._retry = True
            return
        found: dict[Secret, str] = {}
        for secret in wanted:
            obj = secrets.lister.get(NAMESPACE, secret.name)
            if obj is None:
                problems.append(f"password of a BGP peer: no Secret {NAMESPACE}/{secret.name}")
                continue
            try:
                data = (obj.get("data") or {})[secret.key]
                found[secret] = base64.b64decode(data, validate=True).decode()
            except KeyError:
                problems.append(f"Secret {NAMESPACE}/{secret.name} has no key {secret.key}")
            except (binascii.Error, UnicodeDecodeError):
                problems.append(f"Secret {NAMESPACE}/{secret.name}: {secret.key} is no text")
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
