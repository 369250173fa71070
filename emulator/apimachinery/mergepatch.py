"""JSON merge patch, RFC 7396."""

from __future__ import annotations

from typing import Any

from emulator.apimachinery.objects import copy_json


def apply(target: Any, patch: Any) -> Any:
    """The patched value; neither argument is changed."""
    if not isinstance(patch, dict):
        return copy_json(patch)
    out: dict[str, Any] = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = apply(out.get(key), value)
    return out
