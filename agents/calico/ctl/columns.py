"""What ``calicoctl get`` shows of each kind: headings and cells (pure).

Source: projectcalico/calico calicoctl/calicoctl/resourcemgr/*.go.
"""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agents.calico.resources import name_of, namespace_of
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agents.calico.resources import Resource

    Cell = Callable[[Resource, "Cluster"], str]


# joinAndTruncate's last argument in the columns of networks.
MAX_LIST: Final = 80
_CUT: Final = "..."


class Cluster(NamedTuple):
    """What some cells need besides the resource: the AS number nodes inherit, as text."""

    as_number: str


class Layout(NamedTuple):
    """The headings of a kind, short and ``-o wide``, and the cell of every heading."""

    short: tuple[str, ...]
    wide: tuple[str, ...]
    cells: Mapping[str, Cell]


def _spec(*path: str, default: str = "") -> Cell:
    def cell(resource: Resource, cluster: Cluster) -> str:
        value: Any = resource.get("spec") or {}
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        return default if value is None else go_text(value)

    return cell


def _joined(field: str) -> Cell:
    def cell(resource: Resource, cluster: Cluster) -> str:
        return ",".join(go_text(each) for each in (resource.get("spec") or {}).get(field) or ())

    return cell


def _shortened(field: str) -> Cell:
    """A list joined, cut off where it gets long (joinAndTruncate)."""
    joined = _joined(field)

    def cell(resource: Resource, cluster: Cluster) -> str:
        text = joined(resource, cluster)
        return text if len(text) <= MAX_LIST else text[: MAX_LIST - len(_CUT)] + _CUT

    return cell


def _counted(field: str) -> Cell:
    def cell(resource: Resource, cluster: Cluster) -> str:
        return str(len((resource.get("spec") or {}).get(field) or ()))

    return cell


def go_text(value: Any) -> str:
    """A value as Go's %v prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + " ".join(go_text(each) for each in value.values()) + "}"
    return str(value)


def _name(resource: Resource, cluster: Cluster) -> str:
    return name_of(resource)


def _as_number(resource: Resource, cluster: Cluster) -> str:
    own = ((resource.get("spec") or {}).get("bgp") or {}).get("asNumber")
    return f"({cluster.as_number})" if own is None else str(own)


def _peer_node(resource: Resource, cluster: Cluster) -> str:
    spec = resource.get("spec") or {}
    return spec.get("node") or spec.get("nodeSelector") or "(global)"


def _order(resource: Resource, cluster: Cluster) -> str:
    order = (resource.get("spec") or {}).get("order")
    return "<nil>" if order is None else go_float(order)


def go_float(value: float) -> str:
    """A float64 as Go's %v prints it: as short as can be, with an exponent from 1e+06 on."""
    digits = repr(float(value))
    if 1e-4 <= abs(value) < 1e6 or not value:
        return digits.removesuffix(".0")
    mantissa, _, exponent = f"{Decimal(digits).normalize():e}".partition("e")
    return f"{mantissa}e{exponent[0]}{exponent[1:].rjust(2, '0')}"


def _given_labels(resource: Resource, cluster: Cluster) -> str:
    labels = (resource.get("spec") or {}).get("labelsToApply") or {}
    return ",".join(sorted(f"{key}={value}" for key, value in labels.items()))


_POLICY: Final = {"NAME": _name, "ORDER": _order, "SELECTOR": _spec("selector")}
_SET: Final = Layout(("NAME",), ("NAME", "NETS"), {"NAME": _name, "NETS": _shortened("nets")})
_NAME_ONLY: Final = Layout(("NAME",), ("NAME",), {"NAME": _name})
LAYOUTS: Final[Mapping[str, Layout]] = {
    "Node": Layout(
        ("NAME",),
        ("NAME", "ASN", "IPV4", "IPV6"),
        {
            "NAME": _name,
            "ASN": _as_number,
            "IPV4": _spec("bgp", "ipv4Address"),
            "IPV6": _spec("bgp", "ipv6Address"),
        },
    ),
    "IPPool": Layout(
        ("NAME", "CIDR", "SELECTOR"),
        (
            "NAME",
            "CIDR",
            "NAT",
            "IPIPMODE",
            "VXLANMODE",
            "DISABLED",
            "DISABLEBGPEXPORT",
            "SELECTOR",
        ),
        {
            "NAME": _name,
            "CIDR": _spec("cidr"),
            "NAT": _spec("natOutgoing", default="false"),
            "IPIPMODE": _spec("ipipMode", default="Never"),
            "VXLANMODE": _spec("vxlanMode", default="Never"),
            "DISABLED": _spec("disabled", default="false"),
            "DISABLEBGPEXPORT": _spec("disableBGPExport", default="false"),
            "SELECTOR": _spec("nodeSelector", default="all()"),
        },
    ),
    "BGPPeer": Layout(
        ("NAME", "PEERIP", "NODE", "ASN"),
        ("NAME", "PEERIP", "NODE", "ASN"),
        {
            "NAME": _name,
            "PEERIP": _spec("peerIP"),
            "NODE": _peer_node,
            "ASN": _spec("asNumber", default="0"),
        },
    ),
    "BGPConfiguration": Layout(
        ("NAME", "LOGSEVERITY", "MESHENABLED", "ASNUMBER"),
        ("NAME", "LOGSEVERITY", "MESHENABLED", "ASNUMBER"),
        {
            "NAME": _name,
            "LOGSEVERITY": _spec("logSeverityScreen"),
            "MESHENABLED": _spec("nodeToNodeMeshEnabled", default="-"),
            "ASNUMBER": _spec("asNumber", default="-"),
        },
    ),
    "BGPFilter": Layout(
        ("NAME", "NUMEXPORTV4", "NUMIMPORTV4", "NUMEXPORTV6", "NUMIMPORTV6"),
        ("NAME", "NUMEXPORTV4", "NUMIMPORTV4", "NUMEXPORTV6", "NUMIMPORTV6"),
        {
            "NAME": _name,
            "NUMEXPORTV4": _counted("exportV4"),
            "NUMIMPORTV4": _counted("importV4"),
            "NUMEXPORTV6": _counted("exportV6"),
            "NUMIMPORTV6": _counted("importV6"),
        },
    ),
    "WorkloadEndpoint": Layout(
        ("WORKLOAD", "NODE", "NETWORKS", "INTERFACE"),
        ("NAME", "WORKLOAD", "NODE", "NETWORKS", "INTERFACE", "PROFILES", "NATS"),
        {
            "NAME": _name,
            "WORKLOAD": lambda resource, _: _workload(resource),
            "ORCHESTRATOR": _spec("orchestrator"),
            "NODE": _spec("node"),
            "NETWORKS": _joined("ipNetworks"),
            "INTERFACE": _spec("interfaceName"),
            "PROFILES": _joined("profiles"),
            "NATS": _joined("ipNATs"),
        },
    ),
    "GlobalNetworkPolicy": Layout(("NAME",), ("NAME", "ORDER", "SELECTOR"), _POLICY),
    "NetworkPolicy": Layout(("NAME",), ("NAME", "ORDER", "SELECTOR"), _POLICY),
    "GlobalNetworkSet": _SET,
    "NetworkSet": _SET,
    "IPReservation": Layout(
        ("NAME",), ("NAME", "CIDRS"), {"NAME": _name, "CIDRS": _shortened("reservedCIDRs")}
    ),
    "Profile": Layout(("NAME",), ("NAME", "LABELS"), {"NAME": _name, "LABELS": _given_labels}),
    "HostEndpoint": Layout(
        ("NAME", "NODE"),
        ("NAME", "NODE", "INTERFACE", "IPS", "PROFILES"),
        {
            "NAME": _name,
            "NODE": _spec("node"),
            "INTERFACE": _spec("interfaceName"),
            "IPS": _joined("expectedIPs"),
            "PROFILES": _joined("profiles"),
        },
    ),
    "ClusterInformation": Layout(
        ("NAME", "CLUSTERGUID", "CLUSTERTYPE", "CALICOVERSION", "DATASTOREREADY"),
        ("NAME", "CLUSTERGUID", "CLUSTERTYPE", "CALICOVERSION", "DATASTOREREADY"),
        {
            "NAME": _name,
            "CLUSTERGUID": _spec("clusterGUID"),
            "CLUSTERTYPE": _spec("clusterType"),
            "CALICOVERSION": _spec("calicoVersion"),
            "DATASTOREREADY": _spec("datastoreReady"),
        },
    ),
    "Tier": Layout(("NAME", "ORDER"), ("NAME", "ORDER"), {"NAME": _name, "ORDER": _order}),
}


def layout_of(kind: str) -> Layout:
    """The layout of a kind; kinds without one show their names."""
    return LAYOUTS.get(kind, _NAME_ONLY)


def _workload(resource: Resource) -> str:
    """The pod of an endpoint, or the workload of another orchestrator."""
    spec = resource.get("spec") or {}
    return spec.get("workload") or spec.get("pod") or ""


def _text_of(cell: Cell, resource: Resource, cluster: Cluster) -> str:
    """A cell, empty where somebody stored what is none: the others are still shown."""
    try:
        return cell(resource, cluster)
    except (AttributeError, TypeError, ValueError, IndexError):
        return ""


def table_rows(
    kind: str,
    resources: list[Resource],
    cluster: Cluster,
    *,
    wide: bool,
    with_namespace: bool,
    custom: tuple[str, ...] = (),
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a list; ``custom`` are columns asked for by name.

    Raises UsageError with the name of a column the kind does not have.
    """
    layout = layout_of(kind)
    chosen = custom or (layout.wide if wide else layout.short)
    for heading in chosen:
        if heading not in layout.cells:
            valid = ", ".join(layout.cells)
            raise UsageError(f"Unknown heading {heading}, valid values are: {valid}")
    cells = [layout.cells[heading] for heading in chosen]
    space = ["NAMESPACE"] if with_namespace else []
    rows = [
        [
            *([namespace_of(each)] if with_namespace else []),
            *(_text_of(cell, each, cluster) for cell in cells),
        ]
        for each in resources
    ]
    return [*space, *chosen], rows
