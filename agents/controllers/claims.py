"""Adoption and release: which objects belong to an owner; pure.

Source: k8s.io/kubernetes/pkg/controller/controller_ref_manager.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agents.controllers.actions import Patch
from emulator.apimachinery.labels import Selector, SelectorError, from_label_selector
from emulator.kubeclient.meta import (
    controller_of,
    is_deleting,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
    uid_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from emulator.kubeclient.resource import Resource

    Object = dict[str, Any]


class Claims(NamedTuple):
    """Objects that are ours now, and the patches that make it so."""

    mine: list[Object]
    patches: tuple[Patch, ...]


def selector_of(owner: Mapping[str, Any]) -> Selector | None:
    """The selector of a workload; None for one that is missing, empty or malformed.

    An empty selector would claim everything in the namespace: nobody means that.
    """
    try:
        selector = from_label_selector(owner["spec"].get("selector"))
    except SelectorError:
        return None
    return selector if selector is not None and selector.requirements else None


def claim(
    owner: Mapping[str, Any],
    resource: Resource,
    selector: Selector,
    objects: Iterable[Object],
    of: Resource,
) -> Claims:
    """Sort out ``objects`` (kind ``of``): keep, adopt, release or leave alone.

    Orphans that match are adopted; own objects that match no more are released.  An owner that is
    being deleted adopts and releases nothing.
    """
    mine: list[Object] = []
    patches: list[Patch] = []
    uid = uid_of(owner)
    for obj in objects:
        matches = selector.matches(labels_of(obj))
        controller = controller_of(obj)
        if controller is not None:
            if controller.get("uid") != uid:
                continue
            if matches:
                mine.append(obj)
            elif not is_deleting(owner):
                patches.append(_release(obj, uid, of))
        elif matches and not is_deleting(owner) and not is_deleting(obj):
            mine.append(obj)
            patches.append(_adopt(obj, owner_reference(owner, resource), of))
    return Claims(mine, tuple(patches))


def _adopt(obj: Object, reference: Object, of: Resource) -> Patch:
    owners = [*(obj["metadata"].get("ownerReferences") or ()), reference]
    return _set_owners(obj, owners, of)


def _release(obj: Object, uid: str, of: Resource) -> Patch:
    owners = [o for o in obj["metadata"].get("ownerReferences") or () if o.get("uid") != uid]
    return _set_owners(obj, owners, of)


def _set_owners(obj: Object, owners: list[Object], of: Resource) -> Patch:
    # The uid makes sure that this very object is meant, not a new one of its name.
    meta = {"uid": uid_of(obj), "ownerReferences": owners}
    if version := obj["metadata"].get("resourceVersion"):
        meta["resourceVersion"] = version
    return Patch(of, namespace_of(obj), name_of(obj), {"metadata": meta})
