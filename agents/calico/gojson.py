"""JSON as Go's encoding/json writes it: compact, <, > and & escaped (pure)."""

from __future__ import annotations

import json
from typing import Any

# json.Marshal escapes these inside strings; outside strings JSON has none of them.
_ESCAPES = (
    ("<", "\\u003c"),
    (">", "\\u003e"),
    ("&", "\\u0026"),
    ("\u2028", "\\u2028"),
    ("\u2029", "\\u2029"),
)

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)


def dumps(value: Any) -> bytes:
    """Encode; dicts keep their order (a Go struct's), sort what would be a Go map beforehand."""
    text = _ENCODER.encode(value)
    for char, escape in _ESCAPES:
        if char in text:
            text = text.replace(char, escape)
    return text.encode()
