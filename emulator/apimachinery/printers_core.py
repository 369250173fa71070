"""Tables of the core, discovery, networking and policy kinds
(pkg/printers/internalversion/printers.go, v1.32)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery.columns import (
    AGE,
    CREATED_AT,
    NAME,
    Column,
    Printer,
    age_of,
    none_if_empty,
    number,
    some,
    wide,
)
from emulator.apimachinery.labels import format_label_selector, format_labels
from emulator.apimachinery.objects import dig, items, name_of
from emulator.apimachinery.times import age, human_duration, parse_rfc3339

if TYPE_CHECKING:
    from emulator.apimachinery.objects import Obj

_MAX_HOSTS: Final = 3
_ROLE_PREFIX: Final = "node-role.kubernetes.io/"


def _service(obj: Obj, now: float) -> list[Any]:
    spec = obj.get("spec") or {}
    kind = spec.get("type") or "ClusterIP"
    ips = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
    ports = [
        f"{p.get('port')}:{p['nodePort']}/{p.get('protocol', 'TCP')}"
        if p.get("nodePort")
        else f"{p.get('port')}/{p.get('protocol', 'TCP')}"
        for p in spec.get("ports") or []
    ]
    return [
        name_of(obj),
        kind,
        none_if_empty(ips[0] if ips else ""),
        _external_ip(obj, kind),
        none_if_empty(",".join(ports)),
        age_of(obj, now),
        format_labels(spec.get("selector")),
    ]


def _external_ip(obj: Obj, kind: str) -> str:
    external = [str(ip) for ip in items(obj, "spec", "externalIPs")]
    if kind == "ExternalName":
        return str(dig(obj, "spec", "externalName") or "")
    if kind == "LoadBalancer":
        return ",".join([*_ingress_addresses(obj), *external]) or "<pending>"
    return ",".join(external) or "<none>"


def _ingress_addresses(obj: Obj) -> list[str]:
    """Addresses and names of a load balancer, each once and sorted."""
    ingress = items(obj, "status", "loadBalancer", "ingress")
    found = {str(i.get("ip") or i.get("hostname") or "") for i in ingress}
    return sorted(found - {""})


def _endpoints(obj: Obj, now: float) -> list[Any]:
    found: list[str] = []
    for subset in items(obj, "subsets"):
        addresses = [str(a.get("ip", "")) for a in subset.get("addresses") or []]
        ports = subset.get("ports") or []
        if not ports:
            found += addresses
        for port in ports:
            found += [f"{address}:{port.get('port')}" for address in addresses]
    return [name_of(obj), some(found), age_of(obj, now)]


def _endpoint_slice(obj: Obj, now: float) -> list[Any]:
    ports = [
        str(p.get("name", "*")) if p.get("port") is None else str(p["port"])
        for p in items(obj, "ports")
    ]
    addresses = [str(a) for e in items(obj, "endpoints") for a in e.get("addresses") or []]
    return [
        name_of(obj),
        str(obj.get("addressType", "")),
        some(ports, empty="<unset>"),
        some(addresses, empty="<unset>"),
        age_of(obj, now),
    ]


def _node(obj: Obj, now: float) -> list[Any]:
    status = "Unknown"
    for condition in items(obj, "status", "conditions"):
        if condition.get("type") == "Ready":
            status = "Ready" if condition.get("status") == "True" else "NotReady"
    if dig(obj, "spec", "unschedulable"):
        status += ",SchedulingDisabled"
    labels = dig(obj, "metadata", "labels") or {}
    roles = {k.removeprefix(_ROLE_PREFIX) for k in labels if k.startswith(_ROLE_PREFIX)}
    if labels.get("kubernetes.io/role"):
        roles.add(labels["kubernetes.io/role"])
    info = dig(obj, "status", "nodeInfo") or {}

    def address(kind: str) -> str:
        for entry in items(obj, "status", "addresses"):
            if entry.get("type") == kind:
                return str(entry.get("address"))
        return "<none>"

    return [
        name_of(obj),
        status,
        ",".join(sorted(r for r in roles if r)) or "<none>",
        age_of(obj, now),
        str(info.get("kubeletVersion", "")),
        address("InternalIP"),
        address("ExternalIP"),
        info.get("osImage") or "<unknown>",
        info.get("kernelVersion") or "<unknown>",
        info.get("containerRuntimeVersion") or "<unknown>",
    ]


def _event(obj: Obj, now: float) -> list[Any]:
    first, last = obj.get("firstTimestamp"), obj.get("lastTimestamp")
    count = obj.get("count") or obj.get("deprecatedCount") or 0
    first = first or obj.get("deprecatedFirstTimestamp") or obj.get("eventTime")
    last = last or obj.get("deprecatedLastTimestamp") or first
    series = obj.get("series")
    if isinstance(series, dict):
        last, count = series.get("lastObservedTime"), series.get("count") or 0
    elif not count:
        count = 1
    about = obj.get("involvedObject") or obj.get("regarding") or {}
    source = obj.get("source") or obj.get("deprecatedSource") or {}
    component = source.get("component") or obj.get("reportingComponent") or ""
    host = source.get("host") or obj.get("reportingInstance") or ""
    kind = str(about.get("kind", "")).lower()
    return [
        age(last, now),
        obj.get("type", ""),
        obj.get("reason", ""),
        f"{kind}/{about['name']}" if about.get("name") else kind,
        about.get("fieldPath", ""),
        f"{component}, {host}" if host else component,
        str(obj.get("message") or obj.get("note") or "").strip(),
        age(first, now),
        count,
        name_of(obj),
    ]


def _namespace(obj: Obj, now: float) -> list[Any]:
    return [name_of(obj), dig(obj, "status", "phase") or "", age_of(obj, now)]


def _config_map(obj: Obj, now: float) -> list[Any]:
    count = len(obj.get("data") or {}) + len(obj.get("binaryData") or {})
    return [name_of(obj), count, age_of(obj, now)]


def _secret(obj: Obj, now: float) -> list[Any]:
    return [name_of(obj), obj.get("type", ""), len(obj.get("data") or {}), age_of(obj, now)]


def _service_account(obj: Obj, now: float) -> list[Any]:
    return [name_of(obj), len(obj.get("secrets") or []), age_of(obj, now)]


def _network_policy(obj: Obj, now: float) -> list[Any]:
    return [name_of(obj), format_label_selector(dig(obj, "spec", "podSelector")), age_of(obj, now)]


def _ingress(obj: Obj, now: float) -> list[Any]:
    rules = items(obj, "spec", "rules")
    ports = "80, 443" if items(obj, "spec", "tls") else "80"
    return [
        name_of(obj),
        none_if_empty(dig(obj, "spec", "ingressClassName")),
        _hosts([str(rule.get("host") or "") for rule in rules]),
        ",".join(_ingress_addresses(obj)),
        ports,
        age_of(obj, now),
    ]


def _hosts(hosts: list[str]) -> str:
    """The first hosts of rules; a rule for all hosts only counts among those left out."""
    shown: list[str] = []
    more = False
    for host in hosts:
        more = more or len(shown) == _MAX_HOSTS
        if host and not more:
            shown.append(host)
    text = ",".join(shown) or "*"
    return f"{text} + {len(hosts) - _MAX_HOSTS} more..." if more else text


def _ingress_class(obj: Obj, now: float) -> list[Any]:
    parameters = dig(obj, "spec", "parameters")
    shown = "<none>"
    if isinstance(parameters, dict):
        shown = str(parameters.get("kind", ""))
        if parameters.get("apiGroup"):
            shown += "." + str(parameters["apiGroup"])
        shown += "/" + str(parameters.get("name", ""))
    return [name_of(obj), str(dig(obj, "spec", "controller") or ""), shown, age_of(obj, now)]


def _pdb(obj: Obj, now: float) -> list[Any]:
    def bound(field: str) -> str:
        value = dig(obj, "spec", field)
        return "N/A" if value is None else str(value)

    allowed = dig(obj, "status", "disruptionsAllowed") or 0
    return [
        name_of(obj), bound("minAvailable"), bound("maxUnavailable"), allowed, age_of(obj, now),
    ]  # fmt: skip


def _lease(obj: Obj, now: float) -> list[Any]:
    return [name_of(obj), str(dig(obj, "spec", "holderIdentity") or ""), age_of(obj, now)]


def _created(obj: Obj, now: float) -> list[Any]:
    return [name_of(obj), str(dig(obj, "metadata", "creationTimestamp") or "")]


def _binding(obj: Obj, now: float) -> list[Any]:
    role = obj.get("roleRef") or {}
    subjects: dict[str, list[str]] = {"User": [], "Group": [], "ServiceAccount": []}
    for subject in items(obj, "subjects"):
        name = str(subject.get("name", ""))
        if subject.get("kind") == "ServiceAccount":
            name = f"{subject.get('namespace', '')}/{name}"
        subjects.setdefault(str(subject.get("kind", "")), []).append(name)
    return [
        name_of(obj),
        f"{role.get('kind', '')}/{role.get('name', '')}",
        age_of(obj, now),
        ", ".join(subjects["User"]),
        ", ".join(subjects["Group"]),
        ", ".join(subjects["ServiceAccount"]),
    ]


def _claim(obj: Obj, now: float) -> list[Any]:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    phase = "Terminating" if dig(obj, "metadata", "deletionTimestamp") else status.get("phase", "")
    bound = bool(spec.get("volumeName"))
    return [
        name_of(obj),
        phase,
        spec.get("volumeName", ""),
        str(dig(status, "capacity", "storage") or "") if bound else "",
        _access_modes(status.get("accessModes")) if bound else "",
        spec.get("storageClassName") or "",
        none_or_unset(spec.get("volumeAttributesClassName")),
        age_of(obj, now),
        spec.get("volumeMode") or "<unset>",
    ]


def none_or_unset(value: Any) -> str:
    """``<unset>`` for nothing."""
    return str(value) if value else "<unset>"


_MODES = {
    "ReadWriteOnce": "RWO",
    "ReadOnlyMany": "ROX",
    "ReadWriteMany": "RWX",
    "ReadWriteOncePod": "RWOP",
}


def _access_modes(modes: Any) -> str:
    return ",".join(_MODES[m] for m in _MODES if m in (modes or []))


def _volume(obj: Obj, now: float) -> list[Any]:
    spec = obj.get("spec") or {}
    claim = spec.get("claimRef") or {}
    return [
        name_of(obj),
        str(dig(spec, "capacity", "storage") or ""),
        _access_modes(spec.get("accessModes")),
        spec.get("persistentVolumeReclaimPolicy", ""),
        "Terminating"
        if dig(obj, "metadata", "deletionTimestamp")
        else str(dig(obj, "status", "phase") or ""),
        f"{claim.get('namespace', '')}/{claim.get('name', '')}" if claim else "",
        spec.get("storageClassName") or "",
        none_or_unset(spec.get("volumeAttributesClassName")),
        str(dig(obj, "status", "reason") or ""),
        age_of(obj, now),
        spec.get("volumeMode") or "<unset>",
    ]


def _storage_class(obj: Obj, now: float) -> list[Any]:
    annotations = dig(obj, "metadata", "annotations") or {}
    name = name_of(obj)
    if annotations.get("storageclass.kubernetes.io/is-default-class") == "true":
        name += " (default)"
    return [
        name,
        obj.get("provisioner", ""),
        obj.get("reclaimPolicy") or "Delete",
        obj.get("volumeBindingMode") or "<unset>",
        bool(obj.get("allowVolumeExpansion")),
        age_of(obj, now),
    ]


def _priority_class(obj: Obj, now: float) -> list[Any]:
    return [
        name_of(obj),
        obj.get("value", 0),
        bool(obj.get("globalDefault")),
        age_of(obj, now),
        obj.get("preemptionPolicy") or "",
    ]


def _quota(obj: Obj, now: float) -> list[Any]:
    hard, used = dig(obj, "status", "hard") or {}, dig(obj, "status", "used") or {}
    requests: list[str] = []
    limits: list[str] = []
    for key in sorted(hard):
        text = f"{key}: {used.get(key, 0)}/{hard[key]}"
        (limits if key.startswith("limits") else requests).append(text)
    return [name_of(obj), ", ".join(requests), ", ".join(limits), age_of(obj, now)]


def duration_between(start: Any, end: Any, now: float) -> str:
    """Time from ``start`` to ``end`` (now where ``end`` is not known yet), "" before the start."""
    begun = parse_rfc3339(start)
    if begun is None:
        return ""
    done = parse_rfc3339(end)
    return human_duration((now if done is None else done) - begun)


_TYPE = Column("Type", "Type of the object.")
_DATA = Column("Data", "Number of keys.")

PRINTERS: Final[dict[tuple[str, str], Printer]] = {
    ("", "services"): Printer(
        (
            NAME,
            Column("Type", "type determines how the Service is exposed."),
            Column("Cluster-IP", "clusterIP is the IP address of the service."),
            Column("External-IP", "External addresses of the service."),
            Column("Port(s)", "The list of ports that are exposed by this service."),
            AGE,
            wide("Selector", "Route service traffic to pods with matching label keys and values."),
        ),
        _service,
    ),
    ("", "endpoints"): Printer(
        (NAME, Column("Endpoints", "The set of all endpoints."), AGE), _endpoints
    ),
    ("discovery.k8s.io", "endpointslices"): Printer(
        (
            NAME,
            Column("AddressType", "addressType specifies the type of address."),
            Column("Ports", "ports specifies the list of network ports."),
            Column("Endpoints", "endpoints is a list of unique endpoints in this slice."),
            AGE,
        ),
        _endpoint_slice,
    ),
    ("", "nodes"): Printer(
        (
            NAME,
            Column("Status", "The status of the node"),
            Column("Roles", "The roles of the node"),
            AGE,
            Column("Version", "Kubelet Version reported by the node."),
            wide("Internal-IP", "List of addresses reachable to the node."),
            wide("External-IP", "List of addresses reachable to the node."),
            wide("OS-Image", "OS Image reported by the node."),
            wide("Kernel-Version", "Kernel Version reported by the node."),
            wide("Container-Runtime", "ContainerRuntime Version reported by the node."),
        ),
        _node,
    ),
    ("", "namespaces"): Printer(
        (NAME, Column("Status", "The status of the namespace"), AGE), _namespace
    ),
    ("", "configmaps"): Printer((NAME, _DATA, AGE), _config_map),
    ("", "secrets"): Printer((NAME, _TYPE, _DATA, AGE), _secret),
    ("", "serviceaccounts"): Printer(
        (NAME, Column("Secrets", "Number of secrets."), AGE), _service_account
    ),
    ("", "persistentvolumeclaims"): Printer(
        (
            NAME,
            Column("Status", "phase represents the current phase."),
            Column("Volume", "volumeName is the binding reference."),
            Column("Capacity", "capacity of the underlying volume."),
            Column("Access Modes", "accessModes of the volume."),
            Column("StorageClass", "Name of the StorageClass."),
            Column("VolumeAttributesClass", "Name of the VolumeAttributesClass."),
            AGE,
            wide("VolumeMode", "Filesystem or Block."),
        ),
        _claim,
    ),
    ("", "persistentvolumes"): Printer(
        (
            NAME,
            Column("Capacity", "capacity of the volume."),
            Column("Access Modes", "accessModes of the volume."),
            Column("Reclaim Policy", "What happens when released."),
            Column("Status", "phase of the volume."),
            Column("Claim", "The claim bound to it."),
            Column("StorageClass", "Name of the StorageClass."),
            Column("VolumeAttributesClass", "Name of the VolumeAttributesClass."),
            Column("Reason", "Why it is in this state."),
            AGE,
            wide("VolumeMode", "Filesystem or Block."),
        ),
        _volume,
    ),
    ("", "resourcequotas"): Printer(
        (NAME, Column("Request", "Requests."), Column("Limit", "Limits."), AGE), _quota
    ),
    ("networking.k8s.io", "networkpolicies"): Printer(
        (NAME, Column("Pod-Selector", "podSelector selects the pods."), AGE), _network_policy
    ),
    ("networking.k8s.io", "ingresses"): Printer(
        (
            NAME,
            Column("Class", "The name of the IngressClass resource."),
            Column("Hosts", "Hosts that requests are matched against before the ingress rule"),
            Column("Address", "Ingress points for the load-balancer"),
            Column("Ports", "Ports of TLS configurations that open"),
            AGE,
        ),
        _ingress,
    ),
    ("networking.k8s.io", "ingressclasses"): Printer(
        (
            NAME,
            Column("Controller", "Controller that is responsible for handling this class"),
            Column("Parameters", "A reference to a resource with additional parameters"),
            AGE,
        ),
        _ingress_class,
    ),
    ("policy", "poddisruptionbudgets"): Printer(
        (
            NAME,
            Column("Min Available", "The minimum number of pods that must be available."),
            Column("Max Unavailable", "The maximum number of pods that may be unavailable."),
            number("Allowed Disruptions", "Number of pods that may be disrupted at this time."),
            AGE,
        ),
        _pdb,
    ),
    ("coordination.k8s.io", "leases"): Printer(
        (NAME, Column("Holder", "holderIdentity of the lease."), AGE), _lease
    ),
    ("rbac.authorization.k8s.io", "roles"): Printer((NAME, CREATED_AT), _created),
    ("rbac.authorization.k8s.io", "clusterroles"): Printer((NAME, CREATED_AT), _created),
    ("storage.k8s.io", "storageclasses"): Printer(
        (
            NAME,
            Column("Provisioner", "provisioner indicates the type of the provisioner."),
            Column("ReclaimPolicy", "reclaimPolicy of volumes."),
            Column("VolumeBindingMode", "volumeBindingMode of claims."),
            Column("AllowVolumeExpansion", "Whether volumes may grow."),
            AGE,
        ),
        _storage_class,
    ),
    ("scheduling.k8s.io", "priorityclasses"): Printer(
        (
            NAME,
            Column("Value", "The value of this priority class."),
            Column("Global-Default", "Whether it is the default."),
            AGE,
            Column("PreemptionPolicy", "The policy for preempting pods."),
        ),
        _priority_class,
    ),
}

PRINTERS["", "limitranges"] = Printer((NAME, CREATED_AT), _created)
PRINTERS["apiextensions.k8s.io", "customresourcedefinitions"] = Printer(
    (NAME, CREATED_AT), _created
)
for _group in ("", "events.k8s.io"):
    PRINTERS[_group, "events"] = Printer(
        (
            Column("Last Seen", "The time at which the most recent occurrence was recorded."),
            Column("Type", "Type of this event (Normal, Warning)."),
            Column("Reason", "A short, machine understandable reason."),
            Column("Object", "The object that this event is about."),
            wide("Subobject", "The field of the object."),
            wide("Source", "The component reporting this event."),
            Column("Message", "A human-readable description of the status of this operation."),
            wide("First Seen", "The time at which the event was first recorded."),
            wide("Count", "The number of times this event has occurred."),
            Column(NAME.name, NAME.description, priority=1, format="name"),
        ),
        _event,
    )
for _plural in ("rolebindings", "clusterrolebindings"):
    PRINTERS["rbac.authorization.k8s.io", _plural] = Printer(
        (
            NAME,
            Column("Role", "The role bound."),
            AGE,
            wide("Users", "Users in the roleBinding"),
            wide("Groups", "Groups in the roleBinding"),
            wide("ServiceAccounts", "ServiceAccounts in the roleBinding"),
        ),
        _binding,
    )
