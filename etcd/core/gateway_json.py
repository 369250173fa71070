"""Protobuf messages as the JSON of grpc-gateway: golang/protobuf's jsonpb, with its errors.

Out: names as in the .proto files, 64-bit integers as strings, bytes in base64, enums by name,
fields of default value left out.  In: either spelling of names, numbers as numbers or strings,
enums by name or number, unknown fields ignored.

Source: github.com/golang/protobuf jsonpb/{encode,decode}.go, Go's encoding/{json,base64}.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from etcd.core import gojson
from etcd.core.gojson import GoJsonError, Number

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from etcd.core.gojson import Value

    # The runtime in C has a descriptor class of its own, of the same shape.
    _Field = Any

_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: ("int32", -(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: ("int64", -(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: ("uint32", 0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: ("uint64", 0, (1 << 64) - 1),
}


def message_text(message: Message) -> str:
    """Return a message as JSON."""
    return gojson.dumps(json_format.MessageToDict(message, preserving_proto_field_name=True))


def fill(message: Message, value: Value) -> None:
    """Set a message's fields from a JSON value; GoJsonError with Go's text if they do not fit."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise _mismatch(value, "map[string]json.RawMessage")
    for field in message.DESCRIPTOR.fields:
        for name in (field.name, field.json_name):
            if name in value:
                given = value[name]
                if given is not None:
                    _set(message, field, given)
                break


def _kind(value: Value) -> str:
    match value:
        case bool():
            return "bool"
        case str():
            return "string"
        case Number():
            return "number"
        case dict():
            return "object"
        case _:
            return "array"


def _mismatch(value: Value, go_type: str) -> GoJsonError:
    return GoJsonError(f"json: cannot unmarshal {_kind(value)} into Go value of type {go_type}")


def _set(message: Message, field: _Field, value: Value) -> None:
    if field.is_repeated:
        if not isinstance(value, list):
            raise _mismatch(value, "[]json.RawMessage")
        into = getattr(message, field.name)
        for item in value:
            if field.message_type is not None:
                fill(into.add(), item)
            else:
                into.append(field.default_value if item is None else _scalar(field, item))
    elif field.message_type is not None:
        below = getattr(message, field.name)
        below.SetInParent()
        fill(below, value)
    else:
        setattr(message, field.name, _scalar(field, value))


def _scalar(field: _Field, value: Value) -> Any:
    cpp_type = field.cpp_type
    if cpp_type in _INTEGERS:
        return _integer(value, *_INTEGERS[cpp_type])
    if cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return _enum(field, value)
    if cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise _mismatch(value, "bool")
        return value
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes(value)
    if not isinstance(value, str):
        raise _mismatch(value, "string")
    # Halves of surrogate pairs become what Go makes of them.
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _integer(value: Value, go_type: str, low: int, high: int) -> int:
    if isinstance(value, str):
        # jsonpb takes the quotes away and reads what is between them.
        value = gojson.whole(value.encode("utf-8", "replace"))
        if value is None:
            return 0
    if not isinstance(value, Number):
        raise _mismatch(value, go_type)
    text = value.text
    digits = text.removeprefix("-")
    if digits.isdigit() and len(digits) < 21 and low <= int(text) <= high:
        return int(text)
    raise GoJsonError(f"json: cannot unmarshal number {text} into Go value of type {go_type}")


def _enum(field: _Field, value: Value) -> int:
    enum = field.enum_type
    assert enum is not None, "asked only of enums"
    if isinstance(value, str):
        known = enum.values_by_name.get(value)
        if known is None:
            raw = json.dumps(json.dumps(value))
            raise GoJsonError(f"unknown value {raw} for enum {enum.full_name}")
        return int(known.number)
    return _integer(value, "protoreflect.EnumNumber", -(1 << 31), (1 << 31) - 1)


def _bytes(value: Value) -> bytes:
    if isinstance(value, list):
        out = bytearray()
        for item in value:
            if item is None:
                out.append(0)
            else:
                out.append(_byte(item))
        return bytes(out)
    if not isinstance(value, str):
        raise _mismatch(value, "[]uint8")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return _slow_base64(value.encode("utf-8", "replace"))


def _byte(value: Value) -> int:
    if not isinstance(value, Number):
        raise _mismatch(value, "uint8")
    return _integer(value, "uint8", 0, 255)


def _slow_base64(text: bytes) -> bytes:
    """Decode as Go does (line ends are skipped), or name the byte Go names."""
    kept = bytes(char for char in text if char not in b"\r\n")
    at = wrong_at(text)
    if at is not None:
        raise GoJsonError(f"illegal base64 data at input byte {at}")
    return base64.b64decode(kept)


def wrong_at(text: bytes) -> int | None:
    """Return where Go's base64 decoder gives up, None if it does not (base64.go decodeQuantum)."""
    at, size = 0, len(text)
    while True:
        count = 0
        while count < 4:
            if at == size:
                return None if count == 0 else at - count
            char = text[at]
            at += 1
            if char in _BASE64:
                count += 1
            elif char == ord("="):
                return _after_padding(text, at, count)
            elif char not in b"\r\n":
                return at - 1


def _after_padding(text: bytes, at: int, count: int) -> int | None:
    size = len(text)

    def skip(at: int) -> int:
        while at < size and text[at] in b"\r\n":
            at += 1
        return at

    if count < 2:
        return at - 1
    if count == 2:
        at = skip(at)
        if at == size:
            return size
        if text[at] != ord("="):
            return at - 1
        at += 1
    at = skip(at)
    return at if at < size else None
