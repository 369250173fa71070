"""Values as Go's fmt package prints them, for messages that must read like the real ones."""

from __future__ import annotations

import json
from typing import Any


def quote(text: str) -> str:
    """``%q``."""
    return json.dumps(text, ensure_ascii=False)


def string_map(value: Any) -> str:
    """``%#v`` of a ``map[string]string``; Go prints maps sorted by key."""
    if not value:
        return "map[string]string(nil)" if value is None else "map[string]string{}"
    inner = ", ".join(f"{quote(k)}:{quote(str(value[k]))}" for k in sorted(value))
    return f"map[string]string{{{inner}}}"


def string_list(value: Any) -> str:
    """``%#v`` of a ``[]string``."""
    if value is None:
        return "[]string(nil)"
    return f"[]string{{{', '.join(quote(str(v)) for v in value)}}}"


def label_selector(value: Any) -> str:
    """``%#v`` of a ``v1.LabelSelector``."""
    selector = value if isinstance(value, dict) else {}
    expressions = selector.get("matchExpressions")
    if expressions:
        inner = ", ".join(
            f"v1.LabelSelectorRequirement{{Key:{quote(str(e.get('key', '')))}, "
            f"Operator:{quote(str(e.get('operator', '')))}, Values:{string_list(e.get('values'))}}}"
            for e in expressions
        )
        shown = f"[]v1.LabelSelectorRequirement{{{inner}}}"
    else:
        shown = "[]v1.LabelSelectorRequirement(nil)"
    labels = string_map(selector.get("matchLabels"))
    return f"v1.LabelSelector{{MatchLabels:{labels}, MatchExpressions:{shown}}}"
