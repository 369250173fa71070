"""CustomResourceDefinitions: stored definitions become served resources."""

from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery.columns import AGE, NAME, Column, Printer, age_of
from emulator.apimachinery.objects import copy_json, dig, dump_json, items, name_of, sub
from emulator.apimachinery.resources import BUILTIN, READ_WRITE, Registry, ResourceType, Subresource
from emulator.apimachinery.times import age, rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agents.apiserver.config import StorageRoot
    from emulator.apimachinery.objects import Obj

DIRECTORY: Final = "customresourcedefinitions"
RESOURCE: Final = next(r for r in BUILTIN if r.plural == DIRECTORY)
# Keeps a definition that is being deleted until the last of its objects is gone.
CLEANUP: Final = "customresourcecleanup.apiextensions.k8s.io"
_STEP: Final = re.compile(
    r"\.([\w-]+)|\[(\d+)\]|\['([^']+)'\]|\[\?\(@\.(\w+)==[\"']([^\"']*)[\"']\)\]"
)


def json_path(obj: Any, path: str) -> Any:
    """A printer column's value: dotted steps, indexes and ``[?(@.type=="Ready")]`` filters."""
    at = 0
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            return None
        field, index, quoted, key, wanted = step.groups()
        if field or quoted:
            obj = obj.get(field or quoted) if isinstance(obj, dict) else None
        elif index:
            number = int(index)
            obj = obj[number] if isinstance(obj, list) and number < len(obj) else None
        else:
            listed = obj if isinstance(obj, list) else []
            obj = next(
                (e for e in listed if isinstance(e, dict) and str(e.get(key)) == wanted), None
            )
        at = step.end()
    return obj


def _printer(columns: list[Obj]) -> Printer:
    if not columns:
        columns = [{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]
    shown = [NAME]
    for column in columns:
        if column.get("name") == "Age" and column.get("type") == "date":
            shown.append(AGE)
            continue
        shown.append(
            Column(
                str(column.get("name", "")),
                str(column.get("description") or "Custom resource definition column."),
                str(column.get("type", "string")),
                int(column.get("priority") or 0),
                str(column.get("format") or ""),
            )
        )

    def row(obj: Obj, now: float) -> list[Any]:
        cells: list[Any] = [name_of(obj)]
        for column in columns:
            path = str(column.get("jsonPath") or "")
            if path == ".metadata.creationTimestamp":
                cells.append(age_of(obj, now))
                continue
            value = json_path(obj, path)
            if column.get("type") == "date" and value is not None:
                value = age(value, now)
            elif isinstance(value, dict | list):
                value = dump_json(value).decode()
            cells.append(value)
        return cells

    return Printer(tuple(shown), row)


def resources_of(
    definition: Obj, roots: Mapping[str, StorageRoot] | None = None
) -> list[ResourceType]:
    """The resources a definition serves, its storage version first.

    ``roots`` says by group whose objects are not below ``/registry/``.
    """
    spec = definition.get("spec") or {}
    names = spec.get("names") or {}
    plural, group = str(names.get("plural", "")), str(spec.get("group", ""))
    root = (roots or {}).get(group)
    versions = [v for v in spec.get("versions") or [] if v.get("served")]
    out = []
    for version in sorted(versions, key=lambda v: not v.get("storage")):
        subresources = []
        extra = version.get("subresources") or {}
        if extra.get("scale") is not None:
            subresources.append(Subresource("scale", "Scale", READ_WRITE, "autoscaling", "v1"))
        if extra.get("status") is not None:
            subresources.append(Subresource("status", str(names.get("kind", "")), READ_WRITE))
        out.append(
            ResourceType(
                group,
                str(version.get("name", "")),
                str(names.get("kind", "")),
                plural,
                namespaced=spec.get("scope") == "Namespaced",
                short_names=tuple(names.get("shortNames") or ()),
                categories=tuple(names.get("categories") or ()),
                subresources=tuple(subresources),
                storage=f"{plural}.{group}" if root is None else root.root + plural,
                storage_version="" if root is None else root.api_version,
                printer=_printer(items(version, "additionalPrinterColumns")),
                singular_name=str(names.get("singular") or ""),
            )
        )
    return out


def terminating(definition: Obj, now: float) -> Obj:
    """A definition whose deletion waits for its objects."""
    out: Obj = copy_json(definition)
    meta = out["metadata"]
    at = rfc3339(now)
    meta.setdefault("deletionTimestamp", at)
    meta.setdefault("deletionGracePeriodSeconds", 0)
    meta["finalizers"] = list(dict.fromkeys((*(meta.get("finalizers") or ()), CLEANUP)))
    kept = [c for c in items(out, "status", "conditions") if c.get("type") != "Terminating"]
    condition = {
        "type": "Terminating",
        "status": "True",
        "lastTransitionTime": at,
        "reason": "InstanceDeletionPending",
        "message": "CustomResourceDefinition marked for deletion; CustomResource deletion will "
        "begin soon",
    }
    sub(out, "status")["conditions"] = [*kept, condition]
    return out


def released(definition: Obj) -> Obj:
    """A definition that waits for its objects no longer."""
    out: Obj = copy_json(definition)
    meta = out["metadata"]
    meta["finalizers"] = [f for f in meta.get("finalizers") or () if f != CLEANUP]
    return out


class Definitions:
    """Keeps the registry in step with the stored definitions."""

    def __init__(self, registry: Registry, roots: Mapping[str, StorageRoot] | None = None) -> None:
        self._registry = registry
        self.roots = roots or {}
        self._served: dict[tuple[str, str, str], ResourceType] = {}
        self._documents: dict[tuple[str, str], bytes] = {}

    def sync(self, definitions: Iterable[Obj]) -> None:
        """Serve exactly what these definitions say."""
        wanted: dict[tuple[str, str, str], ResourceType] = {}
        schemas: dict[tuple[str, str], list[tuple[ResourceType, Obj]]] = {}
        for definition in definitions:
            by_name = {v.get("name"): v for v in items(definition, "spec", "versions")}
            for resource in resources_of(definition, self.roots):
                key = (resource.group, resource.version, resource.plural)
                if key not in self._served and self._registry.find(*key) is not None:
                    # A built-in kind: the real server never asks the definition for it either.
                    continue
                wanted[key] = resource
                schema = dig(by_name[resource.version], "schema", "openAPIV3Schema") or {}
                schemas.setdefault((resource.group, resource.version), []).append(
                    (resource, schema)
                )
        for key, resource in self._served.items():
            if key not in wanted:
                self._registry.remove(resource)
        for resource in wanted.values():
            self._registry.add(resource)
        self._served = wanted
        self._documents = {key: _document(found) for key, found in schemas.items()}

    def document(self, group: str, version: str) -> bytes | None:
        """The compressed OpenAPI v3 document of a group and version made of definitions."""
        return self._documents.get((group, version))


def _document(resources: list[tuple[ResourceType, Obj]]) -> bytes:
    paths: Obj = {}
    schemas: Obj = {}
    for resource, schema in resources:
        kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        name = ".".join((*reversed(resource.group.split(".")), resource.version, resource.kind))
        shown = copy_json(schema) or {"type": "object"}
        shown["x-kubernetes-group-version-kind"] = [kind]
        properties = shown.setdefault("properties", {})
        for key in ("apiVersion", "kind"):
            properties.setdefault(key, {"type": "string"})
        properties.setdefault("metadata", {"type": "object"})
        schemas[name] = shown
        scope = "/namespaces/{namespace}" if resource.namespaced else ""
        base = f"/apis/{resource.group}/{resource.version}{scope}/{resource.plural}"
        operation = {
            "parameters": [
                {"name": n, "in": "query", "schema": {"type": "string"}}
                for n in ("dryRun", "fieldManager", "fieldValidation")
            ],
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-group-version-kind": kind,
        }
        paths[base] = {"post": {**operation, "x-kubernetes-action": "post"}}
        content: Obj = {
            t: {} for t in ("application/json-patch+json", "application/merge-patch+json")
        }
        paths[base + "/{name}"] = {
            "put": {**operation, "x-kubernetes-action": "put"},
            "patch": {
                **operation,
                "x-kubernetes-action": "patch",
                "requestBody": {"content": content},
            },
        }
    document = {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes CRD", "version": "v1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    return gzip.compress(dump_json(document), 6, mtime=0)
