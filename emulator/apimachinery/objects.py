"""Reading and writing plain API objects (dicts decoded from JSON)."""

from __future__ import annotations

import copy
import json
from typing import Any

Obj = dict[str, Any]


def copy_json(value: Any) -> Any:
    """A deep copy of JSON data: dicts and lists are copied, scalars are shared."""
    if isinstance(value, dict):
        return {k: copy_json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [copy_json(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else copy.deepcopy(value)


def dump_json(value: Any) -> bytes:
    """Compact JSON as Go's encoder writes it (no blanks, UTF-8), without the final newline."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def dig(obj: Any, *path: str) -> Any:
    """The value at a path of keys, None where anything on the way is missing or not a dict."""
    for key in path:
        if not isinstance(obj, dict):
            return None
        obj = obj.get(key)
    return obj


def sub(obj: Obj, key: str) -> Obj:
    """The dict at ``key``, made if it is missing or null."""
    value = obj.get(key)
    if not isinstance(value, dict):
        value = obj[key] = {}
    return value


def items(obj: Any, *path: str) -> list[Any]:
    """The list at a path, empty where it is missing or not a list."""
    value = dig(obj, *path)
    return value if isinstance(value, list) else []


def name_of(obj: Obj) -> str:
    """``metadata.name`` or ""."""
    return str(dig(obj, "metadata", "name") or "")


def namespace_of(obj: Obj) -> str:
    """``metadata.namespace`` or ""."""
    return str(dig(obj, "metadata", "namespace") or "")


def set_default(obj: Obj, key: str, value: Any) -> None:
    """Set a field that is missing or null, as Go's defaulting of nil pointers does."""
    if obj.get(key) is None:
        obj[key] = value


def drop_nulls(obj: Any) -> Any:
    """Remove null members of dicts, at every depth, in place; the same as a Go round trip.

    A condition's ``lastProbeTime`` stays: Go never leaves a struct of that kind out.
    """
    if isinstance(obj, dict):
        for key in [k for k, v in obj.items() if v is None and k != "lastProbeTime"]:
            del obj[key]
        for value in obj.values():
            drop_nulls(value)
    elif isinstance(obj, list):
        for value in obj:
            drop_nulls(value)
    return obj
