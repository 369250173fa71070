"""The fields each kind of resource has, so that a misspelt one is refused (pure).

calicoctl decodes strictly, and Calico's CustomResourceDefinitions have structural schemas.
Source: projectcalico/api pkg/apis/projectcalico/v3, libcalico-go/lib/apis/v3 (3.20 to 3.30).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agents.calico.resources import METADATA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agents.calico.resources import Resource

# A mapping names the fields of an object, or of each object of a list; None is not looked into.
Shape = dict[str, "Shape | None"]
# Keys of objects and indexes of lists.
Path = tuple["str | int", ...]


def _leaves(names: str) -> Shape:
    return dict.fromkeys(names.split())


_SECRET: Final[Shape] = {"secretKeyRef": _leaves("name key optional")}
_CIDRS: Final[Shape] = _leaves("cidr")
_ENTITY: Final[Shape] = {
    **_leaves("nets notNets selector notSelector namespaceSelector ports notPorts"),
    "services": _leaves("name namespace"),
    "serviceAccounts": _leaves("names selector"),
}
_RULE: Final[Shape] = {
    **_leaves("action ipVersion protocol notProtocol"),
    "icmp": _leaves("type code"),
    "notICMP": _leaves("type code"),
    "source": _ENTITY,
    "destination": _ENTITY,
    "http": {"methods": None, "paths": _leaves("exact prefix")},
    "metadata": {"annotations": None},
}
_POLICY: Final[Shape] = {
    **_leaves("tier order selector types serviceAccountSelector performanceHints"),
    "ingress": _RULE,
    "egress": _RULE,
}
_FILTER_RULE: Final[Shape] = {
    **_leaves("action cidr interface matchOperator source peerType priority asPathPrefix"),
    "prefixLength": _leaves("min max"),
    "communities": _leaves("values"),
    "operations": None,
}
# FelixConfiguration and KubeControllersConfiguration have hundreds, most of which mean nothing
# here: they are taken as they come.
SPECS: Final[Mapping[str, Shape]] = {
    "IPPool": {
        **_leaves("cidr ipipMode vxlanMode natOutgoing disabled disableBGPExport blockSize"),
        **_leaves("nodeSelector namespaceSelector allowedUses assignmentMode nat-outgoing"),
        "ipip": _leaves("enabled mode"),
    },
    "Node": {
        "bgp": _leaves(
            "asNumber ipv4Address ipv6Address ipv4IPIPTunnelAddr routeReflectorClusterID"
        ),
        **_leaves("ipv4VXLANTunnelAddr vxlanTunnelMACAddr ipv6VXLANTunnelAddr"),
        **_leaves("vxlanTunnelMACAddrV6 wireguard"),
        "orchRefs": _leaves("nodeName orchestrator"),
        "addresses": _leaves("address type"),
    },
    "BGPPeer": {
        **_leaves("node nodeSelector peerIP peerSelector asNumber keepOriginalNextHop"),
        **_leaves("sourceAddress maxRestartTime numAllowedLocalASNumbers ttlSecurity reachableBy"),
        **_leaves(
            "filters localASNumber localWorkloadSelector reversePeering nextHopMode keepaliveTime"
        ),
        "password": _SECRET,
    },
    "BGPConfiguration": {
        **_leaves("logSeverityScreen nodeToNodeMeshEnabled asNumber listenPort bindMode"),
        **_leaves("ignoredInterfaces nodeMeshMaxRestartTime localWorkloadPeeringIPV4"),
        **_leaves("localWorkloadPeeringIPV6 programClusterRoutes serviceLoadBalancerAggregation"),
        **dict.fromkeys(
            ("serviceLoadBalancerIPs", "serviceExternalIPs", "serviceClusterIPs"), _CIDRS
        ),
        "communities": _leaves("name value"),
        "prefixAdvertisements": _leaves("cidr communities"),
        "nodeMeshPassword": _SECRET,
    },
    "BGPFilter": dict.fromkeys(("exportV4", "importV4", "exportV6", "importV6"), _FILTER_RULE),
    "GlobalNetworkPolicy": {
        **_POLICY,
        **_leaves("doNotTrack preDNAT applyOnForward namespaceSelector"),
    },
    # A selector of namespaces is refused with a word of its own.
    "NetworkPolicy": {**_POLICY, "namespaceSelector": None},
    "NetworkSet": _leaves("nets"),
    "GlobalNetworkSet": _leaves("nets"),
    "HostEndpoint": {
        **_leaves("node interfaceName expectedIPs profiles"),
        "ports": _leaves("name protocol port"),
    },
    "Profile": {"ingress": _RULE, "egress": _RULE, "labelsToApply": None},
    "Tier": _leaves("order defaultAction"),
    "IPReservation": _leaves("reservedCIDRs"),
    "IPAMConfiguration": _leaves("strictAffinity maxBlocksPerHost autoAllocateBlocks"),
    "ClusterInformation": _leaves(
        "clusterGUID clusterType calicoVersion datastoreReady variant cnxVersion"
    ),
    "WorkloadEndpoint": {
        **_leaves("orchestrator workload node containerID pod endpoint serviceAccountName"),
        **_leaves("ipNetworks ipv4Gateway ipv6Gateway profiles interfaceName mac"),
        **_leaves("allowSpoofedSourcePrefixes qosControls"),
        "ipNATs": _leaves("internalIP externalIP"),
        "ports": _leaves("name protocol port hostPort hostIP"),
    },
}
_METADATA: Final = dict.fromkeys(
    (*METADATA, "managedFields", "selfLink", "deletionGracePeriodSeconds")
)


def unknown_paths(resource: Resource) -> list[Path]:
    """Where fields stand that the resource's kind does not have, in the order they stand there."""
    shape: Shape = {**_leaves("kind apiVersion status"), "metadata": _METADATA}
    shape["spec"] = SPECS.get(str(resource.get("kind")))
    return list(_unknown(resource, shape, ()))


def unknown_fields(resource: Resource) -> list[str]:
    """The same in words: ``spec.ingress[0].source.net``."""
    return [dotted(path) for path in unknown_paths(resource)]


def dotted(path: Path) -> str:
    """A path as Go's strict decoder writes it."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


def _unknown(value: Any, shape: Shape, path: Path) -> Iterator[Path]:
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from _unknown(each, shape, (*path, number))
    elif isinstance(value, dict):
        for key, each in value.items():
            if key not in shape:
                yield (*path, str(key))
                continue
            below = shape[key]
            if below is not None:
                yield from _unknown(each, below, (*path, key))
