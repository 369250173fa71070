"""The API server as a process: TLS listener, etcd, cache, handlers."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from agents.apiserver import bootstrap, crds
from agents.apiserver.auth import Authenticator
from agents.apiserver.cache import Cache
from agents.apiserver.crds import Definitions
from agents.apiserver.discovery import Discovery
from agents.apiserver.nodeproxy import NodeProxy
from agents.apiserver.objects import Objects
from agents.apiserver.rest import Rest
from agents.apiserver.server import ApiServer
from agents.apiserver.services import ServiceAddresses
from agents.apiserver.tokens import ServiceAccountTokens
from emulator.apimachinery.resources import Registry
from emulator.errors import UsageError
from emulator.runtime.listener import BACKLOG, listen_tcp

if TYPE_CHECKING:
    import socket

    from agents.apiserver.config import ApiServerConfig
    from agents.apiserver.store import Store
    from emulator.apimachinery.objects import Obj
    from emulator.runtime.role import RoleEnv

# Idle client connections are closed after this long; kubectl and agents reconnect by themselves.
KEEP_ALIVE_S = 300.0


async def run_apiserver(
    config: ApiServerConfig, env: RoleEnv, listener: socket.socket | None = None
) -> None:
    """Serve until cancelled.  Raises UsageError for unusable files and a taken port.

    ``listener`` is the socket to serve, if it listens already.
    """
    from agents.apiserver.etcd_store import EtcdStore
    from etcd.client import EtcdClient

    async with EtcdClient(config.etcd_endpoints, access=config.etcd_access) as client:
        await serve(config, env, EtcdStore(client, env.clock.monotonic), listener)


def listen(config: ApiServerConfig) -> socket.socket:
    """Take the address; UsageError if it is taken."""
    try:
        return listen_tcp(config.listen_host, config.listen_port)
    except OSError as error:
        raise UsageError(
            f"API server: cannot listen on {config.listen_host}:{config.listen_port}: "
            f"{error.strerror or error}; is another program using it?"
        ) from None


async def serve(
    config: ApiServerConfig, env: RoleEnv, store: Store, listener: socket.socket | None = None
) -> None:
    """Serve objects of any store until cancelled."""
    with listener or listen(config) as listener:
        await _serve(config, env, store, listener)


async def _serve(
    config: ApiServerConfig, env: RoleEnv, store: Store, listener: socket.socket
) -> None:
    registry = Registry()
    roots = tuple(sorted({root.root for root in config.storage_roots.values()}))
    cache = Cache(store, env.log, roots)
    addresses = ServiceAddresses(config.service_cidr, config.node_port_range, env.rng)
    objects = Objects(
        cache,
        store,
        addresses,
        env.clock.time,
        env.rng,
        config.storage_roots,
        config.admissions,
    )
    rest = Rest(objects)
    definitions = Definitions(registry, config.storage_roots)

    def sync_definitions() -> None:
        stored = cache.bucket(crds.DIRECTORY)
        definitions.sync(stored.entries[key].obj for key in stored.order())

    cache.on_change[crds.DIRECTORY] = sync_definitions
    address = f"{config.listen_host}:{config.listen_port}"
    nodes = NodeProxy(objects, registry, config.kubelet_token, config.kubelet_ca, env.log)
    tokens = ServiceAccountTokens(_signing_key(config), nodes.peek, env.clock.time, env.rng)
    handler = ApiServer(
        rest,
        registry,
        definitions,
        Discovery(registry, address),
        nodes,
        Authenticator(config.tokens, tokens),
        tokens,
        version_info(config.version),
        env.rng,
        env.log,
    )
    async with asyncio.TaskGroup() as group:
        follower = group.create_task(cache.run(), name="apiserver.cache")
        await cache.loaded.wait()
        told: dict[str, None] = {}

        async def bootstrap_once() -> None:
            services = cache.bucket("services/specs").entries.values()
            found = dict.fromkeys(addresses.adopt(entry.obj for entry in services))
            for problem in found:
                if problem not in told:
                    env.log.warning("%s", problem)
            told.clear()
            told.update(found)
            await bootstrap.run(
                objects,
                registry,
                service_ip=addresses.first_ip,
                advertise_ip=config.advertise_ip,
                advertise_port=config.advertise_port,
                definitions=config.definitions,
            )

        await bootstrap_once()
        server = web.Server(
            handler.handle, access_log=None, keepalive_timeout=KEEP_ALIVE_S, logger=env.log
        )
        runner = web.ServerRunner(server, shutdown_timeout=0.5)
        await runner.setup()
        try:
            site = web.SockSite(runner, listener, ssl_context=tls_context(config), backlog=BACKLOG)
            await site.start()
            env.ready(f"https://{address}")
            group.create_task(bootstrap.keep(bootstrap_once, env.log), name="apiserver.bootstrap")
            await follower
        finally:
            await nodes.close()
            await runner.cleanup()


def _signing_key(config: ApiServerConfig) -> bytes:
    try:
        return Path(config.tls_key).read_bytes()
    except OSError as error:
        raise UsageError(f"API server: cannot read {config.tls_key}: {error.strerror}") from None


def tls_context(config: ApiServerConfig) -> ssl.SSLContext:
    """TLS for the listener; client certificates are optional.  Raises UsageError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
        context.load_verify_locations(config.client_ca)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"API server: cannot use {config.tls_cert}, {config.tls_key} or {config.client_ca}: "
            f"{error}"
        ) from error
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def version_info(git_version: str) -> Obj:
    """``/version``."""
    major, minor, *_ = (*git_version.removeprefix("v").split("."), "0", "0")
    return {
        "major": major,
        "minor": minor,
        "gitVersion": git_version,
        "gitCommit": "9894294ef13a5b32803e3ca2c0d620a088cc84d1",
        "gitTreeState": "clean",
        "buildDate": "2025-05-15T09:03:28Z",
        "goVersion": "go1.23.8",
        "compiler": "gc",
        "platform": "linux/amd64",
    }
