"""A whole kubelet on a real kernel with real CNI, against an API server of a few lines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import TYPE_CHECKING, Any

from aiohttp import web

from agents.cni.plugin import NodeCni
from agents.cni.runtime import SandboxNetwork
from agents.kubelet.config import KubeletConfig
from agents.kubelet.daemon import Kubelet
from emulator.kubeclient.config import KubeConfig
from emulator.kubeclient.rest import RestClient
from emulator.netstack.kernel import Kernel
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv
from emulator.runtime.stack import StackNetwork
from emulator.shell.http import Exchange
from emulator.workloads.images import default_registry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


SUBNET_ENV = (
    "FLANNEL_NETWORK=10.2.0.0/16\nFLANNEL_SUBNET=10.2.59.1/24\n"
    "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
)
DEADLINE_S = 20.0


class FakeApi:
    """Objects by path, list, watch, merge patch and delete: what a kubelet asks for."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = 1
        self.events: list[dict[str, Any]] = []
        self.patches: list[str] = []
        # The container states told, one after the other.
        self.states: list[str] = []
        self.changed = asyncio.Event()
        self.watchers: list[tuple[str, asyncio.Queue[dict[str, Any] | None]]] = []
        self.runner: web.AppRunner | None = None

    async def start(self) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    def put(self, path: str, obj: dict[str, Any]) -> None:
        kind = "MODIFIED" if path in self.objects else "ADDED"
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.objects[path] = obj
        for container in obj.get("status", {}).get("containerStatuses", ()):
            self.states.append(next(iter(container["state"])))
        self._tell(kind, path, obj)

    def remove(self, path: str) -> None:
        self._tell("DELETED", path, self.objects.pop(path))

    def _tell(self, kind: str, path: str, obj: dict[str, Any]) -> None:
        for plural, queue in self.watchers:
            if f"/{plural}/" in path:
                queue.put_nowait({"type": kind, "object": json.loads(json.dumps(obj))})
        self.changed.set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removesuffix("/status")
        if request.method == "GET" and "watch" in request.query:
            return await self._watch(request)
        if request.method == "GET":
            if path in self.objects:
                return web.json_response(self.objects[path])
            plural = path.rpartition("/")[2]
            if plural in ("pods", "services", "nodes"):
                found = [o for p, o in self.objects.items() if f"/{plural}/" in p]
                meta = {"resourceVersion": str(self.version)}
                return web.json_response({"metadata": meta, "items": found})
            return self._missing()
        body = await request.json()
        if request.method == "POST":
            if path.endswith("/events"):
                self.events.append(body)
                self.changed.set()
                return web.json_response(body, status=201)
            if path.endswith("/token"):
                return web.json_response({"status": {"token": "the-token"}}, status=201)
            body["metadata"].setdefault("uid", f"uid-{self.version}")
            self.put(f"{path}/{body['metadata']['name']}", body)
            return web.json_response(body, status=201)
        for event in self.events:
            if path.endswith(f"/events/{event['metadata']['name']}"):
                event |= body
                self.changed.set()
                return web.json_response(event)
        if path not in self.objects:
            return self._missing()
        if request.method == "DELETE":
            self.remove(path)
            return web.json_response({"status": "Success"})
        uid = body.get("metadata", {}).get("uid")
        if "/pods/" in path and uid != self.objects[path]["metadata"]["uid"]:
            # A kubelet says which pod it means: another of the name may have followed.
            status = {"kind": "Status", "code": 409, "reason": "Conflict", "message": "other uid"}
            return web.json_response(status, status=409)
        self.patches.append(request.path)
        self.put(path, _merge(self.objects[path], body))
        return web.json_response(self.objects[path])

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        entry = (request.path.rpartition("/")[2], queue)
        self.watchers.append(entry)
        try:
            while (event := await queue.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
            return response
        except ConnectionResetError:
            return response
        finally:
            self.watchers.remove(entry)

    async def stop(self) -> None:
        for _, queue in self.watchers:
            queue.put_nowait(None)
        await self.until(lambda: not self.watchers)
        assert self.runner is not None
        await self.runner.cleanup()

    def _missing(self) -> web.Response:
        status = {"kind": "Status", "code": 404, "reason": "NotFound", "message": "not found"}
        return web.json_response(status, status=404)

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(DEADLINE_S):
            while not (found := condition()):
                self.changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self.changed.wait()
        return found


def _merge(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


class World:
    def __init__(self, api: FakeApi, kubelet: Kubelet, kernel: Kernel, root: Path) -> None:
        self.api = api
        self.kubelet = kubelet
        self.kernel = kernel
        self.root = root
        self.network = kubelet._runtime.network

    def create(self, name: str, *containers: dict[str, Any], **spec: Any) -> None:
        obj = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}"},
            "spec": {"nodeName": "node-0", "containers": list(containers), **spec},
        }
        self.api.put(f"/api/v1/namespaces/default/pods/{name}", obj)

    def pod(self, name: str) -> dict[str, Any]:
        return self.api.objects.get(f"/api/v1/namespaces/default/pods/{name}", {})

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.pod(name).get("status", {})
        return found

    def container(self, name: str) -> dict[str, Any]:
        return (self.status(name).get("containerStatuses") or [{}])[0]

    def ready(self, name: str) -> bool:
        return any(
            each["type"] == "Ready" and each["status"] == "True"
            for each in self.status(name).get("conditions", ())
        )

    async def running(self, name: str) -> str:
        await self.api.until(lambda: self.ready(name))
        ip: str = self.status(name)["podIP"]
        return ip

    def delete(self, name: str, grace_s: int) -> None:
        obj = json.loads(json.dumps(self.pod(name)))
        obj["metadata"] |= {
            "deletionTimestamp": "2026-01-01T00:00:00Z",
            "deletionGracePeriodSeconds": grace_s,
        }
        self.api.put(f"/api/v1/namespaces/default/pods/{name}", obj)

    def reasons(self, name: str) -> list[str]:
        return [
            event["reason"]
            for event in self.api.events
            if event["involvedObject"].get("name") == name
        ]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.kubelet.server.port}{path}"

    async def fetch(self, ip: str, path: str = "/") -> int:
        async with Exchange(self.network, ip, 80) as exchange:
            await exchange.connect()
            await exchange.send("GET", path, [("Host", ip), ("Connection", "close")])
            return (await exchange.head()).status


class Driver:
    """Runs a kernel's timers on the loop; packets stay inside the node."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.Handle | None = None
        kernel.on_work = self._soon

    def _soon(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_soon(self._run)

    def _run(self) -> None:
        at = self._kernel.get_timer()
        if at is not None and at <= self._loop.time():
            self._kernel.handle_timer()
            at = self._kernel.get_timer()
        if at is not None:
            self._handle = self._loop.call_at(at, self._run)

    def close(self) -> None:
        self._kernel.on_work = lambda: None
        if self._handle is not None:
            self._handle.cancel()


@contextlib.asynccontextmanager
async def node(
    root: Path, *, era: str = "modern", ready: bool = True, api: FakeApi | None = None
) -> AsyncIterator[World]:
    api = api or FakeApi()
    server = await api.start()
    (root / "run/flannel").mkdir(parents=True, exist_ok=True)
    if ready:
        (root / "run/flannel/subnet.env").write_text(SUBNET_ENV)
    role = RoleEnv(real_clock(), random.Random(f"{root}{api.version}"))
    kernel = Kernel("node-0", clock=asyncio.get_running_loop().time, rng=role.rng)
    driver = Driver(kernel)
    config = KubeletConfig(
        node_name="node-0",
        node_ip="172.17.4.201",
        underlay_host="127.9.1.1",
        kubeconfig=KubeConfig(server=server),
        state_dir=root,
        listen_port=0,
        token="secret",
        era=era,
    )
    plugin = SandboxNetwork(NodeCni(kernel, root, era=era, rng=role.rng))
    async with RestClient(KubeConfig(server=server), rng=role.rng) as client:
        kubelet = Kubelet(
            config, role, kernel, plugin, StackNetwork(kernel.root), client, default_registry()
        )
        task = asyncio.create_task(kubelet.run(), name="kubelet")
        world = World(api, kubelet, kernel, root)
        try:
            await api.until(lambda: "/api/v1/nodes/node-0" in api.objects or task.done())
            yield world
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            driver.close()
            await api.stop()


NGINX = {"name": "web", "image": "nginx:1.7.9"}
