"""Request bodies in Kubernetes' protobuf, decoded to what their JSON would have been.

kubectl from 1.32 on sends typed objects so.  Envelope: ``k8s\\0`` then ``runtime.Unknown``
(apimachinery/pkg/runtime/generated.proto).  Message tables come from ``data/protobuf.json.gz``;
the format of a table is in ``data/messages.py``.
"""

from __future__ import annotations

import base64
import datetime
import struct
from typing import TYPE_CHECKING, Any, Final

from emulator.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from emulator.apimachinery.objects import Obj

    Tables = Mapping[str, Mapping[str, tuple[str, str, str]]]

MAGIC: Final = b"k8s\0"
# Nesting of real objects is below 20; JSONSchemaProps recurse, so leave room.
MAX_DEPTH: Final = 64


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise WireError("protobuf: truncated or overlong varint")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, varint as int or everything else as bytes) of one message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire == 1:
            size = 8
        elif wire == 5:
            size = 4
        else:
            raise WireError(f"protobuf: wire type {wire} of field {number}")
        if at + size > len(data):
            raise WireError(f"protobuf: field {number} is cut short")
        yield number, data[at : at + size]
        at += size


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _text(value: int | bytes) -> str:
    if not isinstance(value, bytes):
        raise WireError("protobuf: text expected, got a number")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise WireError("protobuf: text is not UTF-8") from None


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise WireError("protobuf: message expected, got a number")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise WireError("protobuf: number expected, got bytes")
    return _signed(value)


def _double(data: bytes) -> float:
    if len(data) != 8:
        raise WireError(f"protobuf: a double of {len(data)} bytes")
    value: float = struct.unpack("<d", data)[0]
    return value


def _time(data: bytes, *, micro: bool) -> str | None:
    parts = {number: _int(value) for number, value in _fields(data)}
    if not parts:
        return None
    try:
        moment = datetime.datetime.fromtimestamp(parts.get(1, 0), datetime.UTC)
    except (OverflowError, OSError, ValueError):
        raise WireError(f"protobuf: time {parts.get(1)} is out of range") from None
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{parts.get(2, 0) // 1000:06d}Z" if micro else text + "Z"


def _int_or_string(data: bytes) -> int | str:
    parts = dict(_fields(data))
    if _int(parts.get(1, 0)) == 1:
        return _text(parts.get(3, b""))
    return _int(parts.get(2, 0))


def _raw(data: bytes) -> Any:
    import json

    raw = _bytes(dict(_fields(data)).get(1, b""))
    if not raw:
        return None
    try:
        return json.loads(raw)
    except ValueError:
        raise WireError("protobuf: embedded JSON does not parse") from None


class Decoder:
    """Decodes envelopes with one set of message tables."""

    __slots__ = ("_tables",)

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def envelope(self, data: bytes) -> tuple[str, str, bytes]:
        """(apiVersion, kind, raw message); WireError if it is not an envelope."""
        if not data.startswith(MAGIC):
            raise WireError(
                "provided data does not appear to be a protobuf message, "
                "expected prefix [107 56 115 0]"
            )
        parts = dict(_fields(data[len(MAGIC) :]))
        meta = dict(_fields(_bytes(parts.get(1, b""))))
        return _text(meta.get(1, b"")), _text(meta.get(2, b"")), _bytes(parts.get(2, b""))

    def decode(self, data: bytes, message: str) -> Obj:
        """An enveloped object as JSON, given its message's name (``core.v1.Pod``)."""
        version, kind, raw = self.envelope(data)
        if message not in self._tables:
            raise WireError(f"no protobuf definition of {message}")
        out: Obj = {"kind": kind, "apiVersion": version}
        out.update(self._message(raw, message, 0))
        return out

    def _message(self, data: bytes, message: str, depth: int) -> Obj:
        if depth > MAX_DEPTH:
            raise WireError(f"protobuf: nested more than {MAX_DEPTH} deep")
        table = self._tables[message]
        out: Obj = {}
        for number, value in _fields(data):
            known = table.get(str(number))
            if known is None:
                continue
            name, code, flags = known
            head = code[0]
            if head == "[":
                items = out.setdefault(name, [])
                if code[1] == "v" and isinstance(value, bytes):
                    at = 0
                    while at < len(value):
                        number_, at = _varint(value, at)
                        items.append(_signed(number_))
                else:
                    items.append(self._value(value, code[1:], depth))
            elif head == "{":
                pair = dict(_fields(_bytes(value)))
                empty: int | bytes = 0 if code[1] in "vb" else b""
                item = self._value(pair.get(2, empty), code[1:], depth)
                out.setdefault(name, {})[_text(pair.get(1, b""))] = item
            else:
                decoded = self._value(value, code, depth)
                if "i" in flags:
                    out.update(decoded)
                elif decoded is not None and (decoded or flags or isinstance(decoded, dict)):
                    out[name] = decoded
        return out

    def _value(self, value: int | bytes, code: str, depth: int) -> Any:
        match code:
            case "s":
                return _text(value)
            case "v":
                return _int(value)
            case "b":
                return bool(_int(value))
            case "y":
                return base64.b64encode(_bytes(value)).decode()
            case "f":
                return _double(_bytes(value))
        data = _bytes(value)
        match code[1:]:
            case "meta.v1.Time":
                return _time(data, micro=False)
            case "meta.v1.MicroTime":
                return _time(data, micro=True)
            case "api.resource.Quantity":
                return _text(dict(_fields(data)).get(1, b"0")) or "0"
            case "util.intstr.IntOrString":
                return _int_or_string(data)
            case "pkg.runtime.RawExtension" | "meta.v1.FieldsV1":
                return _raw(data)
            case "apiextensions.v1.JSON":
                return _raw(data)
            case "authentication.v1.ExtraValue" | "authorization.v1.ExtraValue" | "meta.v1.Verbs":
                return [_text(v) for _, v in _fields(data)]
        return self._message(data, code[1:], depth + 1)
