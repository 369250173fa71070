"""``pods|services|nodes/NAME/proxy/PATH``: HTTP through the API server into the cluster.

NAME may be ``scheme:name:port``.  A node's own requests go to its kubelet; those for pods and
services go through the kubelet of the pod's node (agents/kubelet/http_proxy.py).
Source: k8s.io/kubernetes pkg/registry/core/{pod,service,node}, k8s.io/apimachinery util/proxy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
from aiohttp import web
from yarl import URL

from emulator.apimachinery.objects import dig, items
from emulator.apimachinery.status import StatusError, bad_request

if TYPE_CHECKING:
    from agents.apiserver.call import Call
    from agents.apiserver.nodeproxy import NodeProxy
    from emulator.apimachinery.objects import Obj

_NOT_PASSED_ON: Final = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
        *("trailer", "transfer-encoding", "upgrade", "content-length", "authorization", "host"),
    )
)


class _Address(NamedTuple):
    """Where a request goes: the kubelet's base URL and the path it shall take there."""

    kubelet: str
    prefix: str


def split_name(text: str) -> tuple[str, str, str]:
    """(scheme, name, port) of ``[scheme:]name[:port]``; StatusError 400."""
    parts = text.split(":")
    match parts:
        case [name]:
            return "http", name, ""
        case [name, port]:
            return "http", name, port
        case [scheme, name, port] if scheme in ("", "http", "https"):
            return scheme or "http", name, port
    raise bad_request(f'invalid service request "{text}"')


async def serve(nodes: NodeProxy, call: Call, path: list[str]) -> web.StreamResponse:
    """Answer with what the pod, service or node answers.  StatusError 400, 404 or 503."""
    request = call.request
    if not path and not request.path.endswith("/") and request.method in ("GET", "HEAD"):
        query = f"?{request.query_string}" if request.query_string else ""
        return web.Response(status=301, headers={"Location": f"{request.path}/{query}"})
    scheme, name, port = split_name(call.name)
    obj = await nodes.stored(call.resource.plural, call.namespace, name)
    match call.resource.plural:
        case "nodes":
            address = _Address(nodes.kubelet_of(name), "")
        case "pods":
            address = _pod(nodes, obj, scheme, name, port)
        case _:
            address = _service(nodes, obj, scheme, call.namespace, name, port)
    # /api/v1/nodes/NAME/proxy/… or /api/v1/namespaces/NAMESPACE/pods/NAME/proxy/…
    before = 8 if call.namespace else 6
    after = "/" + "".join(request.raw_path.partition("?")[0].split("/", before)[before:])
    query = f"?{request.query_string}" if request.query_string else ""
    url = URL(f"{address.kubelet}{address.prefix}{after}{query}", encoded=True)
    return await _pass(nodes, request, url)


def _pod(nodes: NodeProxy, pod: Obj, scheme: str, name: str, port: str) -> _Address:
    ip = dig(pod, "status", "podIP")
    if not ip:
        raise bad_request("address not allowed")
    declared = [each for c in items(pod, "spec", "containers") for each in items(c, "ports")]
    if not port:
        port = str(declared[0]["containerPort"]) if declared else "80"
    elif not port.isdigit():
        named = [each["containerPort"] for each in declared if each.get("name") == port]
        if not named:
            raise bad_request(f'no port named "{port}" in pod "{name}"')
        port = str(named[0])
    return _Address(nodes.kubelet(pod, name), f"/proxy/{scheme}/{ip}/{port}")


def _service(
    nodes: NodeProxy, service: Obj, scheme: str, namespace: str, name: str, port: str
) -> _Address:
    ports = items(service, "spec", "ports")
    if port:
        ports = [each for each in ports if port in (each.get("name"), str(each.get("port")))]
    if not ports:
        text = f'no service port "{port}" found for service "{name}"'
        raise StatusError(503, "ServiceUnavailable", text)
    wanted = ports[0].get("name") or ""
    endpoints: Any = nodes.peek("endpoints", namespace, name) or {}
    for subset in items(endpoints, "subsets"):
        for each in items(subset, "ports"):
            ready = items(subset, "addresses")
            if (each.get("name") or "") == wanted and ready:
                # The pod nearest to nobody in particular: the first that has a node to go through.
                chosen = next((a for a in ready if a.get("nodeName")), None)
                if chosen is not None:
                    kubelet = nodes.kubelet_of(chosen["nodeName"])
                    prefix = f"/proxy/{scheme}/{chosen['ip']}/{each['port']}"
                    return _Address(kubelet, prefix)
    text = f'no endpoints available for service "{name}"'
    raise StatusError(503, "ServiceUnavailable", text)


async def _pass(nodes: NodeProxy, request: web.BaseRequest, url: URL) -> web.StreamResponse:
    headers = {
        name: value for name, value in request.headers.items() if name.lower() not in _NOT_PASSED_ON
    }
    if request.content_length is not None:
        headers["Content-Length"] = str(request.content_length)
    body = request.content if request.can_read_body else None
    try:
        answer = await nodes.session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        )
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        text = f"error trying to reach service: {str(error) or type(error).__name__}"
        raise StatusError(503, "ServiceUnavailable", text) from None
    try:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in _NOT_PASSED_ON:
                response.headers.add(name, value)
        await response.prepare(request)
        async for piece in answer.content.iter_any():
            await response.write(piece)
        await response.write_eof()
        return response
    except aiohttp.ClientError as error:
        # The answer has begun: its end is missing, and that is all the client can be told.
        raise ConnectionResetError(f"the answer broke off: {error}") from None
    finally:
        answer.close()
