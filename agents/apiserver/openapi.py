"""OpenAPI documents, served compressed as they were built."""

from __future__ import annotations

import gzip
import hashlib
from typing import TYPE_CHECKING, Final

from aiohttp import web

from agents.apiserver import definitions
from agents.apiserver.negotiate import JSON, respond
from emulator.apimachinery.status import no_such_path

if TYPE_CHECKING:
    from agents.apiserver.crds import Definitions
    from emulator.apimachinery.resources import Registry

# The name asked for has an @, which Go's MIME parser refuses in an answer (kube-openapi mimePb).
V2_PROTOBUF: Final = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
# The expiry kubectl caches a hashed document by: one year.
_FOREVER: Final = "public, immutable, max-age=31536000"


def _stem(group: str, version: str) -> str:
    return f"apis__{group}__{version}" if group else f"api__{version}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:64].upper()


def _compressed(
    request: web.BaseRequest, data: bytes, media: str, headers: dict[str, str]
) -> web.Response:
    """Send ready gzip data as it is where the client takes it."""
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        response = web.Response(body=data, headers=headers)
        response.headers["Content-Encoding"] = "gzip"
    else:
        response = web.Response(body=gzip.decompress(data), headers=headers)
    response.headers["Content-Type"] = media
    response.headers["Vary"] = "Accept-Encoding, Accept"
    return response


def _find(custom: Definitions, group: str, version: str) -> bytes | None:
    built = definitions.openapi_v3(_stem(group, version))
    return built if built is not None else custom.document(group, version)


def v3(
    request: web.BaseRequest, registry: Registry, custom: Definitions, path: str
) -> web.StreamResponse:
    """``/openapi/v3`` and below; StatusError 404."""
    if not path:
        paths: dict[str, dict[str, str]] = {}
        for group, versions in registry.groups().items():
            for version in versions:
                data = _find(custom, group, version)
                if data is not None:
                    name = f"apis/{group}/{version}" if group else f"api/{version}"
                    paths[name] = {"serverRelativeURL": f"/openapi/v3/{name}?hash={_hash(data)}"}
        return respond({"paths": paths}, request=request)
    parts = path.split("/")
    if len(parts) == 2 and parts[0] == "api":
        data = _find(custom, "", parts[1])
    elif len(parts) == 3 and parts[0] == "apis":
        data = _find(custom, parts[1], parts[2])
    else:
        raise no_such_path()
    if data is None:
        raise no_such_path()
    etag = f'"{_hash(data)}"'
    headers = {"ETag": etag}
    if request.query.get("hash") == _hash(data):
        headers["Cache-Control"] = _FOREVER
        headers["Expires"] = "Thu, 31 Dec 2099 23:59:59 GMT"
    if request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers=headers)
    return _compressed(request, data, JSON, headers)


def v2(request: web.BaseRequest) -> web.StreamResponse:
    """``/openapi/v2``: gnostic's protobuf, which kubectl up to 1.28 asks for."""
    data = definitions.openapi_v2()
    etag = f'"{_hash(data)}"'
    if request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers={"ETag": etag})
    return _compressed(request, data, V2_PROTOBUF, {"ETag": etag})
