"""What the default admission plug-ins refuse or fill in by looking at other objects.

Source: k8s.io/kubernetes plugin/pkg/admission/{serviceaccount,priority}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.apimachinery import status as errors
from emulator.apimachinery.objects import name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.apimachinery.objects import Obj

    # directory in the store, namespace, name → the object, None where there is none.
    Look = Callable[[str, str, str], Obj | None]

# Built into every cluster (pkg/apis/scheduling/types.go).
SYSTEM_PRIORITIES: Final = {
    "system-cluster-critical": 2_000_000_000,
    "system-node-critical": 2_000_001_000,
}


def admit_pod(pod: Obj, namespace: str, look: Look) -> None:
    """Check and complete a new pod in place.  StatusError 403.

    The account ``default`` is taken for granted: a controller makes it in every namespace.
    """
    spec, name = pod["spec"], name_of(pod)
    account = spec.get("serviceAccountName") or "default"
    if account != "default" and look("serviceaccounts", namespace, account) is None:
        raise errors.forbidden(
            "pods", "", name,
            f"error looking up service account {namespace}/{account}: serviceaccount "
            f'"{account}" not found',
        )  # fmt: skip
    wanted = spec.get("priorityClassName")
    if not wanted:
        return
    if wanted in SYSTEM_PRIORITIES:
        spec["priority"] = SYSTEM_PRIORITIES[wanted]
        return
    found = look("priorityclasses", "", wanted)
    if found is None:
        text = f"no PriorityClass with name {wanted} was found"
        raise errors.forbidden("pods", "", name, text)
    spec["priority"] = found.get("value") or 0
    spec["preemptionPolicy"] = found.get("preemptionPolicy") or "PreemptLowerPriority"
