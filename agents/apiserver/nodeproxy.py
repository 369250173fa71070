"""Logs, exec, attach and port-forward: passed on to the kubelet of the pod's node."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final, NamedTuple

import aiohttp
from aiohttp import web

from agents.apiserver.config import WATCH_LIVENESS_S
from emulator.apimachinery.objects import dig, items
from emulator.apimachinery.status import StatusError, bad_request, internal

if TYPE_CHECKING:
    import logging

    from agents.apiserver.call import Call
    from agents.apiserver.objects import Objects
    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.resources import Registry

UNDERLAY: Final = "podwire.dev/underlay"
KUBELET_PORT: Final = 10250
CONNECT_TIMEOUT_S: Final = 5.0
_LOG_PARAMETERS: Final = (
    "follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes",
    "stream",
)  # fmt: skip


class Target(NamedTuple):
    """Where a container runs."""

    base: str
    namespace: str
    pod: str
    container: str

    def url(self, verb: str) -> str:
        """The kubelet's endpoint for a verb."""
        return f"{self.base}/{verb}/{self.namespace}/{self.pod}/{self.container}"


class NodeProxy:
    """Speaks to kubelets with the cluster's token."""

    def __init__(
        self, objects: Objects, registry: Registry, token: str, ca: str, log: logging.Logger
    ) -> None:
        self._objects = objects
        self._registry = registry
        self._token = token
        self._ca = ca
        self._log = log
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close connections to kubelets."""
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """The client session, made when first needed."""
        if self._session is None:
            context = ssl.create_default_context(cafile=self._ca)
            # A kubelet's certificate names its node, and it is reached at an underlay address.
            context.check_hostname = False
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit=0),
                headers={"Authorization": f"Bearer {self._token}"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                auto_decompress=False,
            )
        return self._session

    async def serve(self, call: Call) -> web.StreamResponse:
        """Answer one of the streaming subresources of a pod."""
        pod = await self._objects.current(call.resource, call.namespace, call.name)
        if call.subresource == "log":
            return await self._log_of(call, self.target(call, pod))
        from agents.apiserver import portforward, streams

        if call.subresource == "portforward":
            return await portforward.serve(self, call, self.kubelet(pod, call.name))
        return await streams.serve(self, call, pod)

    def target(self, call: Call, pod: Obj) -> Target:
        """Where a pod's container runs; StatusError 400 or 500."""
        container = call.query.get("container") or ""
        names = [
            str(c.get("name"))
            for key in ("containers", "initContainers")
            for c in items(pod, "spec", key)
        ]
        main = [str(c.get("name")) for c in items(pod, "spec", "containers")]
        if not container:
            if len(main) != 1:
                raise bad_request(
                    f"a container name must be specified for pod {call.name}, choose one of: "
                    f"[{' '.join(main)}]"
                )
            container = main[0]
        elif container not in names:
            raise bad_request(f"container {container} is not valid for pod {call.name}")
        return Target(self.kubelet(pod, call.name), call.namespace, call.name, container)

    def kubelet(self, pod: Obj, name: str) -> str:
        """The base URL of the pod's kubelet; StatusError."""
        node_name = dig(pod, "spec", "nodeName")
        if not node_name:
            raise bad_request(f"pod {name} does not have a host assigned")
        return self.kubelet_of(str(node_name))

    async def stored(self, plural: str, namespace: str, name: str) -> Obj:
        """An object of the core group; StatusError 404."""
        return await self._objects.current(self._registry.get("", "v1", plural), namespace, name)

    def peek(self, plural: str, namespace: str, name: str) -> Obj | None:
        """The same as far as it is known, None where there is none."""
        return self._objects.peek(self._registry.get("", "v1", plural), namespace, name)

    def kubelet_of(self, node_name: str) -> str:
        """The base URL of a node's kubelet; StatusError 404 or 500."""
        node = self.peek("nodes", "", node_name)
        if node is None:
            raise StatusError(404, "NotFound", f'nodes "{node_name}" not found')
        host = dig(node, "metadata", "annotations", UNDERLAY)
        if not host:
            addresses = {
                a.get("type"): a.get("address") for a in items(node, "status", "addresses")
            }
            host = addresses.get("InternalIP") or addresses.get("Hostname")
        if not host:
            raise internal(f"no preferred addresses found; known addresses: {node_name}")
        port = dig(node, "status", "daemonEndpoints", "kubeletEndpoint", "Port") or KUBELET_PORT
        return f"https://{host}:{port}"

    async def _log_of(self, call: Call, target: Target) -> web.StreamResponse:
        parameters = {k: call.query[k] for k in _LOG_PARAMETERS if call.query.get(k)}
        url = target.url("containerLogs")
        try:
            upstream = await self.session.get(url, params=parameters)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise internal(f'Get "{url}": {str(error) or type(error).__name__}') from None
        response = web.StreamResponse(headers={"Cache-Control": "no-cache, private"})
        try:
            if upstream.status != 200:
                text = (await upstream.text()).strip()
                code = upstream.status
                reason = {400: "BadRequest", 404: "NotFound"}.get(code, "InternalError")
                raise StatusError(code, reason, text or f"kubelet answered {code}")
            response.headers["Content-Type"] = "text/plain"
            response.enable_chunked_encoding()
            await response.prepare(call.request)
            while (chunk := await _next_chunk(upstream, call)) is not None:
                await response.write(chunk)
            await response.write_eof()
            return response
        except (aiohttp.ClientError, ConnectionError) as error:
            self._log.info("log of %s/%s ended: %s", target.namespace, target.pod, error)
            return response
        finally:
            upstream.close()


async def _next_chunk(upstream: aiohttp.ClientResponse, call: Call) -> bytes | None:
    """More of a log; None at its end or when nobody reads it any more."""
    while True:
        try:
            async with asyncio.timeout(WATCH_LIVENESS_S):
                return await upstream.content.readany() or None
        except TimeoutError:
            if call.request.transport is None:
                return None
