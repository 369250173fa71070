"""OpenAPI v2 in gnostic's protobuf (openapiv2/OpenAPIv2.proto), as far as kubectl reads it."""

from __future__ import annotations

import json
from typing import Any


def varint(value: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, data: bytes | str) -> bytes:
    """A length-delimited field."""
    raw = data.encode() if isinstance(data, str) else data
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def _extension(number: int, name: str, value: Any) -> bytes:
    return field(number, field(1, name) + field(2, field(2, json.dumps(value))))


def _schema(node: dict[str, Any]) -> bytes:
    out = b""
    if "$ref" in node:
        out += field(1, "#/definitions/" + node["$ref"].rsplit("/", 1)[-1])
    if "format" in node:
        out += field(2, node["format"])
    if "description" in node:
        out += field(4, node["description"])
    for name in node.get("required") or ():
        out += field(19, name)
    if "additionalProperties" in node:
        out += field(21, field(1, _schema(node["additionalProperties"])))
    if "type" in node:
        out += field(22, field(1, node["type"]))
    if "items" in node:
        out += field(23, field(1, _schema(node["items"])))
    properties = node.get("properties")
    if properties:
        inner = b"".join(
            field(1, field(1, name) + field(2, _schema(s))) for name, s in properties.items()
        )
        out += field(25, inner)
    for key, value in node.items():
        if key.startswith("x-"):
            out += _extension(31, key, value)
    return out


def _operation(node: dict[str, Any]) -> bytes:
    out = b""
    for parameter in node["parameters"]:
        query = field(2, "query") + field(4, parameter["name"]) + field(6, "string")
        out += field(8, field(1, field(2, field(3, query))))
    for key in ("x-kubernetes-action", "x-kubernetes-group-version-kind"):
        out += _extension(13, key, node[key])
    return out


def encode(definitions: dict[str, Any], paths: dict[str, Any]) -> bytes:
    """A ``Document`` with these definitions and operations."""
    verbs = {"put": 3, "post": 4, "patch": 8}
    named_paths = b"".join(
        field(
            2,
            field(1, path)
            + field(2, b"".join(field(verbs[v], _operation(o)) for v, o in item.items())),
        )
        for path, item in paths.items()
    )
    named_schemas = b"".join(
        field(1, field(1, name) + field(2, _schema(schema))) for name, schema in definitions.items()
    )
    info = field(1, "Kubernetes") + field(2, "v1.32.5")
    return field(1, "2.0") + field(2, info) + field(8, named_paths) + field(9, named_schemas)
