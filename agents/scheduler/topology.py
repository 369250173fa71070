"""Where pods must be near or away from each other; pure.

Required pod affinity and anti-affinity, also that of pods already placed, and topology spread
constraints with ``DoNotSchedule``.  A term's namespaces are those it lists, all for an empty
``namespaceSelector``, else the pod's own.
Source: k8s.io/kubernetes/pkg/scheduler/framework/plugins/{interpodaffinity,podtopologyspread}.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from emulator.apimachinery.labels import Selector, SelectorError, from_label_selector
from emulator.kubeclient.meta import labels_of
from emulator.kubeclient.placement import matches_node_affinity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agents.scheduler.cluster import NodeInfo, PodInfo

AFFINITY = "node(s) didn't match pod affinity rules"
ANTI_AFFINITY = "node(s) didn't match pod anti-affinity rules"
EXISTING_ANTI_AFFINITY = "node(s) didn't satisfy existing pods anti-affinity rules"
SPREAD = "node(s) didn't match pod topology spread constraints"
SPREAD_NO_LABEL = f"{SPREAD} (missing required label)"
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


class Term(NamedTuple):
    """Pods chosen by ``selector`` in ``namespaces`` (empty: all), by domains of ``key``."""

    key: str
    selector: Selector
    namespaces: tuple[str, ...]

    def matches(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether a pod is one of those the term speaks of."""
        return (not self.namespaces or namespace in self.namespaces) and self.selector.matches(
            labels
        )


class Spread(NamedTuple):
    """A constraint that forbids a domain to have ``max_skew`` pods more than the emptiest."""

    term: Term
    max_skew: int


class Rules(NamedTuple):
    """What a pod demands; most pods demand nothing."""

    near: tuple[Term, ...] = ()
    away: tuple[Term, ...] = ()
    spread: tuple[Spread, ...] = ()


NO_RULES = Rules()


def rules_of(spec: Mapping[str, Any], namespace: str) -> Rules:
    """Read a pod's spec; terms without a (sound) selector choose nothing and are left out."""
    affinity = spec.get("affinity") or {}
    near = (affinity.get("podAffinity") or {}).get(_REQUIRED) or ()
    away = (affinity.get("podAntiAffinity") or {}).get(_REQUIRED) or ()
    spread = [
        constraint
        for constraint in spec.get("topologySpreadConstraints") or ()
        if constraint.get("whenUnsatisfiable", "DoNotSchedule") == "DoNotSchedule"
    ]
    if not near and not away and not spread:
        return NO_RULES
    return Rules(
        tuple(_terms(near, namespace)),
        tuple(_terms(away, namespace)),
        tuple(
            Spread(term, int(constraint.get("maxSkew") or 1))
            for constraint in spread
            for term in _terms((constraint,), namespace)
        ),
    )


def _terms(documents: Iterable[Mapping[str, Any]], namespace: str) -> Iterable[Term]:
    for document in documents:
        try:
            selector = from_label_selector(document.get("labelSelector"))
        except SelectorError:
            continue
        if selector is None:
            continue
        named = tuple(document.get("namespaces") or ())
        everywhere = document.get("namespaceSelector") == {} and not named
        namespaces = () if everywhere else (named or (namespace,))
        yield Term(str(document.get("topologyKey") or ""), selector, namespaces)


class Topology:
    """The domains of one decision, counted once for all nodes."""

    __slots__ = ("_away", "_existing", "_near", "_pod", "_spread")

    def __init__(self, pod: PodInfo, nodes: Sequence[NodeInfo]) -> None:
        self._pod = pod
        self._near = [(term, _count(term, nodes)) for term in pod.rules.near]
        self._away = [(term, _count(term, nodes)) for term in pod.rules.away]
        self._existing = _kept_clear(pod, nodes)
        eligible = [n for n in nodes if n.node and matches_node_affinity(pod.spec, n.node)]
        self._spread = [
            (constraint, _count(constraint.term, eligible, every_domain=True))
            for constraint in pod.rules.spread
        ]

    def reason_against(self, info: NodeInfo) -> str:
        """Why the pod cannot be on this node, empty if it can."""
        labels = labels_of(info.node) if info.node is not None else {}
        for constraint, counts in self._spread:
            term = constraint.term
            if term.key not in labels:
                return SPREAD_NO_LABEL
            itself = term.matches(self._pod.namespace, self._pod.labels)
            here = counts[labels[term.key]] + itself
            if here - min(counts.values(), default=0) > constraint.max_skew:
                return SPREAD
        if not all(self._is_near(term, counts, labels) for term, counts in self._near):
            return AFFINITY
        if any(term.key in labels and counts[labels[term.key]] for term, counts in self._away):
            return ANTI_AFFINITY
        if any(item in self._existing for item in labels.items()):
            return EXISTING_ANTI_AFFINITY
        return ""

    def _is_near(self, term: Term, counts: Counter[str], labels: Mapping[str, str]) -> bool:
        if term.key not in labels:
            return False
        if counts[labels[term.key]]:
            return True
        # The first of a group that wants its own company has to be let in somewhere.
        return not counts.total() and term.matches(self._pod.namespace, self._pod.labels)


def topology_for(pod: PodInfo, nodes: Sequence[NodeInfo], *, guarded: bool) -> Topology | None:
    """The domains to look at, None where nobody demands anything.

    ``guarded`` says that some placed pod has anti-affinity rules.
    """
    if pod.rules is NO_RULES and not guarded:
        return None
    return Topology(pod, nodes)


def _count(term: Term, nodes: Iterable[NodeInfo], *, every_domain: bool = False) -> Counter[str]:
    counts: Counter[str] = Counter()
    for info in nodes:
        domain = labels_of(info.node).get(term.key) if info.node is not None else None
        if domain is None:
            continue
        found = sum(term.matches(other.namespace, other.labels) for other in info.pods.values())
        if found or every_domain:
            counts[domain] += found
    return counts


def _kept_clear(pod: PodInfo, nodes: Iterable[NodeInfo]) -> dict[tuple[str, str], None]:
    """(key, domain) that placed pods keep clear of a pod like this."""
    found: dict[tuple[str, str], None] = {}
    for info in nodes:
        for other in info.pods.values():
            for term in other.rules.away:
                domain = labels_of(info.node).get(term.key) if info.node is not None else None
                if domain is not None and term.matches(pod.namespace, pod.labels):
                    found[(term.key, domain)] = None
    return found
