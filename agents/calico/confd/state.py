"""What confd knows of the cluster, read from stored resources (pure).

Broken resources are left out with a reason in ``problems``: one bad object must not stop the rest.
Source: projectcalico/calico confd/pkg/backends/calico/client.go and
libcalico-go/lib/backend/syncersv1/bgpsyncer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agents.calico.ipam.model import CONFIRMED, Affinity
from agents.calico.net import Cidr, Ip
from agents.calico.resources import key_of_resource, labels_of, name_of, parse_key, spec_of
from agents.calico.validation import checked
from agents.calico.validation_fields import parse_as
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agents.calico.datastore import KVPair
    from agents.calico.resources import Resource

DEFAULT_AS: Final = 64512
DEFAULT_PORT: Final = 179
_name_of: Final = attrgetter("name")
_KINDS: Final = ("Node", "BGPConfiguration", "BGPPeer", "BGPFilter", "IPPool")


@dataclass(frozen=True, slots=True)
class BgpNode:
    """A node that speaks BGP; ``cluster_id`` "" means it is no route reflector."""

    name: str
    ip: int
    network: Cidr
    as_number: int | None = None
    cluster_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BgpPool:
    """An IP pool as far as routes depend on it; modes are Always, CrossSubnet, Never."""

    cidr: Cidr
    ipip_mode: str
    vxlan_mode: str
    disable_export: bool


@dataclass(frozen=True, slots=True)
class State:
    """Everything ``make_plan`` decides from; lists are sorted by name or network."""

    nodes: tuple[BgpNode, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    node_configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    peers: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    filters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pools: tuple[BgpPool, ...] = ()
    # Blocks by the host that owns them: confirmed claims that the block itself bears out.
    blocks: Mapping[str, tuple[Cidr, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def as_number(self) -> int:
        """The AS of nodes that have none of their own."""
        return parse_as(self.config.get("asNumber")) or DEFAULT_AS

    def port_of(self, node: BgpNode) -> int | None:
        """The port a node listens at, its own before everybody's; None for BGP's own."""
        own = self.node_configs.get(node.name, {})
        port = int(own.get("listenPort") or self.config.get("listenPort") or DEFAULT_PORT)
        return None if port == DEFAULT_PORT else port

    @property
    def mesh_enabled(self) -> bool:
        """Whether nodes peer with each other by themselves."""
        return self.config.get("nodeToNodeMeshEnabled") is not False

    def node(self, name: str) -> BgpNode | None:
        """The node of that name, if it speaks BGP."""
        return next((node for node in self.nodes if node.name == name), None)

    def as_of(self, node: BgpNode) -> int:
        """The AS a node is in."""
        return self.as_number if node.as_number is None else node.as_number


class _Known(NamedTuple):
    """What counts of one resource, or what is wrong with it."""

    kind: str
    name: str
    record: Any
    problem: str


_NOTHING: Final = _Known("", "", None, "")


def read_state(items: Iterable[KVPair], owned: Mapping[str, tuple[Cidr, ...]]) -> State:
    """Sort what the datastore holds; ``owned`` are the blocks of hosts (``owned_blocks``)."""
    found = {kvp.key: kvp for kvp in items}
    reader = StateReader()
    reader.note(found, found)
    return reader.read(owned)


class StateReader:
    """Reads a mirror's items again and again: only what changed is looked at."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def note(self, items: Mapping[str, KVPair], changed: Iterable[str]) -> bool:
        """Take in keys that changed; True if what they say of BGP is news."""
        news = False
        for key in changed:
            kvp = items.get(key)
            now = _NOTHING if kvp is None else _read_one(kvp)
            if now == self._known.get(key, _NOTHING):
                continue
            news = True
            if now == _NOTHING:
                del self._known[key]
            else:
                self._known[key] = now
        return news

    def read(self, owned: Mapping[str, tuple[Cidr, ...]]) -> State:
        """What was noted as a State; ``owned`` are the blocks of hosts."""
        of: dict[str, dict[str, Any]] = {kind: {} for kind in _KINDS}
        for each in self._known.values():
            if each.record is not None:
                of[each.kind][each.name] = each.record
        configs = of["BGPConfiguration"]
        return State(
            nodes=tuple(sorted(of["Node"].values(), key=_name_of)),
            config=configs.get("default", {}),
            node_configs={
                name.removeprefix("node."): spec
                for name, spec in configs.items()
                if name.startswith("node.")
            },
            peers=tuple(sorted(of["BGPPeer"].items(), key=lambda item: item[0])),
            filters=of["BGPFilter"],
            pools=tuple(sorted(of["IPPool"].values(), key=lambda pool: pool.cidr)),
            blocks=owned,
            problems=tuple(each.problem for each in self._known.values() if each.problem),
        )


def _read_one(kvp: KVPair) -> _Known:
    """One item; what nobody understands is a problem of its own, not of the rest."""
    identity = parse_key(kvp.key)
    if identity is None or identity.kind not in _KINDS:
        return _NOTHING
    record: Any = None
    problem = ""
    try:
        if key_of_resource(kvp.value) != kvp.key:
            raise UsageError("it says it is another resource")
        resource = checked(kvp.value)
        match identity.kind:
            case "Node":
                record = _node(resource)
            case "IPPool":
                record = _pool(resource)
            case _:
                record = spec_of(resource)
    except (UsageError, KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{identity.kind} {identity.name} is left out: {error}"
    return _Known(identity.kind, identity.name, record, problem)


def _node(resource: Resource) -> BgpNode | None:
    bgp = spec_of(resource).get("bgp") or {}
    if not bgp.get("ipv4Address"):
        return None
    text, _, length = str(bgp["ipv4Address"]).partition("/")
    ip = Ip.parse(text)
    return BgpNode(
        name_of(resource),
        ip.value,
        Cidr.of(ip, int(length or 32)),
        parse_as(bgp.get("asNumber")) or None,
        str(bgp.get("routeReflectorClusterID") or ""),
        labels_of(resource),
    )


def _pool(resource: Resource) -> BgpPool | None:
    spec = spec_of(resource)
    cidr = Cidr.parse(str(spec["cidr"]))
    if cidr.version != 4:
        return None
    export = bool(spec.get("disableBGPExport"))
    return BgpPool(cidr, spec["ipipMode"], spec["vxlanMode"], export)


def confirmed_claims(items: Iterable[KVPair]) -> tuple[Affinity, ...]:
    """The claims that may be announced, by network; pending ones may never come true."""
    found = (Affinity.read(kvp) for kvp in items)
    return tuple(
        sorted(
            (
                claim
                for claim in found
                if claim is not None and claim.state == CONFIRMED and claim.cidr.version == 4
            ),
            key=lambda claim: (claim.host, claim.cidr),
        )
    )


def owned_blocks(
    claims: Iterable[Affinity], blocks: Mapping[Cidr, Any]
) -> dict[str, tuple[Cidr, ...]]:
    """The claims that the blocks themselves bear out, by host; ``blocks`` are stored values.

    A claim alone is not enough: two nodes that announce one block cut off its pods.
    """
    owned: dict[str, tuple[Cidr, ...]] = {}
    for claim in claims:
        block = blocks.get(claim.cidr)
        if isinstance(block, dict) and block.get("affinity") == f"host:{claim.host}":
            owned[claim.host] = (*owned.get(claim.host, ()), claim.cidr)
    return owned
