"""An API server on loopback with an in-memory store, its certificates and stock kubectls."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import logging
import os
import random
import shutil
import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agents.apiserver.config import ApiServerConfig, UserInfo
from agents.apiserver.daemon import serve
from agents.apiserver.store import Change, Stored, Written
from emulator.runtime.clock import real_clock
from emulator.runtime.role import RoleEnv

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agents.apiserver.store import Store

TOKEN = "test-token"
KUBELET_TOKEN = "kubelet-token"


class MemoryStore:
    """The store's contract over a dict: one revision per write, watches by prefix."""

    def __init__(self) -> None:
        self.revision = 1
        self.data: dict[bytes, Stored] = {}
        self._history: list[Change] = []
        self._queues: list[asyncio.Queue[Change]] = []

    async def load(self, prefix: bytes) -> tuple[list[Stored], int]:
        return [s for k, s in sorted(self.data.items()) if k.startswith(prefix)], self.revision

    def _publish(self, change: Change) -> Written:
        self._history.append(change)
        for queue in self._queues:
            queue.put_nowait(change)
        return Written(change.revision, None, True)

    def _put(self, key: bytes, value: bytes) -> Written:
        self.revision += 1
        self.data[key] = Stored(key, value, self.revision)
        return self._publish(Change(key, value, self.revision))

    async def create(self, key: bytes, value: bytes, ttl_s: int = 0) -> Written:
        if key in self.data:
            return Written(self.revision, self.data[key], False)
        return self._put(key, value)

    async def replace(self, key: bytes, value: bytes, revision: int, ttl_s: int = 0) -> Written:
        await asyncio.sleep(0)
        current = self.data.get(key)
        if current is None or current.revision != revision:
            return Written(self.revision, current, False)
        return self._put(key, value)

    async def remove(self, key: bytes, revision: int) -> Written:
        current = self.data.get(key)
        if current is None or current.revision != revision:
            return Written(self.revision, current, False)
        self.revision += 1
        del self.data[key]
        return self._publish(Change(key, None, self.revision))

    @contextlib.asynccontextmanager
    async def watch(
        self, first: bytes, end: bytes, start_revision: int
    ) -> AsyncIterator[AsyncIterator[tuple[list[Change], int]]]:
        queue: asyncio.Queue[Change] = asyncio.Queue()
        for change in self._history:
            if change.revision >= start_revision:
                queue.put_nowait(change)
        self._queues.append(queue)

        async def batches() -> AsyncIterator[tuple[list[Change], int]]:
            while True:
                change = await queue.get()
                yield [change] if first <= change.key < end else [], change.revision

        try:
            yield batches()
        finally:
            self._queues.remove(queue)


class Pki(NamedTuple):
    """Paths of PEM files."""

    ca: str
    cert: str
    key: str
    client_cert: str
    client_key: str


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def make_pki(folder: Path) -> Pki:
    """A CA, a server certificate for 127.0.0.1 and a client certificate of an administrator."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-ca")])

    def issue(subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool, san: bool) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(_usage(ca=ca), critical=True)
        )
        if san:
            names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
        return key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )

    key, client_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    server = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "apiserver")])
    client = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"),
            x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes-admin"),
        ]
    )
    return Pki(
        _write(folder / "ca.crt", issue(ca_name, ca_key, ca=True, san=False)),
        _write(folder / "server.crt", issue(server, key, ca=False, san=True)),
        _write(folder / "server.key", pem(key)),
        _write(folder / "client.crt", issue(client, client_key, ca=False, san=False)),
        _write(folder / "client.key", pem(client_key)),
    )


def _kubectls() -> dict[str, str]:
    """Stock kubectls on this machine: the one on PATH and those of other versions beside it."""
    found: dict[str, str] = {}
    bundled = Path(sys.executable).parent / "kubectl"
    if bundled.exists():
        found["bundled"] = str(bundled)
    on_path = shutil.which("kubectl", path=os.defpath) or shutil.which("kubectl")
    if on_path and Path(on_path).resolve() != bundled.resolve():
        found["path"] = on_path
        for minor in range(27, 40):
            beside = Path(on_path).resolve().parent / f"kubectl.1.{minor}"
            if beside.exists():
                found[f"1.{minor}"] = str(beside)
    return found


KUBECTLS = _kubectls()


class Result(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


class World:
    """A running API server."""

    def __init__(self, folder: Path, pki: Pki, store: Store, port: int) -> None:
        self.folder = folder
        self.pki = pki
        self.store = store
        self.port = port
        self.url = f"https://127.0.0.1:{port}"
        self.kubectl_path = KUBECTLS.get("path") or KUBECTLS.get("bundled", "")
        (folder / "config").write_text(json.dumps(self._kubeconfig()))

    def _kubeconfig(self) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "t",
            "clusters": [
                {
                    "name": "t",
                    "cluster": {"server": self.url, "certificate-authority": self.pki.ca},
                }
            ],
            "users": [
                {
                    "name": "t",
                    "user": {
                        "client-certificate": self.pki.client_cert,
                        "client-key": self.pki.client_key,
                    },
                }
            ],
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
        }

    async def spawn(self, *args: str) -> asyncio.subprocess.Process:
        """Start kubectl with a home of its own."""
        environment = {
            "HOME": str(self.folder),
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(self.folder / "config"),
        }
        return await asyncio.create_subprocess_exec(
            self.kubectl_path,
            *args,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )

    async def kubectl(self, *args: str, stdin: str = "") -> Result:
        """Run kubectl to its end."""
        process = await self.spawn(*args)
        async with asyncio.timeout(60):
            out, err = await process.communicate(stdin.encode())
        assert process.returncode is not None
        return Result(process.returncode, out.decode(), err.decode())

    async def ok(self, *args: str, stdin: str = "") -> str:
        """Run kubectl, which must succeed; its output."""
        result = await self.kubectl(*args, stdin=stdin)
        assert result.code == 0, f"kubectl {' '.join(args)}: {result.out}{result.err}"
        return result.out

    async def fails(self, *args: str, stdin: str = "") -> str:
        """Run kubectl, which must fail; what it says."""
        result = await self.kubectl(*args, stdin=stdin)
        assert result.code != 0, f"kubectl {' '.join(args)} succeeded: {result.out}"
        return result.err


def free_port() -> int:
    """A port nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Kubelet:
    """A kubelet that echoes: exec prints its command, copies stdin and exits as it is told."""

    def __init__(self) -> None:
        self.log = b"one\ntwo\n"
        self.queries: list[str] = []

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(request.path_qs)
        if request.headers.get("Authorization") != f"Bearer {KUBELET_TOKEN}":
            raise web.HTTPUnauthorized
        return web.Response(body=self.log)

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        self.queries.append(request.path_qs)
        socket = web.WebSocketResponse(protocols=("v5.channel.k8s.io", "v4.channel.k8s.io"))
        await socket.prepare(request)
        command = request.query.getall("command", [])
        await socket.send_bytes(b"\x01" + " ".join(command).encode() + b"\n")
        await socket.send_bytes(b"\x02" + b"to stderr\n")
        if request.query.get("stdin") in ("true", "1"):
            async for message in socket:
                if message.data[:1] == b"\xff":
                    break
                if message.data[:1] == b"\x00":
                    await socket.send_bytes(b"\x01" + message.data[1:].upper())
        status: dict[str, object] = {"metadata": {}, "status": "Success"}
        if command[:1] == ["exit"]:
            status = {
                "metadata": {},
                "status": "Failure",
                "reason": "NonZeroExitCode",
                "message": f"command terminated with exit code {command[1]}",
                "details": {"causes": [{"reason": "ExitCode", "message": command[1]}]},
            }
        await socket.send_bytes(b"\x03" + json.dumps(status).encode())
        await socket.close()
        return socket


@contextlib.asynccontextmanager
async def kubelet(pki: Pki) -> AsyncIterator[tuple[Kubelet, int]]:
    """Run the echoing kubelet on loopback; yields it and its port."""
    fake = Kubelet()
    app = web.Application()
    app.router.add_get("/containerLogs/{ns}/{pod}/{container}", fake._logs)
    for verb in ("exec", "attach"):
        app.router.add_get(f"/{verb}/{{ns}}/{{pod}}/{{container}}", fake._exec)
    runner = web.AppRunner(app, shutdown_timeout=0.2)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.cert, pki.key)
    port = free_port()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
        yield fake, port
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def api_server(
    folder: Path, store: Store | None = None, **settings: Any
) -> AsyncIterator[World]:
    """Run an API server until the block ends; ``settings`` are further fields of its config."""
    pki = make_pki(folder)
    store = store or MemoryStore()
    port = free_port()
    ready = asyncio.Event()
    config = ApiServerConfig(
        listen_host="127.0.0.1",
        listen_port=port,
        etcd_endpoints=(),
        tls_cert=pki.cert,
        tls_key=pki.key,
        client_ca=pki.ca,
        service_cidr="10.96.0.0/12",
        advertise_ip="172.17.4.101",
        advertise_port=6443,
        kubelet_token=KUBELET_TOKEN,
        kubelet_ca=pki.ca,
        tokens={TOKEN: UserInfo("tester", ("system:masters",))},
        **settings,
    )
    env = RoleEnv(
        real_clock(), random.Random(1), logging.getLogger("apiserver"), lambda _: ready.set()
    )
    task = asyncio.create_task(serve(config, env, store), name="apiserver")
    waiting = asyncio.create_task(ready.wait(), name="ready")
    try:
        async with asyncio.timeout(20):
            await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        yield World(folder, pki, store, port)
    finally:
        waiting.cancel()
        task.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
