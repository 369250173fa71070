"""Who is owned by whom, and what must go when owners do; a reconciler.

Source: k8s.io/kubernetes/pkg/controller/garbagecollector (graph_builder.go,
garbagecollector.go).  Background: an owner goes at once, then its dependents.  Foreground: the
owner waits, with a finalizer, for the dependents that block it.  Orphan: the dependents stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from agents.controllers.actions import Delete, Patch, Plan
from emulator.kubeclient.meta import is_deleting, name_of, namespace_of, uid_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulator.kubeclient.resource import Resource

    Object = dict[str, Any]

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"


class Owner(NamedTuple):
    """One owner reference."""

    uid: str
    api_version: str
    kind: str
    name: str
    blocks: bool


class Item(NamedTuple):
    """What the graph keeps of an object."""

    uid: str
    resource: Resource
    namespace: str
    name: str
    resource_version: str
    owners: tuple[Owner, ...]
    deleting: bool
    finalizers: tuple[str, ...]

    @property
    def waits_for_dependents(self) -> bool:
        """In foreground deletion."""
        return self.deleting and FOREGROUND in self.finalizers

    @property
    def orphans_dependents(self) -> bool:
        """Deletion waits until the dependents are let go."""
        return self.deleting and ORPHAN in self.finalizers


def item_of(obj: Object, resource: Resource) -> Item:
    """Read an object's metadata."""
    meta = obj["metadata"]
    return Item(
        uid=uid_of(obj),
        resource=resource,
        namespace=namespace_of(obj),
        name=name_of(obj),
        resource_version=meta.get("resourceVersion", ""),
        owners=tuple(
            Owner(
                o.get("uid", ""),
                o.get("apiVersion", ""),
                o.get("kind", ""),
                o.get("name", ""),
                bool(o.get("blockOwnerDeletion")),
            )
            for o in meta.get("ownerReferences") or ()
        ),
        deleting=is_deleting(obj),
        finalizers=tuple(meta.get("finalizers") or ()),
    )


class OwnerGraph:
    """Every object by uid and, by owner uid, its dependents; both in order of arrival."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._dependents: dict[str, dict[str, None]] = {}

    def get(self, uid: str) -> Item | None:
        """The object, None if it is not here (it may still exist)."""
        return self._items.get(uid)

    def of_resource(self, resource: Resource) -> list[str]:
        """The uids of all objects of a kind."""
        return [uid for uid, item in self._items.items() if item.resource == resource]

    def owned_by_kind(self, resource: Resource) -> list[str]:
        """The uids of all objects that name an owner of a kind, in whichever version."""
        return [
            uid
            for uid, item in self._items.items()
            if any(
                (o.api_version.rpartition("/")[0], o.kind) == (resource.group, resource.kind)
                for o in item.owners
            )
        ]

    def dependents(self, uid: str) -> list[Item]:
        """Objects that name ``uid`` as an owner."""
        return [self._items[one] for one in self._dependents.get(uid, ())]

    def put(self, item: Item) -> list[str]:
        """Add or change an object; returns the uids that deserve a look."""
        old = self._items.get(item.uid)
        if old is not None and old._replace(resource_version=item.resource_version) == item:
            # Only its spec or status changed, which is no concern of ours.
            self._items[item.uid] = item
            return []
        self._unlink(old)
        self._items[item.uid] = item
        for owner in item.owners:
            self._dependents.setdefault(owner.uid, {})[item.uid] = None
        work = [item.uid] if item.owners or item.deleting else []
        if item.waits_for_dependents:
            work += self._dependents.get(item.uid, ())
        # An owner in foreground deletion may wait for a reference that was just dropped.
        work += self._waiting_owners(old)
        return work

    def remove(self, uid: str) -> list[str]:
        """An object is gone; returns the uids that deserve a look: dependents, waiting owners."""
        item = self._items.pop(uid, None)
        self._unlink(item)
        return [*self._dependents.get(uid, ()), *self._waiting_owners(item)]

    def _waiting_owners(self, item: Item | None) -> list[str]:
        found = []
        for owner in item.owners if item is not None else ():
            there = self._items.get(owner.uid)
            if there is not None and there.waits_for_dependents:
                found.append(owner.uid)
        return found

    def _unlink(self, item: Item | None) -> None:
        for owner in item.owners if item is not None else ():
            names = self._dependents.get(owner.uid)
            if names is not None:
                names.pop(item.uid if item is not None else "", None)
                if not names:
                    del self._dependents[owner.uid]


def plan_item(item: Item, graph: OwnerGraph, exists: Mapping[str, bool]) -> Plan:
    """What to do about one object.

    ``exists`` says of each owner's uid whether it does; see ``unknown_owners``.
    """
    if item.orphans_dependents:
        released = [
            _set_owners(one, [o for o in one.owners if o.uid != item.uid])
            for one in graph.dependents(item.uid)
        ]
        return Plan((*released, _drop_finalizer(item, ORPHAN)))
    if item.waits_for_dependents:
        if any(_blocks(one, item.uid) for one in graph.dependents(item.uid)):
            return Plan()
        return Plan((_drop_finalizer(item, FOREGROUND),))
    if item.deleting or not item.owners:
        return Plan()
    solid, waiting = [], []
    for owner in item.owners:
        there = graph.get(owner.uid)
        if there is not None and there.waits_for_dependents:
            waiting.append(owner)
        elif exists[owner.uid]:
            solid.append(owner)
    if solid:
        if len(solid) == len(item.owners):
            return Plan()
        return Plan((_set_owners(item, solid),))
    policy = "Background"
    if waiting and graph.dependents(item.uid):
        policy = "Foreground"
    if ORPHAN in item.finalizers:
        policy = "Orphan"
    elif FOREGROUND in item.finalizers:
        policy = "Foreground"
    return Plan((Delete(item.resource, item.namespace, item.name, item.uid, policy),))


def unknown_owners(item: Item, graph: OwnerGraph) -> list[Owner]:
    """Owners the graph does not hold: only the API server can say whether they exist."""
    return [owner for owner in item.owners if graph.get(owner.uid) is None]


def _blocks(dependent: Item, uid: str) -> bool:
    return any(owner.uid == uid and owner.blocks for owner in dependent.owners)


def _set_owners(item: Item, owners: list[Owner]) -> Patch:
    # A strategic patch would name the reference to drop, but custom resources have none, and a
    # merge patch would need the others whole.  The tests make it miss an object that has changed.
    path = "/metadata/ownerReferences"
    body: list[Object] = [{"op": "test", "path": "/metadata/uid", "value": item.uid}]
    for at, owner in reversed([*enumerate(item.owners)]):
        if owner not in owners:
            body.append({"op": "test", "path": f"{path}/{at}/uid", "value": owner.uid})
            body.append({"op": "remove", "path": f"{path}/{at}"})
    return Patch(item.resource, item.namespace, item.name, body, kind="json")


def _drop_finalizer(item: Item, finalizer: str) -> Patch:
    body = {
        "metadata": {
            "uid": item.uid,
            "resourceVersion": item.resource_version,
            "finalizers": [f for f in item.finalizers if f != finalizer],
        }
    }
    return Patch(item.resource, item.namespace, item.name, body)
