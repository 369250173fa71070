"""Loop of what every namespace is given: its service account and the cluster's CA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.controllers.actions import Create, Patch, Plan
from emulator.kubeclient.controller import Controller
from emulator.kubeclient.errors import ApiError
from emulator.kubeclient.meta import is_deleting, key_of, name_of, namespace_of
from emulator.kubeclient.resource import CONFIGMAPS, NAMESPACES, SERVICEACCOUNTS

if TYPE_CHECKING:
    from agents.controllers.shell import Shell

    Object = dict[str, Any]

DEFAULT_ACCOUNT = "default"
ROOT_CA = "kube-root-ca.crt"
ROOT_CA_DESCRIPTION = (
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal "
    "endpoints such as the internal service IP or kubernetes.default.svc. No other usage is "
    "guaranteed across distributions of Kubernetes clusters."
)


def plan_furnishing(
    namespace: Object | None, account: Object | None, config_map: Object | None, ca_pem: str
) -> Plan:
    """Make what is missing of the service account ``default`` and ConfigMap kube-root-ca.crt."""
    if namespace is None or is_deleting(namespace):
        return Plan()
    name = name_of(namespace)
    actions: list[Create | Patch] = []
    if account is None:
        meta = {"name": DEFAULT_ACCOUNT, "namespace": name}
        obj = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}
        actions.append(Create(SERVICEACCOUNTS, obj))
    data = {"ca.crt": ca_pem}
    if config_map is None:
        meta = {"name": ROOT_CA, "namespace": name}
        annotations = {"kubernetes.io/description": ROOT_CA_DESCRIPTION}
        obj = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {**meta, "annotations": annotations},
            "data": data,
        }
        actions.append(Create(CONFIGMAPS, obj))
    elif (config_map.get("data") or {}) != data:
        actions.append(Patch(CONFIGMAPS, name, ROOT_CA, {"data": data}))
    return Plan(tuple(actions))


class FurnishingLoop:
    """Keeps every namespace furnished."""

    def __init__(self, shell: Shell, ca_pem: str) -> None:
        self._shell = shell
        self._ca_pem = ca_pem
        informers = shell.informers
        self._namespaces = informers.informer(NAMESPACES)
        self._accounts = informers.informer(
            SERVICEACCOUNTS, field_selector=f"metadata.name={DEFAULT_ACCOUNT}"
        )
        self._config_maps = informers.informer(
            CONFIGMAPS, field_selector=f"metadata.name={ROOT_CA}"
        )
        self._controller = Controller("furnishing", self._reconcile, log=shell.env.log)
        shell.controllers.append(self._controller)
        for informer in (self._namespaces, self._accounts, self._config_maps):
            informer.add_handler(self._on_change)

    def _on_change(self, event: str, old: Object | None, new: Object | None) -> None:
        obj = new if new is not None else old
        assert obj is not None
        self._controller.queue.add(namespace_of(obj) or key_of(obj))

    async def _reconcile(self, name: str) -> float | None:
        plan = plan_furnishing(
            self._namespaces.lister.get("", name),
            self._accounts.lister.get(name, DEFAULT_ACCOUNT),
            self._config_maps.lister.get(name, ROOT_CA),
            self._ca_pem,
        )
        for action in plan.actions:
            try:
                await self._shell.do(action)
            except ApiError as error:
                # Made by someone else, or the namespace has begun to go.
                if not error.is_already_exists and error.status not in (403, 404):
                    raise
        return None


def add_namespaces(shell: Shell, ca_pem: str) -> None:
    """Append the loop to the shell's controllers."""
    FurnishingLoop(shell, ca_pem)
