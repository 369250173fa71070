"""Decoding with the schema: wrong types fail, unknown and duplicate fields are reported.

The API server's decoder is Go's encoding/json into typed structs plus a strict pass
(sigs.k8s.io/json); messages are theirs.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery.gotext import quote
from emulator.apimachinery.shapes import SCALARS, Shapes, TypeShape, go_type
from emulator.errors import UsageError

if TYPE_CHECKING:
    from emulator.apimachinery.objects import Obj

# The real strict decoder stops after 100 findings (json.UnmarshalStrict).
MAX_STRICT_ERRORS: Final = 100
_INT_RANGE = {"i": 1 << 31, "I": 1 << 63}
_NOT_BASE64: Final = re.compile(r"[^A-Za-z0-9+/=]")
_JSON_NAMES = ((bool, "bool"), (str, "string"), (dict, "object"), (list, "array"))


class DecodeError(UsageError):
    """A body that does not decode into its kind."""


class _Pairs(dict[str, Any]):
    """A dict that remembers which of its keys came twice."""

    __slots__ = ("repeated",)
    repeated: tuple[str, ...]


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    found = _Pairs(plain)
    seen: dict[str, int] = {}
    for key, _ in pairs:
        seen[key] = seen.get(key, 0) + 1
    found.repeated = tuple(k for k, n in seen.items() if n > 1)
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"invalid character {text[0]!r} looking for beginning of value")


def load_json(data: bytes) -> Any:
    """Parse JSON, remembering duplicate keys for ``check``; DecodeError for anything else."""
    try:
        return json.loads(data, object_pairs_hook=_pairs, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"couldn't get version/kind; json parse error: {error}") from None


def check(obj: Obj, type_name: str, shapes: Shapes, *, strict: bool) -> list[str]:
    """Check ``obj`` against its type; return strict findings (empty unless ``strict``).

    Raises DecodeError for a value of the wrong JSON type.  Unknown fields are removed from
    ``obj`` in place, as decoding into a Go struct loses them.  Of an object without a type only
    the metadata is known.
    """
    walker = _Walker(shapes, strict)
    shape = shapes.type(type_name)
    if shape is not None:
        walker.struct(obj, shape, "", "")
        return walker.findings
    meta, meta_shape = obj.get("metadata"), shapes.type("meta.v1.ObjectMeta")
    if meta is not None and meta_shape is not None:
        if not isinstance(meta, dict):
            raise DecodeError(
                f"json: cannot unmarshal {_json_name(meta)} into Go struct field .metadata of type "
                "v1.ObjectMeta"
            )
        walker.struct(meta, meta_shape, "metadata.", "")
    return walker.findings


class _Walker:
    __slots__ = ("_shapes", "_strict", "findings")

    def __init__(self, shapes: Shapes, strict: bool) -> None:
        self._shapes = shapes
        self._strict = strict
        self.findings: list[str] = []

    def _report(self, text: str) -> None:
        if self._strict and len(self.findings) < MAX_STRICT_ERRORS:
            self.findings.append(text)

    def struct(self, obj: Obj, shape: TypeShape, path: str, stack: str) -> None:
        if isinstance(obj, _Pairs):
            for key in obj.repeated:
                self._report(f"duplicate field {quote(path + key)}")
        unknown: list[str] = []
        for key, value in obj.items():
            field = shape.field(key)
            if field is None:
                unknown.append(key)
                self._report(f"unknown field {quote(path + key)}")
            elif value is not None:
                self._value(value, field.code, path + key, stack + key, shape, obj, key)
        for key in unknown:
            del obj[key]

    def _value(
        self,
        value: Any,
        code: str,
        path: str,
        stack: str,
        owner: TypeShape,
        holder: Any,
        slot: Any,
    ) -> None:
        head = code[0]
        if head == "@":
            if not isinstance(value, dict):
                self._wrong(value, code, stack, owner)
            shape = self._shapes.type(code[1:])
            if shape is not None:
                self.struct(value, shape, path + ".", stack + ".")
        elif head == "[":
            if not isinstance(value, list):
                self._wrong(value, code, stack, owner)
            for i, item in enumerate(value):
                if item is not None:
                    self._value(item, code[1:], f"{path}[{i}]", stack, owner, value, i)
        elif head == "{":
            if not isinstance(value, dict):
                self._wrong(value, code, stack, owner)
            if isinstance(value, _Pairs):
                for key in value.repeated:
                    self._report(f"duplicate field {quote(f'{path}.{key}')}")
            for key, item in value.items():
                if item is not None:
                    self._value(item, code[1:], f"{path}.{key}", stack, owner, value, key)
        else:
            self._scalar(value, code, stack, owner)
            if code == "q" and not isinstance(value, str):
                holder[slot] = str(value)

    def _scalar(self, value: Any, code: str, stack: str, owner: TypeShape) -> None:
        allowed = SCALARS[code][1]
        if isinstance(value, bool) and bool not in allowed:
            self._wrong(value, code, stack, owner)
        if not isinstance(value, allowed):
            self._wrong(value, code, stack, owner)
        if code == "y":
            _check_base64(value)
        bound = _INT_RANGE.get(code)
        if bound is not None and not -bound <= value < bound:
            self._wrong(value, code, stack, owner)

    def _wrong(self, value: Any, code: str, stack: str, owner: TypeShape) -> None:
        if code in ("t", "T") and not isinstance(value, str):
            raise DecodeError(
                f"json: cannot unmarshal {_json_name(value)} into Go value of type string"
            )
        raise DecodeError(
            f"json: cannot unmarshal {_json_name(value)} into Go struct field "
            f"{owner.go_name}.{stack} of type {go_type(code)}"
        )


def _check_base64(text: str) -> None:
    """Go's decoder: line ends are skipped, everything else has to be in its place."""
    plain = text.replace("\r", "").replace("\n", "")
    try:
        base64.b64decode(plain, validate=True)
    except (binascii.Error, ValueError):
        wrong = _NOT_BASE64.search(plain)
        at = wrong.start() if wrong is not None else len(plain) // 4 * 4
        raise DecodeError(f"illegal base64 data at input byte {at}") from None


def _json_name(value: Any) -> str:
    for kind, name in _JSON_NAMES:
        if isinstance(value, kind):
            return name
    return f"number {value}" if isinstance(value, float) else "number"
