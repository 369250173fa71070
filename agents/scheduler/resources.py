"""What pods ask for and nodes have, in integers; pure.

Source: k8s.io/component-helpers/resource/helpers.go (PodRequests).
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

from emulator.apimachinery import quantity
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    # Resource name -> amount; cpu in thousandths of a core, everything else in its unit (bytes).
    Amounts = dict[str, int]

# A container that asks for nothing is scored as if it asked for this (GetNonzeroRequests).
DEFAULT_CPU_MILLI = 100
DEFAULT_MEMORY_BYTES = 200 * 1024 * 1024


# Distinct quantities in a cluster are few; the same strings come back with every pod.
@functools.lru_cache(maxsize=4096)
def amount(name: str, text: str) -> int:
    """A quantity in the unit of its resource, rounded up; 0 for what does not parse."""
    try:
        value = quantity.parse(text)
    except UsageError:
        return 0
    return math.ceil(value * 1000 if name == "cpu" else value)


def amounts(quantities: Mapping[str, Any] | None) -> Amounts:
    """A resource list as integers."""
    return {name: amount(name, str(text)) for name, text in (quantities or {}).items()}


def pod_requests(spec: Mapping[str, Any]) -> Amounts:
    """What a pod needs at once: its containers' sum, or its greediest init container's need."""
    total = _sum(_requests(c) for c in spec.get("containers") or ())
    sidecars: Amounts = {}
    peak: Amounts = {}
    for container in spec.get("initContainers") or ():
        requests = _requests(container)
        if container.get("restartPolicy") == "Always":
            sidecars = _sum((sidecars, requests))
            requests = sidecars
        else:
            requests = _sum((sidecars, requests))
        peak = _max(peak, requests)
    return _sum((_max(_sum((total, sidecars)), peak), amounts(spec.get("overhead"))))


def nonzero_requests(spec: Mapping[str, Any]) -> tuple[int, int]:
    """(cpu milli, memory bytes) for scoring, where silence counts as a small need."""
    cpu = memory = 0
    for container in spec.get("containers") or ():
        requests = _requests(container)
        cpu += requests.get("cpu", DEFAULT_CPU_MILLI)
        memory += requests.get("memory", DEFAULT_MEMORY_BYTES)
    return cpu, memory


def _requests(container: Mapping[str, Any]) -> Amounts:
    resources = container.get("resources") or {}
    # A limit without a request is a request (the API server defaults it so).
    return amounts(resources.get("limits")) | amounts(resources.get("requests"))


def _sum(parts: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return total


def _max(left: Amounts, right: Amounts) -> Amounts:
    return {name: max(left.get(name, 0), right.get(name, 0)) for name in {**left, **right}}
