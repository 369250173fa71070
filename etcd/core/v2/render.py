"""JSON of the v2 API, byte for byte as Go's encoding/json writes etcd's structures."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from etcd.core.v2.store import SECOND_NS

if TYPE_CHECKING:
    from etcd.core.v2.errors import V2Error
    from etcd.core.v2.hub import Event, Extern
    from etcd.core.v2.store import Node

# Surrogates stand for bytes that are no UTF-8 (surrogateescape).
_SPECIAL: Final = re.compile('[\x00-\x1f"\\\\<>&\u2028\u2029\ud800-\udfff]')
_SHORT: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    if "\ud800" <= char <= "\udfff":
        return "\\ufffd"
    return _SHORT.get(char) or f"\\u{ord(char):04x}"


def quoted(text: str) -> str:
    """Return a JSON string; HTML's special characters are escaped, as Go does by default."""
    return f'"{_SPECIAL.sub(_escape, text)}"'


def rfc3339_nano(unix_ns: int) -> str:
    """Return a UTC time with as many decimals as it needs (Go's time.RFC3339Nano)."""
    days, second = divmod(unix_ns // SECOND_NS, 86_400)
    year, month, day = _civil(days)
    fraction = f"{unix_ns % SECOND_NS:09d}".rstrip("0")
    hour, minute = second // 3600, second // 60 % 60
    text = f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second % 60:02d}"
    return f"{text}.{fraction}Z" if fraction else f"{text}Z"


def _civil(days: int) -> tuple[int, int, int]:
    """Return (year, month, day) of a day since 1970-01-01 in the Gregorian calendar."""
    # Years begin in March here, so the leap day is a year's last.
    days += 719_468
    era, day_of_era = divmod(days, 146_097)
    year = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day = day_of_era - (365 * year + year // 4 - year // 100)
    month = (5 * day + 2) // 153
    day = day - (153 * month + 2) // 5 + 1
    month += 3 if month < 10 else -9
    return year + era * 400 + (month <= 2), month, day


def _open(node: Extern) -> str:
    """Return a node's fields before its children, without the closing brace."""
    fields = []
    if node.key:
        fields.append(f'"key":{quoted(node.key)}')
    if node.value is not None:
        fields.append(f'"value":{quoted(node.value)}')
    if node.dir:
        fields.append('"dir":true')
    if node.expiration_ns:
        fields.append(f'"expiration":"{rfc3339_nano(node.expiration_ns)}"')
    if node.ttl_s:
        fields.append(f'"ttl":{node.ttl_s}')
    return "{" + ",".join(fields)


def _close(node: Extern) -> str:
    fields = []
    if node.modified:
        fields.append(f',"modifiedIndex":{node.modified}')
    if node.created:
        fields.append(f',"createdIndex":{node.created}')
    return "".join(fields) + "}"


def event_json(event: Event, *, values: bool = True) -> str:
    """Return an event's line; ``values`` False leaves the nodes out (noValueOnSuccess)."""
    parts = [f'{{"action":"{event.action}"']
    if values:
        parts.append(f',"node":{_open(event.node)}{_close(event.node)}')
        if event.previous is not None:
            parts.append(f',"prevNode":{_open(event.previous)}{_close(event.previous)}')
    parts.append("}\n")
    return "".join(parts)


def get_json(node: Node, *, recursive: bool, in_order: bool, now_ns: int) -> str:
    """Return the answer to a GET: a file, or a directory with its visible children.

    Without ``recursive`` directories inside it are shown without theirs.  ``in_order`` sorts the
    children of each directory by key.
    """
    parts = ['{"action":"get","node":']
    # Strings are written as they are met, nodes opened; a pair is (node, whether it comes first).
    todo: list[str | tuple[Node, bool]] = [(node, True)]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            parts.append(item)
            continue
        current, first = item
        shown = current.extern(now_ns)
        parts.append(_open(shown) if first else "," + _open(shown))
        children = []
        if current.children and (recursive or current is node):
            children = [child for child in current.children.values() if not child.hidden]
            if in_order:
                children.sort(key=_key_bytes)
        if not children:
            parts.append(_close(shown))
            continue
        parts.append(',"nodes":[')
        todo.append("]" + _close(shown))
        todo += [(child, child is children[0]) for child in reversed(children)]
    parts.append("}\n")
    return "".join(parts)


def _key_bytes(node: Node) -> bytes:
    return node.path.encode(errors="surrogateescape")


def error_json(error: V2Error) -> str:
    """Return an error's line."""
    cause = f'"cause":{quoted(error.cause)},' if error.cause else ""
    message = quoted(error.message)
    return f'{{"errorCode":{error.code},"message":{message},{cause}"index":{error.index}}}\n'
