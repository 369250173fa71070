"""What the default admission plug-ins refuse or fill in by looking at other objects.

Source: k8s.io/kubernetes plugin/pkg/admission/{serviceaccount,priority}.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.apimachinery import status as errors
from emulator.apimachinery.names import NAME_ALPHABET
from emulator.apimachinery.objects import items, name_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from emulator.apimachinery.objects import Obj

    # directory in the store, namespace, name → the object, None where there is none.
    Look = Callable[[str, str, str], Obj | None]

# Built into every cluster (pkg/apis/scheduling/types.go).
SYSTEM_PRIORITIES: Final = {
    "system-cluster-critical": 2_000_000_000,
    "system-node-critical": 2_000_001_000,
}


# Where programs look for their service account (serviceaccount.DefaultAPITokenMountPath).
TOKEN_PATH: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
# What a kubelet asks of the API server by (WarnOnlyBoundTokenExpirationPeriod).
_TOKEN_SECONDS: Final = 3607
_SUFFIX_LENGTH: Final = 5


def _mount_token(pod: Obj, account: Obj | None, rng: random.Random) -> None:
    """Give every container its account's token, the cluster's CA and the namespace."""
    spec = pod["spec"]
    wanted = spec.get("automountServiceAccountToken")
    if wanted is None:
        wanted = (account or {}).get("automountServiceAccountToken")
    containers = [
        container
        for key in ("initContainers", "containers")
        for container in items(spec, key)
        if all(m.get("mountPath") != TOKEN_PATH for m in items(container, "volumeMounts"))
    ]
    if wanted is False or not containers:
        return
    suffix = "".join(rng.choice(NAME_ALPHABET) for _ in range(_SUFFIX_LENGTH))
    volume = f"kube-api-access-{suffix}"
    for container in containers:
        mount = {"name": volume, "readOnly": True, "mountPath": TOKEN_PATH}
        container.setdefault("volumeMounts", []).append(mount)
    field = {"apiVersion": "v1", "fieldPath": "metadata.namespace"}
    ca = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    sources = [
        {"serviceAccountToken": {"expirationSeconds": _TOKEN_SECONDS, "path": "token"}},
        {"configMap": ca},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": field}]}},
    ]
    projected = {"sources": sources, "defaultMode": 0o644}
    spec.setdefault("volumes", []).append({"name": volume, "projected": projected})


def admit_pod(pod: Obj, namespace: str, look: Look, rng: random.Random) -> None:
    """Check and complete a new pod in place.  StatusError 403.

    The account ``default`` is taken for granted: a controller makes it in every namespace.
    """
    spec, name = pod["spec"], name_of(pod)
    account = spec.get("serviceAccountName") or "default"
    found = look("serviceaccounts", namespace, account)
    if account != "default" and found is None:
        raise errors.forbidden(
            "pods", "", name,
            f"error looking up service account {namespace}/{account}: serviceaccount "
            f'"{account}" not found',
        )  # fmt: skip
    _mount_token(pod, found, rng)
    wanted = spec.get("priorityClassName")
    if not wanted:
        return
    if wanted in SYSTEM_PRIORITIES:
        spec["priority"] = SYSTEM_PRIORITIES[wanted]
        return
    chosen = look("priorityclasses", "", wanted)
    if chosen is None:
        text = f"no PriorityClass with name {wanted} was found"
        raise errors.forbidden("pods", "", name, text)
    spec["priority"] = chosen.get("value") or 0
    spec["preemptionPolicy"] = chosen.get("preemptionPolicy") or "PreemptLowerPriority"
