"""Build this folder's data files from upstream's published definitions.

    python -m agents.apiserver.data.generate --definitions _definitions.json --go SRC/k8s.io

``_definitions.json`` is v1.32's from PyPI's kubernetes-validate; ``SRC/k8s.io`` holds ``api`` and
``apimachinery`` as unpacked from Debian's golang-k8s-api-dev and golang-k8s-apimachinery-dev.
Output, all gzip without a timestamp so that a rebuild is byte-identical:

- ``shapes.json.gz``     the types' fields and merge keys (emulator/apimachinery/shapes.py)
- ``openapi_v3/*.gz``    one OpenAPI v3 document per group and version
- ``openapi_v2.pb.gz``   one OpenAPI v2 document in gnostic's protobuf, for kubectl up to 1.28
- ``protobuf.json.gz``   message tables for request bodies (agents/apiserver/protobuf.py)
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from agents.apiserver.data import gnostic, messages
from emulator.apimachinery.resources import Registry, ResourceType

HERE = Path(__file__).parent
EXTRA_KINDS = (
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.api.core.v1.Binding",
    "io.k8s.api.autoscaling.v1.Scale",
    "io.k8s.api.policy.v1.Eviction",
    "io.k8s.api.authentication.v1.TokenRequest",
)
_SCALARS = {
    ("string", ""): "s",
    ("string", "byte"): "y",
    ("string", "date-time"): "t",
    ("integer", "int32"): "i",
    ("integer", "int64"): "I",
    ("integer", ""): "I",
    ("number", "double"): "n",
    ("number", ""): "n",
    ("boolean", ""): "b",
    ("object", ""): "x",
}
_META = "io.k8s.apimachinery.pkg.apis.meta.v1."
_SPECIAL = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity": "q",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "o",
    "io.k8s.apimachinery.pkg.runtime.RawExtension": "x",
    _META + "Time": "t",
    _META + "MicroTime": "T",
    _META + "FieldsV1": "x",
}
PATCH_TYPES = (
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)


def write_gz(path: Path, data: bytes) -> None:
    """Write reproducible gzip."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(data, 9, mtime=0))
    print(f"{path.name}: {path.stat().st_size} bytes ({len(data)} unpacked)")


def compact(value: Any) -> bytes:
    """JSON without blanks."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def clean(node: Any) -> Any:
    """The definitions as OpenAPI: no null types, real references, the two union types as text."""
    if isinstance(node, dict):
        kind = node.get("type")
        out = {k: clean(v) for k, v in node.items() if k != "x-kubernetes-unions"}
        if isinstance(kind, list):
            out["type"] = next(t for t in kind if t != "null")
        if isinstance(node.get("$ref"), str):
            out["$ref"] = node["$ref"].replace("#/$defs/", "#/components/schemas/")
        if isinstance(node.get("enum"), list):
            del out["enum"]
        return out
    if isinstance(node, list):
        return [clean(v) for v in node]
    return node


def load(path: Path) -> dict[str, Any]:
    """The cleaned definitions by full name."""
    defs: dict[str, Any] = clean(json.loads(path.read_text())["$defs"])
    for name, text in (
        ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "int-or-string"),
        ("io.k8s.apimachinery.pkg.api.resource.Quantity", None),
    ):
        schema = defs[name]
        schema.pop("oneOf", None)
        schema["type"] = "string"
        if text:
            schema["format"] = text
    return defs


def short(name: str) -> str:
    """``core.v1.Pod`` of ``io.k8s.api.core.v1.Pod``."""
    return ".".join(name.split(".")[-3:])


def refs(node: Any) -> list[str]:
    """Names of the definitions a schema mentions."""
    if isinstance(node, dict):
        own = [node["$ref"].rsplit("/", 1)[-1]] if isinstance(node.get("$ref"), str) else []
        return own + [r for v in node.values() for r in refs(v)]
    if isinstance(node, list):
        return [r for v in node for r in refs(v)]
    return []


def closure(defs: dict[str, Any], roots: list[str]) -> dict[str, Any]:
    """The definitions reachable from ``roots``, sorted."""
    found: dict[str, Any] = {}
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name not in found:
            found[name] = defs[name]
            todo += refs(defs[name])
    return dict(sorted(found.items()))


def full_name(defs: dict[str, Any], resource: ResourceType) -> str:
    """The definition of a resource's kind."""
    return next(n for n in defs if short(n) == resource.schema)


def code_of(schema: dict[str, Any]) -> str:
    """A schema as a shape code."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        if name in _SPECIAL:
            return _SPECIAL[name]
        if ".apiextensions.v1.JSON" in name and not name.endswith(".JSONSchemaProps"):
            return "x"
        return "@" + short(name)
    if schema.get("type") == "array":
        return "[" + code_of(schema["items"])
    if "additionalProperties" in schema:
        return "{" + code_of(schema["additionalProperties"])
    return _SCALARS[schema.get("type", "object"), schema.get("format", "")]


def shape_of(schema: dict[str, Any]) -> dict[str, Any]:
    """One definition as a shape."""
    out: dict[str, Any] = {"f": {}}
    for field, inner in (schema.get("properties") or {}).items():
        out["f"][field] = code_of(inner)
        strategy = inner.get("x-kubernetes-patch-strategy")
        if strategy:
            out.setdefault("p", {})[field] = [
                strategy, inner.get("x-kubernetes-patch-merge-key", "")
            ]  # fmt: skip
        if inner.get("x-kubernetes-list-type"):
            out.setdefault("l", {})[field] = [
                inner["x-kubernetes-list-type"], inner.get("x-kubernetes-list-map-keys", [])
            ]  # fmt: skip
        if inner.get("x-kubernetes-map-type") == "atomic":
            out.setdefault("m", []).append(field)
    if schema.get("x-kubernetes-map-type") == "atomic":
        out["a"] = 1
    return out


def build_paths(resource: ResourceType, ref: str) -> dict[str, Any]:
    """The operations kubectl looks for: which kind, and that fieldValidation is understood."""
    gvk = {"group": resource.group, "kind": resource.kind, "version": resource.version}
    prefix = f"/apis/{resource.group}/{resource.version}" if resource.group else "/api/v1"
    scope = "/namespaces/{namespace}" if resource.namespaced else ""
    parameters = [
        {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
        for name in ("dryRun", "fieldManager", "fieldValidation")
    ]
    schema = {"$ref": f"#/components/schemas/{ref}"}

    def operation(action: str, types: tuple[str, ...], body: dict[str, Any]) -> dict[str, Any]:
        return {
            "operationId": f"{action}{resource.kind}",
            "parameters": parameters,
            "requestBody": {"content": {t: {"schema": body} for t in types}, "required": True},
            "responses": {
                "200": {"description": "OK", "content": {"application/json": {"schema": schema}}}
            },
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        }

    collection = f"{prefix}{scope}/{resource.plural}"
    out: dict[str, Any] = {}
    if "create" in resource.verbs:
        out[collection] = {"post": operation("post", ("*/*",), schema)}
    if "patch" in resource.verbs:
        patch = {"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.Patch"}
        out[collection + "/{name}"] = {
            "put": operation("put", ("*/*",), schema),
            "patch": operation("patch", PATCH_TYPES, patch),
        }
    return out


def main() -> None:
    """Write all data files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--definitions", type=Path, required=True)
    parser.add_argument("--go", type=Path, required=True)
    args = parser.parse_args()
    defs = load(args.definitions)
    registry = Registry()
    roots = [full_name(defs, r) for r in registry.all()] + list(EXTRA_KINDS)
    types = closure(defs, roots)
    shapes = {short(n): shape_of(s) for n, s in types.items() if n not in _SPECIAL}
    write_gz(HERE / "shapes.json.gz", compact(shapes))
    all_paths: dict[str, Any] = {}
    for group, versions in registry.groups().items():
        for version in versions:
            names = [full_name(defs, r) for r in registry.resources(group, version)]
            names += [_META + "Status", _META + "DeleteOptions", _META + "Patch"]
            paths: dict[str, Any] = {}
            for resource in registry.resources(group, version):
                paths |= build_paths(resource, full_name(defs, resource))
            document = {
                "openapi": "3.0.0",
                "info": {"title": "Kubernetes", "version": "v1.32.5"},
                "paths": paths,
                "components": {"schemas": closure(defs, names)},
            }
            all_paths |= paths
            stem = f"apis__{group}__{version}" if group else f"api__{version}"
            write_gz(HERE / "openapi_v3" / f"{stem}.json.gz", compact(document))
    types[_META + "Patch"] = defs[_META + "Patch"]
    write_gz(HERE / "openapi_v2.pb.gz", gnostic.encode(types, all_paths))
    write_gz(HERE / "protobuf.json.gz", compact(messages.build(args.go, registry)))


if __name__ == "__main__":
    main()
