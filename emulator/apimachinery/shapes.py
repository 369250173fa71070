"""The shapes of Kubernetes' types: which fields exist, of which type, and how lists merge.

A compact form of the OpenAPI definitions, made at build time.  Each type is
``{"f": {field: code}, "p": {field: [strategies, merge key]}, "l": {field: [list type, keys]},
"a": atomic?}``.  A code is one letter for a scalar, ``[code`` for a list, ``{code`` for a map and
``@Type`` for a struct; the letters are in ``SCALARS``.
"""

from __future__ import annotations

import gzip
import json
from typing import Any, Final, NamedTuple

# letter: (Go's name of the type, the JSON types that decode into it)
SCALARS: Final[dict[str, tuple[str, tuple[type, ...]]]] = {
    "s": ("string", (str,)),
    "i": ("int32", (int,)),
    "I": ("int64", (int,)),
    "b": ("bool", (bool,)),
    "n": ("float64", (int, float)),
    "t": ("Time", (str,)),
    "T": ("MicroTime", (str,)),
    "y": ("[]uint8", (str,)),
    "o": ("intstr.IntOrString", (str, int)),
    "q": ("resource.Quantity", (str, int, float)),
    "x": ("object", (dict, list, str, int, float, bool)),
}


class FieldShape(NamedTuple):
    """One field: its code and how patches and server-side apply treat it."""

    code: str
    strategies: tuple[str, ...] = ()
    merge_key: str = ""
    list_type: str = ""
    list_keys: tuple[str, ...] = ()
    atomic: bool = False

    @property
    def struct(self) -> str:
        """The struct behind the field or behind its elements, "" where there is none."""
        code = self.code.lstrip("[{")
        return code[1:] if code.startswith("@") else ""


class TypeShape:
    """One struct."""

    __slots__ = ("_cache", "_data", "atomic", "name")

    def __init__(self, name: str, data: dict[str, Any]) -> None:
        self.name = name
        self.atomic = bool(data.get("a"))
        self._data = data
        self._cache: dict[str, FieldShape] = {}

    def __contains__(self, field: str) -> bool:
        return field in self._data["f"]

    def field(self, name: str) -> FieldShape | None:
        """The field's shape, None if the type has no such field."""
        found = self._cache.get(name)
        if found is None:
            code = self._data["f"].get(name)
            if code is None:
                return None
            strategies, key = self._data.get("p", {}).get(name, ("", ""))
            list_type, keys = self._data.get("l", {}).get(name, ("", ()))
            found = self._cache[name] = FieldShape(
                code,
                tuple(strategies.split(",")) if strategies else (),
                key,
                list_type,
                tuple(keys),
                name in self._data.get("m", ()),
            )
        return found

    @property
    def go_name(self) -> str:
        """The struct's own name: ``PodSpec``."""
        return self.name.rsplit(".", 1)[-1]


class Shapes:
    """All types by their short name: ``core.v1.Pod``, ``meta.v1.ObjectMeta``."""

    def __init__(self, types: dict[str, dict[str, Any]]) -> None:
        self._data = types
        self._types: dict[str, TypeShape] = {}

    @classmethod
    def load(cls, data: bytes) -> Shapes:
        """From the gzip-compressed JSON that the build makes."""
        return cls(json.loads(gzip.decompress(data)))

    def type(self, name: str) -> TypeShape | None:
        """The type, None for unknown names (free-form objects)."""
        found = self._types.get(name)
        if found is None:
            data = self._data.get(name)
            if data is None:
                return None
            found = self._types[name] = TypeShape(name, data)
        return found


def go_type(code: str) -> str:
    """How Go names a field's type in an unmarshal error."""
    if code.startswith("["):
        return "[]" + go_type(code[1:])
    if code.startswith("{"):
        return "map[string]" + go_type(code[1:])
    if code.startswith("@"):
        parts = code[1:].split(".")
        return f"{parts[-2]}.{parts[-1]}" if len(parts) > 1 else parts[-1]
    return SCALARS[code][0]
