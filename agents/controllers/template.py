"""Pods from templates, and the hash that tells templates apart; pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from emulator.apimachinery.names import MAX_GENERATED_BASE, NAME_ALPHABET, generate_name
from emulator.kubeclient.meta import name_of, namespace_of, owner_reference

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from emulator.kubeclient.resource import Resource

    Object = dict[str, Any]

HASH_LABEL = "pod-template-hash"


def fnv32a(data: bytes) -> int:
    """FNV-1a, 32 bit (Go's hash/fnv New32a)."""
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


def safe_encode(text: str) -> str:
    """Replace each character by one no word can be made of (apimachinery rand.SafeEncodeString)."""
    return "".join(NAME_ALPHABET[ord(char) % len(NAME_ALPHABET)] for char in text)


def template_hash(template: Mapping[str, Any], collision_count: int | None = None) -> str:
    """The value of ``pod-template-hash``.

    Upstream hashes a dump of its Go structs, whose layout differs by version; this hashes the
    template's canonical JSON, so equal templates have equal hashes and the form is the same.
    """
    canonical = json.dumps(normal(template), sort_keys=True, separators=(",", ":")).encode()
    if collision_count is not None:
        canonical += collision_count.to_bytes(8, "little")
    return safe_encode(str(fnv32a(canonical)))


def normal(template: Mapping[str, Any]) -> Object:
    """A template without what does not count: its hash label and empty fields."""
    cleaned = _without_empty(template)
    found: Object = cleaned if isinstance(cleaned, dict) else {}
    meta = dict(found.get("metadata") or {})
    labels = {k: v for k, v in (meta.pop("labels", None) or {}).items() if k != HASH_LABEL}
    if labels:
        meta["labels"] = labels
    found.pop("metadata", None)
    return found | ({"metadata": meta} if meta else {})


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        pairs = ((key, _without_empty(item)) for key, item in value.items())
        return {key: item for key, item in pairs if item is not None and item != {} and item != []}
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    return value


def pod_from_template(
    owner: Mapping[str, Any], resource: Resource, template: Mapping[str, Any], rng: random.Random
) -> Object:
    """A new pod of ``owner``, named after it with five random characters.

    The name is final, so a repeated POST after a lost answer cannot make a second pod.
    """
    meta = template.get("metadata") or {}
    metadata: Object = {
        "name": generate_name(f"{name_of(owner)}-"[:MAX_GENERATED_BASE], rng),
        "generateName": f"{name_of(owner)}-",
        "namespace": namespace_of(owner),
        "labels": dict(meta.get("labels") or {}),
        "ownerReferences": [owner_reference(owner, resource)],
    }
    if meta.get("annotations"):
        metadata["annotations"] = dict(meta["annotations"])
    if meta.get("finalizers"):
        metadata["finalizers"] = list(meta["finalizers"])
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": json.loads(json.dumps(template.get("spec") or {})),
    }
