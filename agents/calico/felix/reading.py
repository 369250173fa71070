"""Read the datastore's resources into felix's records; pure.

What felix's calculation graph sees is the v1 form of policies; ``entities.py`` reads their rules.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from agents.calico.felix.entities import policy_selector, read_rules
from agents.calico.felix.model import (
    NAMESPACE_LABEL,
    Block,
    Endpoint,
    Host,
    NamedPort,
    NetworkSet,
    NodeInfo,
    Policy,
    Pool,
    Profile,
    Settings,
    State,
)
from agents.calico.resources import (
    key_of_resource,
    labels_of,
    name_of,
    namespace_of,
    parse_key,
    spec_of,
)
from agents.calico.unenforced import is_asked, unenforced
from agents.calico.validation import checked
from emulator.addr import Prefix, parse_ip, parse_mac
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agents.calico.datastore import KVPair
    from agents.calico.resources import Resource

BLOCKS: Final = "/calico/ipam/v2/assignment/ipv4/block/"
PREFIXES: Final = ("/calico/resources/v3/",)
_KINDS: Final = frozenset(
    (
        *("WorkloadEndpoint", "HostEndpoint", "NetworkPolicy", "GlobalNetworkPolicy", "Profile"),
        *("IPPool", "Node", "NetworkSet", "GlobalNetworkSet", "FelixConfiguration"),
    )
)
_ACTIONS: Final = {"Accept": "ACCEPT", "Drop": "DROP", "Return": "RETURN"}


_T = TypeVar("_T")


class _Configuration(NamedTuple):
    """A FelixConfiguration."""

    name: str
    spec: dict[str, Any]


class _Parsed(NamedTuple):
    """What felix makes of one item; ``refused`` says what of it is not enforced."""

    record: Any
    refused: tuple[str, ...]


_NOTHING: Final = _Parsed(None, ())


def read_state(items: Mapping[str, KVPair], node: str, host: Host | None = None) -> State:
    """Everything under PREFIXES and BLOCKS as a State; what is not understood is in ``refused``."""
    reader = StateReader(node)
    reader.note(items, items)
    return reader.read(items, host)


class StateReader:
    """Reads a mirror's items again and again: only what changed is parsed.

    Every node of a cluster looks at every change, and few changes mean anything to a felix.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._parsed: dict[str, _Parsed] = {}
        self._sorted = True
        # Read where VXLAN needs them: elsewhere BGP carries their routes.
        self._blocks: dict[str, tuple[int, _Parsed]] = {}
        # An endpoint with its profiles' labels, by what it was made of.
        self._labelled: dict[int, tuple[Endpoint, tuple[Profile | None, ...], Endpoint]] = {}

    def note(self, items: Mapping[str, KVPair], changed: Iterable[str]) -> bool:
        """Take in keys that changed; True if what they say, blocks apart, is news."""
        news = False
        for key in changed:
            if key.startswith(BLOCKS):
                continue
            kvp, known = items.get(key), self._parsed.get(key, _NOTHING)
            parsed = _NOTHING if kvp is None else _parse(key, kvp)
            if parsed == known:
                continue
            news = True
            if parsed == _NOTHING:
                del self._parsed[key]
            else:
                self._sorted = self._sorted and key in self._parsed
                self._parsed[key] = parsed
        return news

    def read(self, items: Mapping[str, KVPair], host: Host | None = None) -> State:
        """What was noted as a State; what does not parse is named in ``refused``.

        ``items`` hold the blocks, which are read where VXLAN is in use.
        """
        if not self._sorted:
            self._parsed = dict(sorted(self._parsed.items()))
            self._sorted = True
        records = [each.record for each in self._parsed.values()]

        def of(kind: type[_T]) -> tuple[_T, ...]:
            return tuple(record for record in records if type(record) is kind)

        configurations = {each.name: each.spec for each in of(_Configuration)}
        profiles = of(Profile)
        state = State(
            self._node,
            host or Host(),
            _settings(
                {
                    **configurations.get("default", {}),
                    **configurations.get(f"node.{self._node}", {}),
                }
            ),
            self._inherit(of(Endpoint), profiles),
            tuple(sorted(of(Policy), key=lambda each: each.sort_key)),
            profiles,
            of(Pool),
            of(NodeInfo),
            (),
            of(NetworkSet),
            tuple(text for each in self._parsed.values() for text in each.refused),
        )
        return self._with_blocks(state, items) if state.vxlan_enabled else state

    def _with_blocks(self, state: State, items: Mapping[str, KVPair]) -> State:
        blocks: dict[str, tuple[int, _Parsed]] = {}
        for key in sorted(key for key in items if key.startswith(BLOCKS)):
            kvp, known = items[key], self._blocks.get(key)
            if known is None or known[0] != kvp.revision:
                known = (kvp.revision, _parse(key, kvp))
            blocks[key] = known
        self._blocks = blocks
        return replace(
            state,
            blocks=tuple(each.record for _, each in blocks.values() if each.record is not None),
            refused=(*state.refused, *(t for _, each in blocks.values() for t in each.refused)),
        )

    def _inherit(
        self, endpoints: tuple[Endpoint, ...], profiles: tuple[Profile, ...]
    ) -> tuple[Endpoint, ...]:
        """Endpoints with the labels of their profiles; their own come first."""
        by_name = {profile.name: profile for profile in profiles}
        labelled = {}
        for each in endpoints:
            mine = tuple(by_name.get(name) for name in each.profiles)
            known = self._labelled.get(id(each))
            if known is None or known[0] is not each or not _same(known[1], mine):
                labels = {
                    key: text
                    for profile in mine
                    if profile is not None
                    for key, text in profile.labels.items()
                }
                known = (each, mine, replace(each, labels={**labels, **each.labels}))
            labelled[id(each)] = known
        self._labelled = labelled
        return tuple(known[2] for known in labelled.values())


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _parse(key: str, kvp: KVPair) -> _Parsed:
    """One item; what nobody understands is refused, not raised."""
    if not isinstance(kvp.value, dict):
        return _NOTHING
    refused: list[str] = []
    record: Any = None
    try:
        if key.startswith(BLOCKS):
            record = _block(kvp.value)
        elif (identity := parse_key(key)) is not None and identity.kind in _KINDS:
            if key_of_resource(kvp.value) != key:
                raise UsageError("it says it is another resource")
            value = checked(kvp.value)
            record = _resource(identity.kind, value)
            refused += unenforced(value)
    except (UsageError, KeyError, TypeError, ValueError, AttributeError) as error:
        refused.append(f"{key} is not understood: {error}")
    return _Parsed(record, tuple(refused))


def _resource(kind: str, value: Resource) -> Any:
    match kind:
        case "WorkloadEndpoint":
            return _endpoint(value)
        case "NetworkPolicy" | "GlobalNetworkPolicy":
            return _policy(value)
        case "Profile":
            return _profile(value)
        case "IPPool":
            return _pool(value)
        case "Node":
            return _node(value)
        case "NetworkSet" | "GlobalNetworkSet":
            return _network_set(value)
        case "FelixConfiguration":
            return _Configuration(name_of(value), spec_of(value))
    return None


def _pool(value: Resource) -> Pool | None:
    """A pool of IPv4; a disabled one gives out no addresses, but those it gave stay reachable."""
    spec = spec_of(value)
    if ":" in spec["cidr"]:
        return None
    return Pool(
        Prefix.parse(spec["cidr"]),
        spec.get("ipipMode") or "Never",
        spec.get("vxlanMode") or "Never",
        bool(spec.get("natOutgoing")),
    )


def _node(value: Resource) -> NodeInfo | None:
    """A node that has an address."""
    spec = spec_of(value)
    bgp = spec.get("bgp") or {}
    address = str(bgp.get("ipv4Address") or "")
    if not address:
        return None
    ip_text, _, length = address.partition("/")
    ip = parse_ip(ip_text)
    mac = spec.get("vxlanTunnelMACAddr")
    return NodeInfo(
        name_of(value),
        ip,
        Prefix.of(ip, int(length or 32)),
        _ip(bgp.get("ipv4IPIPTunnelAddr")),
        _ip(spec.get("ipv4VXLANTunnelAddr")),
        parse_mac(mac) if mac else b"",
    )


def _block(value: dict[str, Any]) -> Block:
    owner = str(value.get("affinity") or "")
    cidr = Prefix.parse(value["cidr"])
    node = owner.removeprefix("host:") if owner.startswith("host:") else ""
    borrowed = []
    attributes = value.get("attributes") or []
    for ordinal, index in enumerate(value.get("allocations") or []):
        if index is None or index >= len(attributes):
            continue
        holder = ((attributes[index] or {}).get("secondary") or {}).get("node", "")
        if holder and holder != node:
            borrowed.append((cidr.network + ordinal, str(holder)))
    return Block(cidr, node, tuple(borrowed))


def _policy(value: Resource) -> Policy | None:
    spec, namespace = spec_of(value), namespace_of(value)
    name = f"{namespace}/{name_of(value)}" if namespace else name_of(value)
    if not is_asked(spec):
        return None
    return Policy(
        name,
        policy_selector(spec, namespace),
        spec.get("order"),
        tuple(spec.get("types") or _types_of(spec)),
        read_rules(spec.get("ingress"), namespace),
        read_rules(spec.get("egress"), namespace),
    )


def _types_of(spec: Mapping[str, Any]) -> list[str]:
    if spec.get("egress"):
        return ["Ingress", "Egress"] if spec.get("ingress") else ["Egress"]
    return ["Ingress"]


def _ip(text: object) -> int:
    return parse_ip(str(text)) if text else 0


def _settings(spec: Mapping[str, Any]) -> Settings:
    default = Settings()
    action = str(spec.get("defaultEndpointToHostAction") or "Accept").capitalize()
    return Settings(
        endpoint_to_host=_ACTIONS.get(action, default.endpoint_to_host),
        insert=str(spec.get("chainInsertMode") or "insert").lower() != "append",
        ipip_mtu=int(spec.get("ipipMTU") or 0),
        vxlan_mtu=int(spec.get("vxlanMTU") or 0),
        vxlan_port=int(spec.get("vxlanPort") or default.vxlan_port),
        vxlan_vni=int(spec.get("vxlanVNI") or default.vxlan_vni),
        ipip_enabled=spec.get("ipipEnabled"),
        vxlan_enabled=spec.get("vxlanEnabled"),
        log_prefix=str(spec.get("logPrefix") or default.log_prefix),
        # felix asks for it where iptables and the kernel know it; ours do.
        random_fully=spec.get("natOutgoingRandomFully", True) is not False,
    )


def _endpoint(value: Resource) -> Endpoint:
    spec = spec_of(value)
    return Endpoint(
        name_of(value),
        namespace_of(value),
        str(spec.get("node") or ""),
        str(spec.get("interfaceName") or ""),
        tuple(
            parse_ip(str(network).partition("/")[0])
            for network in spec.get("ipNetworks") or ()
            if ":" not in str(network)
        ),
        dict(labels_of(value)),
        tuple(spec.get("profiles") or ()),
        tuple(
            NamedPort(str(port["name"]), str(port["protocol"]).lower(), int(port["port"]))
            for port in spec.get("ports") or ()
            if port.get("name")
        ),
        tuple(
            (parse_ip(nat["externalIP"]), parse_ip(nat["internalIP"]))
            for nat in spec.get("ipNATs") or ()
        ),
        str(spec.get("pod") or spec.get("workload") or name_of(value)),
    )


def _profile(value: Resource) -> Profile:
    spec = spec_of(value)
    return Profile(
        name_of(value),
        read_rules(spec.get("ingress"), ""),
        read_rules(spec.get("egress"), ""),
        dict(spec.get("labelsToApply") or {}),
    )


def _network_set(value: Resource) -> NetworkSet:
    labels = dict(labels_of(value))
    namespace = namespace_of(value)
    if namespace:
        labels[NAMESPACE_LABEL] = namespace
    nets = tuple(str(net) for net in spec_of(value).get("nets") or () if ":" not in str(net))
    return NetworkSet(name_of(value), labels, nets)
