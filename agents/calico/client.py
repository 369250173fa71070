"""The v3 resources as a person or agent changes them: validated, defaulted, by compare-and-swap.

Source: projectcalico/calico libcalico-go/lib/clientv3.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import uuid
from typing import TYPE_CHECKING, Final

from agents.calico.datastore import Create, Delete, KVPair, Query, Update
from agents.calico.errors import (
    AlreadyExistsError,
    DoesNotExistError,
    ErroredField,
    UpdateConflictError,
    ValidationError,
)
from agents.calico.ipam.block import ReleaseOptions
from agents.calico.ipam.check import tunnel_addresses
from agents.calico.ipam.ipam import Ipam
from agents.calico.ipam.model import block_prefix
from agents.calico.net import Cidr, Ip
from agents.calico.resources import (
    KINDS,
    Resource,
    from_stored,
    key_of_resource,
    name_of,
    namespace_of,
    resource_key,
    resource_prefix,
    spec_of,
    to_stored,
)
from agents.calico.unenforced import refuse_rules
from agents.calico.validation import prepare
from agents.calico.validation_policy import shown_name, storage_name
from agents.calico.validation_pool import check_changed_pool, check_overlap, default_pool_spec

if TYPE_CHECKING:
    import random

    from agents.calico.datastore import Datastore
    from emulator.runtime.clock import Clock

# Between the end of a pool and that of its blocks: assignments under way come to their end.
POOL_PAUSE_S: Final = 0.5
# Writes lost to others before ``apply`` gives up, as clientv3's maxApplyRetries.
APPLY_RETRIES: Final = 10
_POLICIES: Final = ("NetworkPolicy", "GlobalNetworkPolicy")


class ResourceClient:
    """Create, update, apply, delete, get and list of every kind."""

    def __init__(self, datastore: Datastore, clock: Clock, rng: random.Random) -> None:
        self._datastore = datastore
        self._clock = clock
        self._rng = rng
        self._ipam = Ipam(datastore, clock)

    async def get(self, kind: str, name: str, namespace: str = "") -> Resource:
        """Read one; DoesNotExistError names it as ``Kind(name)``."""
        key = self._key(kind, name, namespace)
        found = (await self._datastore.read(Query(key))).one(0)
        resource = self._shown(found) if found else None
        if resource is None:
            raise DoesNotExistError(_label(kind, name, namespace), "<nil>")
        return resource

    async def list(self, kind: str, namespace: str = "") -> list[Resource]:
        """Read all of a kind, of one namespace if given, sorted by key."""
        prefix = resource_prefix(kind, namespace)
        found = (await self._datastore.read(Query(prefix, prefix=True))).results[0]
        shown = [self._shown(kvp) for kvp in found]
        return [resource for resource in shown if resource is not None]

    async def create(self, resource: Resource) -> Resource:
        """Make a resource; AlreadyExistsError, ValidationError."""
        if resource.get("metadata", {}).get("resourceVersion"):
            raise ValidationError(
                ErroredField(
                    "Metadata.ResourceVersion",
                    "field must not be set for a Create request",
                    resource["metadata"]["resourceVersion"],
                )
            )
        ready = prepare(resource)
        refuse_rules(ready)
        if ready["kind"] == "IPPool":
            await self._check_new_pool(ready)
        metadata = ready["metadata"]
        if not metadata.get("creationTimestamp"):
            metadata["creationTimestamp"] = self._clock.rfc3339()
        if not metadata.get("uid"):
            metadata["uid"] = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        stored = self._stored(ready)
        try:
            revision = await self._datastore.commit(Create(key_of_resource(stored), stored))
        except AlreadyExistsError:
            raise AlreadyExistsError(_label_of(ready)) from None
        return _with_version(ready, revision)

    async def update(self, resource: Resource) -> Resource:
        """Replace a resource that must still have its ``metadata.resourceVersion``."""
        ready = prepare(resource)
        refuse_rules(ready)
        version = ready["metadata"].get("resourceVersion")
        if not version:
            raise ValidationError(
                ErroredField(
                    "Metadata.ResourceVersion", "field must be set for an Update request", ""
                )
            )
        label = _label_of(ready)
        if not str(version).isdigit():
            raise UpdateConflictError(label)
        if ready["kind"] == "IPPool":
            old = await self.get("IPPool", name_of(ready))
            check_changed_pool(old, ready)
        stored = self._stored(ready)
        kvp = KVPair(key_of_resource(stored), stored, int(version))
        try:
            revision = await self._datastore.commit(Update(kvp))
        except DoesNotExistError:
            raise DoesNotExistError(label, "<nil>") from None
        except UpdateConflictError:
            raise UpdateConflictError(label) from None
        return _with_version(ready, revision)

    async def apply(self, resource: Resource, *, keep_labels: bool = False) -> Resource:
        """Create, or replace what is there; keeps its uid and creation time.

        ``keep_labels``: its labels and annotations stay, too, unless the new ones say otherwise.
        """
        kind, name, namespace = resource["kind"], name_of(resource), namespace_of(resource)
        pinned = resource["metadata"].get("resourceVersion")
        for _ in range(APPLY_RETRIES):
            try:
                old = await self.get(kind, name, namespace)
            except DoesNotExistError:
                try:
                    return await self.create(resource)
                except AlreadyExistsError:
                    continue
            try:
                return await self.update(_over(old, resource, keep_labels=keep_labels))
            except (UpdateConflictError, DoesNotExistError):
                if pinned:
                    raise
        raise UpdateConflictError(_label_of(resource))

    async def replace(self, resource: Resource) -> Resource:
        """Put a resource in the place of one, whose labels stay; DoesNotExistError."""
        kind, name, namespace = resource["kind"], name_of(resource), namespace_of(resource)
        pinned = resource["metadata"].get("resourceVersion")
        for _ in range(APPLY_RETRIES):
            old = await self.get(kind, name, namespace)
            try:
                return await self.update(_over(old, resource, keep_labels=True))
            except UpdateConflictError:
                if pinned:
                    raise
        raise UpdateConflictError(_label_of(resource))

    async def delete(
        self, kind: str, name: str, namespace: str = "", *, resource_version: str = ""
    ) -> None:
        """Remove a resource; DoesNotExistError, UpdateConflictError for another version.

        With a Node goes all that is its own; a pool is disabled first and its blocks given up.
        """
        revision = int(resource_version) if resource_version.isdigit() else 0
        if kind == "IPPool":
            await self._empty_pool(name, resource_version)
            revision = 0
        elif kind == "Node":
            await self._forget_node(name)
        key = self._key(kind, name, namespace)
        try:
            await self._datastore.commit(Delete(key, revision))
        except DoesNotExistError:
            raise DoesNotExistError(_label(kind, name, namespace), "<nil>") from None

    async def _empty_pool(self, name: str, resource_version: str) -> None:
        pool = await self.get("IPPool", name)
        if not pool["spec"].get("disabled"):
            pool["spec"]["disabled"] = True
            if resource_version:
                pool["metadata"]["resourceVersion"] = resource_version
            await self.update(pool)
        # Whoever is about to write a block of it has read the pool before it was disabled.
        await asyncio.sleep(POOL_PAUSE_S)
        await self._ipam.release_pool_affinities(Cidr.parse(pool["spec"]["cidr"]))

    async def _forget_node(self, name: str) -> None:
        """Release and delete what a node had (clientv3 node.go Delete)."""
        endpoints = [
            each
            for each in await self.list("WorkloadEndpoint")
            if spec_of(each).get("node") == name
        ]
        held = [text for each in endpoints for text in spec_of(each).get("ipNetworks") or ()]
        with contextlib.suppress(DoesNotExistError):
            held += tunnel_addresses(spec_of(await self.get("Node", name)))
        outcome = await self._ipam.release_ips(
            *(ReleaseOptions(Ip.parse(text.partition("/")[0])) for text in held)
        )
        if outcome.failure is not None:
            raise outcome.failure
        await self._ipam.remove_host(name)
        owned = [("WorkloadEndpoint", each) for each in endpoints]
        for kind in ("BGPPeer", "HostEndpoint"):
            found = await self.list(kind)
            owned += [(kind, each) for each in found if spec_of(each).get("node") == name]
        for kind, each in owned:
            with contextlib.suppress(DoesNotExistError):
                await self.delete(kind, name_of(each), namespace_of(each))
        for kind in ("FelixConfiguration", "BGPConfiguration"):
            with contextlib.suppress(DoesNotExistError):
                await self.delete(kind, f"node.{name}")

    def _key(self, kind: str, name: str, namespace: str) -> str:
        if KINDS[kind].namespaced and not namespace:
            raise ValidationError(
                ErroredField(
                    "Metadata.Namespace", "namespace is not specified on namespaced resource"
                )
            )
        return resource_key(kind, storage_name(name) if kind in _POLICIES else name, namespace)

    def _stored(self, resource: Resource) -> Resource:
        stored = to_stored(resource)
        if resource["kind"] in _POLICIES:
            stored["metadata"]["name"] = storage_name(name_of(resource))
        return stored

    def _shown(self, kvp: KVPair) -> Resource | None:
        resource = from_stored(kvp)
        if resource is None:
            return None
        if resource.get("kind") in _POLICIES:
            resource["metadata"]["name"] = shown_name(name_of(resource))
        elif resource.get("kind") == "IPPool":
            default_pool_spec(resource["spec"])
        return resource

    async def _check_new_pool(self, pool: Resource) -> None:
        """No overlap with another pool, nor with blocks of another size."""
        spec = pool["spec"]
        cidr = Cidr.parse(spec["cidr"])
        pools, blocks = (
            await self._datastore.read(
                Query(resource_prefix("IPPool"), prefix=True),
                Query(block_prefix(cidr.version), prefix=True),
            )
        ).results
        others = (from_stored(kvp) for kvp in pools)
        check_overlap(pool, (other for other in others if other is not None))
        for kvp in blocks:
            block = Cidr.parse(kvp.key.rpartition("/")[2].replace("-", "/"))
            if block.length != spec["blockSize"] and block.overlaps(cidr):
                raise ValidationError(
                    ErroredField(
                        "IPPool.Spec.BlockSize",
                        "IPPool blocksSize conflicts with existing allocations that use a "
                        "different blockSize",
                        spec["blockSize"],
                    )
                )


def _over(old: Resource, new: Resource, *, keep_labels: bool) -> Resource:
    """A resource for the place of another: what the old one is stays."""
    merged = copy.deepcopy(new)
    metadata = {**merged["metadata"]}
    for field in ("uid", "creationTimestamp"):
        metadata[field] = old["metadata"].get(field)
    metadata.setdefault("resourceVersion", old["metadata"]["resourceVersion"])
    for field in ("labels", "annotations") if keep_labels else ():
        both = {**(old["metadata"].get(field) or {}), **(metadata.get(field) or {})}
        if both:
            metadata[field] = both
    return {**merged, "metadata": metadata}


def _label(kind: str, name: str, namespace: str) -> str:
    """What errors call a resource: ``Kind(name)`` or ``Kind(namespace/name)``."""
    return f"{kind}({namespace}/{name})" if namespace else f"{kind}({name})"


def _label_of(resource: Resource) -> str:
    return _label(resource["kind"], name_of(resource), namespace_of(resource))


def _with_version(resource: Resource, revision: int) -> Resource:
    resource["metadata"]["resourceVersion"] = str(revision)
    return resource
