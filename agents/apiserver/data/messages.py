"""Message tables of Kubernetes' protobuf encoding, from the .proto and the Go struct tags.

A table is ``{message: {number: [json name, type, flags]}}``.  Types: ``s`` text, ``y`` bytes,
``v`` varint, ``b`` bool, ``f`` double, ``@Message``; prefix ``[`` repeated, ``{`` map with
text keys.
Flags: ``p`` pointer (a zero is kept), ``k`` no omitempty (a zero is kept), ``i`` inlined.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from emulator.apimachinery.resources import Registry

_MESSAGE = re.compile(r"^message (\w+) \{(.*?)^\}", re.M | re.S)
_FIELD = re.compile(
    r"^\s+(optional|repeated|map<(\w+),\s*([\w.]+)>)\s*([\w.]+)?\s+(\w+)\s*=\s*(\d+);", re.M
)
_STRUCT = re.compile(r"^type (\w+) struct \{(.*?)^\}", re.M | re.S)
_TAG = re.compile(r'^\s+(?:(\w+)\s+)?(\S+)\s+`json:"([^"]*)"[^`]*protobuf:"(\w+),(\d+),(\w+)', re.M)
_SCALARS = {
    "string": "s", "bytes": "y", "bool": "b", "double": "f",
    "int32": "v", "int64": "v", "uint32": "v", "uint64": "v",
}  # fmt: skip
# Bodies kubectl and client-go send besides the served kinds themselves.
_EXTRA = (
    "meta.v1.DeleteOptions", "meta.v1.CreateOptions", "meta.v1.Status", "core.v1.Binding",
    "authentication.v1.TokenRequest", "autoscaling.v1.Scale", "policy.v1.Eviction",
)  # fmt: skip


def _package(folder: Path) -> str:
    return ".".join(folder.parts[-2:])


def _tags(folder: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """(struct, field number) → (json tag, Go type)."""
    out: dict[tuple[str, int], tuple[str, str]] = {}
    for source in sorted(folder.glob("*.go")):
        if source.name.endswith("_test.go") or source.name == "generated.pb.go":
            continue
        for struct, body in _STRUCT.findall(source.read_text()):
            for _, go_type, json_tag, _, number, _ in _TAG.findall(body):
                out[struct, int(number)] = (json_tag, go_type)
    return out


def _type_name(text: str, package: str) -> str:
    if text in _SCALARS:
        return _SCALARS[text]
    if "." not in text:
        return f"@{package}.{text}"
    parts = text.lstrip(".").split(".")
    return "@" + ".".join(parts[-3:])


def build(root: Path, registry: Registry) -> dict[str, Any]:
    """The closure of the messages clients send."""
    all_messages: dict[str, dict[str, list[str]]] = {}
    for proto in sorted(root.glob("**/generated.proto")):
        folder = proto.parent
        package = _package(folder)
        tags = _tags(folder)
        for message, body in _MESSAGE.findall(proto.read_text()):
            table: dict[str, list[str]] = {}
            for label, _, map_type, plain, name, number in _FIELD.findall(body):
                json_tag, go_type = tags.get((message, int(number)), (name, ""))
                if label.startswith("map"):
                    code = "{" + _type_name(map_type, package)
                else:
                    code = ("[" if label == "repeated" else "") + _type_name(plain, package)
                flags = "p" if go_type.startswith("*") else ""
                if "inline" in json_tag:
                    flags += "i"
                elif "omitempty" not in json_tag:
                    flags += "k"
                json_name = json_tag.split(",")[0] or name
                table[number] = [json_name, code, flags]
            all_messages[f"{package}.{message}"] = table
    roots = [r.schema for r in registry.all()] + list(_EXTRA)
    found: dict[str, Any] = {}
    while roots:
        name = roots.pop()
        if name in found or name not in all_messages:
            continue
        found[name] = all_messages[name]
        for _, code, _ in all_messages[name].values():
            if "@" in code:
                roots.append(code.split("@")[1])
    return dict(sorted(found.items()))
