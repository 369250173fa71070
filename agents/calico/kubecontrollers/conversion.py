"""Kubernetes objects as Calico resources; pure.

Source: projectcalico/calico libcalico-go/lib/backend/k8s/conversion/conversion.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from agents.calico.resources import new_resource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agents.calico.resources import Resource

POLICY_PREFIX: Final = "knp.default."
NAMESPACE_PREFIX, ACCOUNT_PREFIX = "kns.", "ksa."
POLICY_ORDER: Final = 1000.0
ORCHESTRATOR_LABEL: Final = "projectcalico.org/orchestrator"
NAMESPACE_LABEL: Final = "projectcalico.org/namespace"
ACCOUNT_LABEL: Final = "projectcalico.org/serviceaccount"
NAME_LABEL: Final = "projectcalico.org/name"
_LABELS_OF_NAMESPACES, _LABELS_OF_ACCOUNTS = "pcns.", "pcsa."

Object = dict[str, Any]


def namespace_profile(namespace: Object) -> Resource:
    """What the pods of a namespace fall back to (everything is allowed), and its labels."""
    name = namespace["metadata"]["name"]
    labels = {
        _LABELS_OF_NAMESPACES + key: value
        for key, value in (namespace["metadata"].get("labels") or {}).items()
    }
    labels[_LABELS_OF_NAMESPACES + NAME_LABEL] = name
    spec = {
        "ingress": [{"action": "Allow", "source": {}, "destination": {}}],
        "egress": [{"action": "Allow", "source": {}, "destination": {}}],
        "labelsToApply": dict(sorted(labels.items())),
    }
    return new_resource("Profile", NAMESPACE_PREFIX + name, spec)


def account_profile(account: Object) -> Resource:
    """The labels of a service account, for rules that name it."""
    meta = account["metadata"]
    labels = {_LABELS_OF_ACCOUNTS + key: value for key, value in (meta.get("labels") or {}).items()}
    labels[_LABELS_OF_ACCOUNTS + NAME_LABEL] = meta["name"]
    name = f"{ACCOUNT_PREFIX}{meta['namespace']}.{meta['name']}"
    return new_resource("Profile", name, {"labelsToApply": dict(sorted(labels.items()))})


def endpoint_labels(pod: Object) -> dict[str, str]:
    """The labels of a pod's WorkloadEndpoint."""
    meta = pod["metadata"]
    labels = {str(k): str(v) for k, v in (meta.get("labels") or {}).items()}
    labels[NAMESPACE_LABEL] = meta["namespace"]
    labels[ORCHESTRATOR_LABEL] = "k8s"
    labels[ACCOUNT_LABEL] = (pod.get("spec") or {}).get("serviceAccountName") or "default"
    return dict(sorted(labels.items()))


# Network policies ----------------------------------------------------------------------------


def network_policy(policy: Object) -> Resource:
    """A Kubernetes NetworkPolicy as Calico's ``knp.default.NAME`` of the same namespace."""
    meta, spec = policy["metadata"], policy.get("spec") or {}
    ingress = [
        rule
        for each in spec.get("ingress") or ()
        for rule in _rules(each.get("from"), each.get("ports"), inbound=True)
    ]
    egress = [
        rule
        for each in spec.get("egress") or ()
        for rule in _rules(each.get("to"), each.get("ports"), inbound=False)
    ]
    types = [each for each in ("Ingress", "Egress") if each in (spec.get("policyTypes") or ())]
    if not spec.get("policyTypes"):
        types = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    calico: dict[str, Any] = {"order": POLICY_ORDER}
    if ingress:
        calico["ingress"] = ingress
    if egress:
        calico["egress"] = egress
    calico["selector"] = pod_selector(spec.get("podSelector"))
    calico["types"] = types
    name = POLICY_PREFIX + meta["name"]
    return new_resource("NetworkPolicy", name, calico, namespace=meta["namespace"])


def _terms(selector: Mapping[str, Any]) -> list[str]:
    labels = selector.get("matchLabels") or {}
    terms = [f"{key} == '{labels[key]}'" for key in sorted(labels)]
    for each in selector.get("matchExpressions") or ():
        key, values = each["key"], "', '".join(each.get("values") or ())
        match each["operator"]:
            case "In":
                terms.append(f"{key} in {{ '{values}' }}")
            case "NotIn":
                terms.append(f"{key} not in {{ '{values}' }}")
            case "Exists":
                terms.append(f"has({key})")
            case "DoesNotExist":
                terms.append(f"! has({key})")
    return terms


def pod_selector(selector: Mapping[str, Any] | None) -> str:
    """A selector of pods; without terms, of every pod."""
    return " && ".join([f"{ORCHESTRATOR_LABEL} == 'k8s'", *_terms(selector or {})])


def namespace_selector(selector: Mapping[str, Any] | None) -> str:
    """A selector of namespaces; without terms of all, without a selector of the policy's own."""
    if selector is None:
        return ""
    return " && ".join(_terms(selector)) or "all()"


def _rules(
    peers: Iterable[Object] | None, ports: Iterable[Object] | None, *, inbound: bool
) -> list[dict[str, Any]]:
    """Every pair of a peer and a protocol's ports; no peers or no ports mean all of them."""
    by_protocol: dict[str, list[int | str] | None] = {}
    for port in ports or ():
        protocol = port.get("protocol") or "TCP"
        number = _port(port)
        known = by_protocol.get(protocol, [])
        # A port without a number opens every port of its protocol.
        by_protocol[protocol] = None if number is None or known is None else [*known, number]
    protocols: list[tuple[str, list[int | str] | None]] = sorted(by_protocol.items()) or [
        ("", None)
    ]
    ends: list[Object | None] = [*(peers or ())] or [None]
    return [
        _rule(peer, protocol, numbers, inbound=inbound)
        for protocol, numbers in protocols
        for peer in ends
    ]


def _port(port: Object) -> int | str | None:
    number: int | str | None = port.get("port")
    if isinstance(number, int) and port.get("endPort") is not None:
        return f"{number}:{port['endPort']}" if port["endPort"] != number else number
    return number


def _rule(
    peer: Object | None, protocol: str, numbers: list[int | str] | None, *, inbound: bool
) -> dict[str, Any]:
    far: dict[str, Any] = _entity(peer) if peer is not None else {}
    near: dict[str, Any] = {}
    target = near if inbound else far
    if numbers:
        target["ports"] = numbers
    rule: dict[str, Any] = {"action": "Allow"}
    if protocol:
        rule["protocol"] = protocol
    rule["source"] = far if inbound else near
    rule["destination"] = near if inbound else far
    return rule


def _entity(peer: Object) -> dict[str, Any]:
    block = peer.get("ipBlock")
    if block is not None:
        entity: dict[str, Any] = {"nets": [block["cidr"]]}
        if block.get("except"):
            entity["notNets"] = list(block["except"])
        return entity
    entity = {"selector": pod_selector(peer.get("podSelector"))}
    spaces = namespace_selector(peer.get("namespaceSelector"))
    if spaces:
        entity["namespaceSelector"] = spaces
    return entity
