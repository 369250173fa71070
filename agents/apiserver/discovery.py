"""Discovery: which groups, versions and resources there are, plain and aggregated."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from agents.apiserver.negotiate import JSON, accepted, respond
from emulator.apimachinery.objects import dump_json
from emulator.apimachinery.status import no_such_path

if TYPE_CHECKING:
    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.resources import Registry, ResourceType

GROUP: Final = "apidiscovery.k8s.io"
_AGGREGATED: Final = frozenset(
    ("APIGroupDiscoveryList", GROUP, version) for version in ("v2", "v2beta1")
)


def _group_version(group: str, version: str) -> str:
    return f"{group}/{version}" if group else version


class Discovery:
    """Documents made from the registry, kept until it changes."""

    def __init__(self, registry: Registry, address: str) -> None:
        self._registry = registry
        self._address = address
        self._made: dict[tuple[str, str], tuple[bytes, str]] = {}
        self._generation = -1

    def _document(self, path: str, version: str, make: Any) -> tuple[bytes, str]:
        if self._generation != self._registry.generation:
            self._made.clear()
            self._generation = self._registry.generation
        found = self._made.get((path, version))
        if found is None:
            data = dump_json(make()) + b"\n"
            etag = f'"{hashlib.sha256(data).hexdigest().upper()}"'
            found = self._made[path, version] = (data, etag)
        return found

    def root(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        """``/api`` or ``/apis``, in the form the client asks for."""
        wanted = accepted(request.headers.get("Accept", ""), kinds=_AGGREGATED)
        if wanted.kind:
            data, etag = self._document(
                path, wanted.version, lambda: self._aggregated(path, wanted.version)
            )
            media = f"{JSON};g={GROUP};v={wanted.version};as=APIGroupDiscoveryList"
            headers = {"ETag": etag, "Vary": "Accept", "Cache-Control": "public"}
            if request.headers.get("If-None-Match") == etag:
                return web.Response(status=304, headers=headers)
            return respond(data, media=media, headers=headers, request=request)
        data, _ = self._document(path, "", self._versions if path == "/api" else self._groups)
        return respond(data, headers={"Vary": "Accept"}, media=wanted.media)

    def group(self, request: web.BaseRequest, group: str) -> web.StreamResponse:
        """``/apis/<group>``; StatusError 404."""
        media = accepted(request.headers.get("Accept", "")).media
        for entry in self._groups()["groups"]:
            if entry["name"] == group:
                return respond({"kind": "APIGroup", "apiVersion": "v1", **entry}, media=media)
        raise no_such_path()

    def resources(self, request: web.BaseRequest, group: str, version: str) -> web.StreamResponse:
        """``/api/v1`` or ``/apis/<group>/<version>``; StatusError 404."""
        if version not in self._registry.groups().get(group, ()):
            raise no_such_path()
        media = accepted(request.headers.get("Accept", "")).media
        data, _ = self._document(
            "list", f"{group}/{version}", lambda: self._resource_list(group, version)
        )
        return respond(data, media=media)

    def _versions(self) -> Obj:
        return {
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [
                {"clientCIDR": "0.0.0.0/0", "serverAddress": self._address}
            ],
        }

    def _groups(self) -> Obj:
        groups = []
        for group, versions in self._registry.groups().items():
            if group:
                entries = [
                    {"groupVersion": _group_version(group, v), "version": v} for v in versions
                ]
                groups.append({"name": group, "versions": entries, "preferredVersion": entries[0]})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def _resource_list(self, group: str, version: str) -> Obj:
        out: list[Obj] = []
        for resource in self._registry.resources(group, version):
            entry: Obj = {
                "name": resource.plural,
                "singularName": resource.singular,
                "namespaced": resource.namespaced,
                "kind": resource.kind,
                "verbs": list(resource.verbs),
            }
            if resource.short_names:
                entry["shortNames"] = list(resource.short_names)
            if resource.categories:
                entry["categories"] = list(resource.categories)
            if resource.stored:
                entry["storageVersionHash"] = _hash(resource)
            out.append(entry)
            for sub in resource.subresources:
                more: Obj = {
                    "name": f"{resource.plural}/{sub.name}",
                    "singularName": "",
                    "namespaced": resource.namespaced,
                }
                if sub.version:
                    more["group"], more["version"] = sub.group, sub.version
                more["kind"], more["verbs"] = sub.kind, list(sub.verbs)
                out.append(more)
        out.sort(key=lambda r: r["name"])
        return {
            "kind": "APIResourceList",
            **({"apiVersion": "v1"} if group else {}),
            "groupVersion": _group_version(group, version),
            "resources": out,
        }

    def _aggregated(self, path: str, version: str) -> Obj:
        groups: list[Obj] = []
        for group, versions in self._registry.groups().items():
            if bool(group) != (path == "/apis"):
                continue
            entries = [
                {
                    "version": v,
                    "resources": [
                        self._aggregated_resource(r)
                        for r in sorted(self._registry.resources(group, v), key=lambda r: r.plural)
                    ],
                    "freshness": "Current",
                }
                for v in versions
            ]
            metadata: Obj = {"name": group} if group else {}
            metadata["creationTimestamp"] = None
            groups.append({"metadata": metadata, "versions": entries})
        return {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": f"{GROUP}/{version}",
            "metadata": {},
            "items": groups,
        }

    @staticmethod
    def _aggregated_resource(resource: ResourceType) -> Obj:
        kind = {
            "group": resource.group,
            "version": resource.version,
            "kind": resource.kind,
        }
        out: Obj = {
            "resource": resource.plural,
            "responseKind": kind,
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "singularResource": resource.singular,
            "verbs": list(resource.verbs),
        }
        if resource.short_names:
            out["shortNames"] = list(resource.short_names)
        if resource.categories:
            out["categories"] = list(resource.categories)
        if resource.subresources:
            out["subresources"] = [
                {
                    "subresource": sub.name,
                    "responseKind": {
                        "group": sub.group if sub.version else resource.group,
                        "version": sub.version or resource.version,
                        "kind": sub.kind,
                    },
                    "verbs": list(sub.verbs),
                }
                for sub in resource.subresources
            ]
        return out


def _hash(resource: ResourceType) -> str:
    import base64

    text = f"{resource.group}/{resource.version}/{resource.kind}"
    return base64.b64encode(hashlib.sha512(text.encode()).digest()[:8]).decode()
