"""From an HTTP request to the handler that answers it; every failure becomes a Status."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from aiohttp import web

from agents.apiserver import httpproxy, openapi, reviews, subresources
from agents.apiserver.call import Call
from agents.apiserver.negotiate import respond
from emulator.apimachinery.lifecycle import new_uid
from emulator.apimachinery.status import (
    StatusError,
    bad_request,
    internal,
    method_not_allowed,
    no_such_path,
)
from emulator.errors import UsageError

if TYPE_CHECKING:
    import logging
    import random

    from agents.apiserver.auth import Authenticator
    from agents.apiserver.config import UserInfo
    from agents.apiserver.crds import Definitions
    from agents.apiserver.discovery import Discovery
    from agents.apiserver.nodeproxy import NodeProxy
    from agents.apiserver.rest import Rest
    from agents.apiserver.tokens import ServiceAccountTokens
    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.resources import Registry

_HEALTH: Final = ("healthz", "livez", "readyz")
_STREAMS: Final = ("log", "exec", "attach", "portforward")
_NAMESPACE_SUBRESOURCES: Final = ("status", "finalize")
_WELL_FORMED_PATHS: Final = (
    "/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz",
    "/version",
)  # fmt: skip


class ApiServer:
    """The request handler (for aiohttp's ``web.Server``)."""

    def __init__(
        self,
        rest: Rest,
        registry: Registry,
        definitions: Definitions,
        discovery: Discovery,
        nodes: NodeProxy,
        authenticator: Authenticator,
        tokens: ServiceAccountTokens,
        version: Obj,
        rng: random.Random,
        log: logging.Logger,
    ) -> None:
        self._rest = rest
        self._registry = registry
        self._definitions = definitions
        self._discovery = discovery
        self._nodes = nodes
        self._authenticator = authenticator
        self._tokens = tokens
        self._version = version
        self._rng = rng
        self._log = log

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        try:
            user = self._authenticator.user(request)
            response = await self._route(request, user)
        except StatusError as error:
            response = self._failure(error)
        except UsageError as error:
            response = self._failure(bad_request(str(error)))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            # One bad request must not end the server: it is logged with its traceback and answered.
            self._log.exception("%s %s failed", request.method, request.path_qs)
            response = self._failure(internal(f"{type(error).__name__}: {error}"))
        if not response.prepared:
            response.headers.setdefault("Audit-Id", new_uid(self._rng))
        return response

    @staticmethod
    def _failure(error: StatusError) -> web.Response:
        headers = {}
        retry = (error.details or {}).get("retryAfterSeconds")
        if retry:
            headers["Retry-After"] = str(retry)
        return respond(error.to_status(), status=error.code, headers=headers)

    async def _route(self, request: web.BaseRequest, user: UserInfo) -> web.StreamResponse:
        parts = [part for part in request.path.split("/") if part]
        match parts:
            case []:
                self._only_get(request)
                return respond({"paths": list(_WELL_FORMED_PATHS)})
            case ["version"]:
                return respond(self._version)
            case [health, *_] if health in _HEALTH:
                return web.Response(text="ok", headers={"Cache-Control": "no-cache, private"})
            case ["api"] | ["apis"]:
                self._only_get(request)
                return self._discovery.root(request, "/" + parts[0])
            case ["api", version]:
                self._only_get(request)
                return self._discovery.resources(request, "", version)
            case ["apis", group]:
                self._only_get(request)
                return self._discovery.group(request, group)
            case ["apis", group, version]:
                self._only_get(request)
                return self._discovery.resources(request, group, version)
            case ["openapi", "v2"]:
                return openapi.v2(request)
            case ["openapi", "v3", *rest]:
                return openapi.v3(request, self._registry, self._definitions, "/".join(rest))
            case ["api", version, *rest]:
                return await self._resource(request, user, "", version, rest)
            case ["apis", group, version, *rest]:
                return await self._resource(request, user, group, version, rest)
        raise no_such_path()

    @staticmethod
    def _only_get(request: web.BaseRequest) -> None:
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed()

    async def _resource(
        self,
        request: web.BaseRequest,
        user: UserInfo,
        group: str,
        version: str,
        rest: list[str],
    ) -> web.StreamResponse:
        namespace = ""
        in_namespace = (
            len(rest) > 2
            and rest[0] == "namespaces"
            and not (len(rest) == 3 and rest[2] in _NAMESPACE_SUBRESOURCES)
        )
        if in_namespace:
            namespace, rest = rest[1], rest[2:]
        plural, name, subresource = (*rest, "", "", "")[:3]
        if len(rest) > 3 and subresource != "proxy":
            raise no_such_path()
        resource = self._registry.get(group, version, plural)
        if bool(namespace) and not resource.namespaced:
            raise no_such_path()
        call = Call(request, user, resource, namespace, name, subresource)
        if not resource.stored:
            return await self._review(call)
        if resource.namespaced and name and not namespace:
            raise no_such_path()
        if subresource == "proxy" and resource.subresource("proxy") is not None:
            return await httpproxy.serve(self._nodes, call, rest[3:])
        if subresource:
            return await self._subresource(call)
        return await self._object(call) if name else await self._collection(call)

    async def _review(self, call: Call) -> web.StreamResponse:
        if call.request.method != "POST" or call.name:
            raise method_not_allowed()
        self._rest.form(call)
        obj, warnings = await self._rest.read_object(call)
        out = reviews.answer(call.resource.kind, obj, call.user)
        return respond(out, status=201, warnings=warnings)

    async def _collection(self, call: Call) -> web.StreamResponse:
        watch = call.query.get("watch") in ("true", "1")
        match call.request.method:
            case "GET" | "HEAD":
                return await (self._rest.watch(call) if watch else self._rest.collection(call))
            case "POST" if call.namespace or not call.resource.namespaced:
                return await self._rest.create(call)
            case "DELETE" if "deletecollection" in call.resource.verbs and (
                call.namespace or not call.resource.namespaced
            ):
                return await self._rest.delete_collection(call)
        raise method_not_allowed()

    async def _object(self, call: Call) -> web.StreamResponse:
        match call.request.method:
            case "GET" | "HEAD":
                if call.query.get("watch") in ("true", "1"):
                    return await self._rest.watch(call)
                return await self._rest.get(call)
            case "PUT":
                return await self._rest.update(call)
            case "PATCH":
                return await self._rest.patch(call)
            case "DELETE":
                return await self._rest.delete(call)
        raise method_not_allowed()

    async def _subresource(self, call: Call) -> web.StreamResponse:
        known = call.resource.subresource(call.subresource)
        if known is None:
            raise no_such_path()
        method = call.request.method
        verb = {"GET": "get", "PUT": "update", "PATCH": "patch", "POST": "create"}.get(method, "")
        if verb not in known.verbs:
            raise method_not_allowed()
        if call.subresource in _STREAMS:
            return await self._nodes.serve(call)
        match call.subresource:
            case "scale":
                return await subresources.scale(self._rest, call)
            case "binding":
                return await subresources.binding(self._rest, call)
            case "eviction":
                return await subresources.eviction(self._rest, call)
            case "token":
                return await subresources.token(self._rest, self._tokens, call)
            case "finalize":
                return await subresources.finalize(self._rest, call)
        return await self._object(call)
