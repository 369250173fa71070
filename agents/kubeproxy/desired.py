"""The whole decision of kube-proxy as one function; pure, a reconciler's desired side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents.kubeproxy.modern import modern_ruleset
from agents.kubeproxy.release_1_5 import ruleset_1_5

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from agents.kubeproxy.model import Endpoint, Key, ServicePort
    from agents.kubeproxy.ruleset import NodeConfig, Ruleset


def desired_ruleset(
    services: Iterable[ServicePort],
    endpoints: Mapping[Key, Sequence[Endpoint]],
    node: NodeConfig,
) -> Ruleset:
    """The rules this node needs, in the text of its profile; deterministic in its input."""
    make = modern_ruleset if node.profile == "modern" else ruleset_1_5
    return make(services, endpoints, node)
