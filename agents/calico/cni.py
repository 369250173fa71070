"""Calico's CNI plugin as a node's kubelet calls it.

ADD takes an address, wires the pod and writes its WorkloadEndpoint; DEL undoes all three and may
be repeated.  What a sandbox holds is noted on the node's disk before anything is taken, so that
whatever a killed node left is found again.
Source: projectcalico/calico cni-plugin/pkg/plugin, pkg/k8s, pkg/ipamplugin.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from agents.calico import cni_wiring
from agents.calico.cni_conf import (
    CONF_FILE,
    NODENAME_FILE,
    CalicoConf,
    PodLike,
    PodRequest,
    default_conf,
    handle_id,
    host_interface,
    read_request,
    resolve_pools,
    workload_endpoint,
)
from agents.calico.datastore import Query
from agents.calico.errors import CniError, DatastoreError, DoesNotExistError, UpdateConflictError
from agents.calico.ipam.assign import AssignRequest
from agents.calico.ipam.block import ReleaseOptions
from agents.calico.net import Cidr, Ip
from agents.calico.resources import endpoint_name, name_of, resource_key, spec_of
from emulator.addr import format_mac
from emulator.errors import PodwireError
from etcd.client import EtcdError

if TYPE_CHECKING:
    import logging
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection
    from pathlib import Path

    from agents.calico.client import ResourceClient
    from agents.calico.datastore import Datastore
    from agents.calico.ipam.ipam import Ipam
    from emulator.netstack.kernel import Kernel
    from emulator.runtime.clock import Clock

NOT_INITIALIZED: Final = "cni plugin not initialized"
NOT_READY: Final = "Calico is currently not ready to process requests"
# The plugin's budget for IPAM once it has the host's lock (ipam_plugin.go).
IPAM_TIMEOUT_S: Final = 90.0
IFNAME: Final = "eth0"
_SANDBOXES: Final = "var/lib/calico/sandboxes"
_ANNOTATION: Final = "cni.projectcalico.org/"


@dataclass(frozen=True, slots=True)
class CalicoResult:
    """What ADD gave a pod; ``annotations`` belong on its object."""

    address: Ip
    interface: str
    mac: str
    container_id: str

    @property
    def ip(self) -> str:
        """The pod's address as text."""
        return str(self.address)

    @property
    def annotations(self) -> dict[str, str]:
        """What calico writes on the pod."""
        return {
            f"{_ANNOTATION}containerID": self.container_id,
            f"{_ANNOTATION}podIP": f"{self.ip}/32",
            f"{_ANNOTATION}podIPs": f"{self.ip}/32",
        }

    def to_json(self, cni_version: str, netns: str) -> dict[str, Any]:
        """The result of SPEC.md."""
        return {
            "cniVersion": cni_version,
            "interfaces": [
                {
                    "name": self.interface,
                    "mac": format_mac(cni_wiring.HOST_MAC),
                },
                {"name": IFNAME, "mac": self.mac, "sandbox": f"/var/run/netns/{netns}"},
            ],
            "ips": [{"version": "4", "interface": 1, "address": f"{self.ip}/32"}],
            "dns": {},
        }


@dataclass(frozen=True, slots=True)
class _Record:
    """What a sandbox may hold, as it is noted on disk."""

    namespace: str
    pod: str
    netns: str
    network: str
    result: CalicoResult | None = None


class CalicoCni:
    """The plugin on one node; its errors are CniErrors.

    ``root_dir`` is the node's root on the host's disk; ``namespace_of`` reads a Namespace's object
    from the API server, whose annotations and labels choose pools (None: they choose nothing);
    ``annotate`` is told what belongs on a pod once it is wired; ``programmed`` says whether felix
    has programmed the kernel: before, a pod would be reachable whatever policies say.
    """

    plugin_type = "calico"

    def __init__(
        self,
        kernel: Kernel,
        root_dir: Path,
        node: str,
        *,
        datastore: Datastore,
        ipam: Ipam,
        resources: ResourceClient,
        clock: Clock,
        log: logging.Logger,
        namespace_of: Callable[[str], Awaitable[dict[str, Any]]] | None = None,
        annotate: Callable[[PodLike, dict[str, str]], Awaitable[None]] | None = None,
        programmed: Callable[[], bool] = lambda: True,
    ) -> None:
        self._kernel = kernel
        self._root = root_dir
        self._node = node
        self._datastore = datastore
        self._ipam = ipam
        self._resources = resources
        self._clock = clock
        self._log = log
        self._namespace_of = namespace_of
        self._annotate = annotate
        self._programmed = programmed
        self._lock = asyncio.Lock()
        target = self._root / CONF_FILE
        if not target.exists():
            _write(target, default_conf(node))

    def ready(self) -> str | None:
        """None when pods can be wired, else the runtime's complaint."""
        wanted = (self._root / CONF_FILE, self._root / NODENAME_FILE)
        if not self._programmed() or not all(path.exists() for path in wanted):
            return NOT_INITIALIZED
        return None

    async def add(self, container_id: str, netns: str, pod: PodLike) -> CalicoResult:
        """Give the sandbox an address and a link; repeating it returns what it has."""
        known = self._load(container_id)
        if known is not None and known.result is not None:
            return known.result
        if known is not None:
            # A killed node was in the middle of it.
            await self._undo(container_id, known)
        conf, node = self._conf(), self._nodename()
        record = _Record(pod.namespace, pod.name, netns, conf.network)
        self._save(container_id, record)
        try:
            async with _plain_errors():
                result = await self._add(conf, node, container_id, netns, pod)
        except PodwireError:
            await self._undo(container_id, record)
            raise
        self._save(
            container_id, _Record(pod.namespace, pod.name, netns, conf.network, result), conf
        )
        if self._annotate is not None:
            try:
                await self._annotate(pod, result.annotations)
            except PodwireError as error:
                # The pod has its network; only what people read on its object is missing.
                self._log.warning("pod %s/%s not annotated: %s", pod.namespace, pod.name, error)
        return result

    async def _add(
        self, conf: CalicoConf, node: str, container_id: str, netns: str, pod: PodLike
    ) -> CalicoResult:
        await self._check_ready()
        namespace = await self._namespace_of(pod.namespace) if self._namespace_of else {}
        meta = namespace.get("metadata") or {}
        annotations = (pod.obj.get("metadata") or {}).get("annotations") or {}
        request = read_request(conf, annotations, meta.get("annotations") or {})
        address = await self._address(
            conf, node, container_id, pod, request, meta.get("labels") or {}
        )
        interface = host_interface(pod.namespace, pod.name)
        mac = format_mac(
            cni_wiring.connect(
                self._kernel,
                netns,
                IFNAME,
                interface,
                address.value,
                mtu=conf.mtu,
                mac=request.mac,
            )
        )
        await self._resources.apply(
            workload_endpoint(
                node, pod, container_id, interface, [address], mac, request.floating_ips
            )
        )
        return CalicoResult(address, interface, mac, container_id)

    async def _check_ready(self) -> None:
        key = resource_key("ClusterInformation", "default")
        found = (await self._datastore.read(Query(key))).one(0)
        # Without the resource the real plugin says the same: nobody has initialized the datastore.
        if found is None or not spec_of(found.value).get("datastoreReady"):
            raise CniError(NOT_READY)

    async def _address(
        self,
        conf: CalicoConf,
        node: str,
        container_id: str,
        pod: PodLike,
        request: PodRequest,
        namespace_labels: dict[str, str],
    ) -> Ip:
        if request.without_ipam:
            return request.addresses[0]
        handle = handle_id(conf.network, container_id)
        secondary = {
            "node": node,
            "timestamp": _go_time(self._clock.time()),
            "pod": pod.name,
            "namespace": pod.namespace,
        }
        async with self._ipam_turn():
            if request.addresses:
                await self._free_earlier(pod)
                await self._ipam.assign_ip(node, request.addresses[0], handle, secondary)
                return request.addresses[0]
            pools: tuple[Cidr, ...] = ()
            if request.pools:
                pools = resolve_pools(request.pools, await self._ipam.pools())
            got = await self._ipam.auto_assign(
                AssignRequest(
                    node,
                    handle=handle,
                    secondary=secondary,
                    pools=pools,
                    namespace_labels=namespace_labels,
                )
            )
        shortfall = got.shortfall()
        if shortfall is not None:
            raise CniError(f"failed to request IPv4 addresses: {shortfall}")
        return got.ips[0]

    async def _free_earlier(self, pod: PodLike) -> None:
        """Release what an earlier sandbox of the pod holds: it asks for the same address again."""
        name = endpoint_name(self._node, "k8s", pod.name)
        try:
            endpoint = await self._resources.get("WorkloadEndpoint", name, pod.namespace)
        except DoesNotExistError:
            return
        held = [Cidr.parse(text) for text in spec_of(endpoint).get("ipNetworks") or ()]
        await self._ipam.release_ips(*(ReleaseOptions(cidr.ip(0)) for cidr in held))

    @contextlib.asynccontextmanager
    async def _ipam_turn(self) -> AsyncIterator[None]:
        """One request of this host at a time; the clock starts when it is its turn."""
        async with self._lock:
            try:
                async with asyncio.timeout(IPAM_TIMEOUT_S):
                    yield
            except TimeoutError:
                raise CniError("context deadline exceeded") from None

    async def delete(self, container_id: str, netns: str) -> None:
        """Undo ``add``; absent parts are success.  CniError: try again, nothing is forgotten."""
        record = self._load(container_id)
        if record is None:
            return
        async with _plain_errors():
            await self._release(container_id, record)
        self._forget(container_id)

    async def _undo(self, container_id: str, record: _Record) -> None:
        """After a failed ADD; what cannot be given back now is given back by ``collect``."""
        try:
            async with _plain_errors():
                await self._release(container_id, record)
        except CniError as error:
            self._log.warning("sandbox %s: %s", container_id, error)
        else:
            self._forget(container_id)

    async def _release(self, container_id: str, record: _Record) -> None:
        """The address goes last: while an endpoint names it nobody else may get it."""
        interface = host_interface(record.namespace, record.pod)
        if await self._drop_endpoint(container_id, record):
            cni_wiring.disconnect(self._kernel, record.netns, IFNAME, interface)
        elif record.netns in self._kernel.netns_names():
            # A newer sandbox has the host's end: only this one's own is removed.
            cni_wiring.disconnect(self._kernel, record.netns, IFNAME, "")
        async with self._ipam_turn():
            # The second is how versions before 3.0 called it.
            for handle in (
                handle_id(record.network, container_id),
                f"{record.namespace}.{record.pod}",
            ):
                with contextlib.suppress(DoesNotExistError):
                    await self._ipam.release_by_handle(handle)

    async def _drop_endpoint(self, container_id: str, record: _Record) -> bool:
        """Delete the pod's endpoint unless a newer sandbox has it; False then."""
        name = endpoint_name(self._node, "k8s", record.pod)
        try:
            endpoint = await self._resources.get("WorkloadEndpoint", name, record.namespace)
        except DoesNotExistError:
            return True
        if spec_of(endpoint).get("containerID") not in (container_id, None, ""):
            return False
        try:
            await self._resources.delete(
                "WorkloadEndpoint",
                name_of(endpoint),
                record.namespace,
                resource_version=endpoint["metadata"]["resourceVersion"],
            )
        except DoesNotExistError:
            return True
        except UpdateConflictError:
            return await self._drop_endpoint(container_id, record)
        return True

    async def check(self, container_id: str, netns: str) -> None:
        """Raise CniError when the pod's wiring, address or endpoint is not as ADD left it."""
        record = self._load(container_id)
        if record is None or record.result is None:
            raise CniError(f"no cached result for container {container_id}")
        result = record.result
        interface = host_interface(record.namespace, record.pod)
        cni_wiring.verify(self._kernel, netns, IFNAME, interface, result.address.value)
        async with _plain_errors():
            name = endpoint_name(self._node, "k8s", record.pod)
            endpoint = spec_of(
                await self._resources.get("WorkloadEndpoint", name, record.namespace)
            )
            if endpoint.get("ipNetworks") != [f"{result.ip}/32"]:
                raise CniError(f"WorkloadEndpoint {name} does not have address {result.ip}")
            if endpoint.get("containerID") != container_id:
                raise CniError(f"WorkloadEndpoint {name} belongs to another container")
            pools = await self._ipam.pools()
            if any(pool.cidr.holds(result.address) for pool in pools if not pool.disabled):
                holder = await self._ipam.assignment(result.address)
                if holder.handle_id != handle_id(record.network, container_id):
                    raise CniError(f"{result.ip} is assigned to handle {holder.handle_id}")

    async def collect(self, live: Collection[str]) -> tuple[str, ...]:
        """Give back what sandboxes not in ``live`` held; return those that are gone, sorted.

        What cannot be given back now stays noted for the next call.
        """
        directory = self._root / _SANDBOXES
        dead = sorted(
            path.stem
            for path in (directory.glob("*.json") if directory.is_dir() else ())
            if path.stem not in live
        )
        gone: list[str] = []
        for container_id in dead:
            try:
                await self.delete(container_id, "")
            except CniError as error:
                self._log.warning("sandbox %s: %s", container_id, error)
            else:
                gone.append(container_id)
        return tuple(gone)

    # Files -------------------------------------------------------------------------------------

    def _conf(self) -> CalicoConf:
        path = self._root / CONF_FILE
        try:
            return CalicoConf.parse(path.read_text(), f"/{CONF_FILE}")
        except FileNotFoundError:
            raise CniError(NOT_INITIALIZED) from None

    def _nodename(self) -> str:
        try:
            return (self._root / NODENAME_FILE).read_text().strip()
        except FileNotFoundError:
            raise CniError(
                f"stat /{NODENAME_FILE}: no such file or directory: check that the calico/node "
                "container is running and has mounted /var/lib/calico/"
            ) from None

    def _path(self, container_id: str) -> Path:
        return self._root / _SANDBOXES / f"{container_id}.json"

    def _result_path(self, network: str, container_id: str) -> Path:
        return self._root / f"var/lib/cni/results/{network}-{container_id}-{IFNAME}"

    def _save(self, container_id: str, record: _Record, conf: CalicoConf | None = None) -> None:
        document: dict[str, Any] = {
            "namespace": record.namespace,
            "pod": record.pod,
            "netns": record.netns,
            "network": record.network,
        }
        result = record.result
        if result is not None and conf is not None:
            document["result"] = {"ip": result.ip, "interface": result.interface, "mac": result.mac}
            cache = {
                "kind": "cniCacheV1",
                "containerId": container_id,
                "ifName": IFNAME,
                "networkName": conf.network,
                "netns": f"/var/run/netns/{record.netns}",
                "cniArgs": [
                    ["K8S_POD_NAMESPACE", record.namespace],
                    ["K8S_POD_NAME", record.pod],
                    ["K8S_POD_INFRA_CONTAINER_ID", container_id],
                ],
                "result": result.to_json(conf.cni_version, record.netns),
            }
            _write(self._result_path(conf.network, container_id), json.dumps(cache))
        _write(self._path(container_id), json.dumps(document))

    def _load(self, container_id: str) -> _Record | None:
        try:
            document = json.loads(self._path(container_id).read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CniError(f"{self._path(container_id)}: {error}; remove the file") from None
        stored = document.get("result")
        result = (
            CalicoResult(Ip.parse(stored["ip"]), stored["interface"], stored["mac"], container_id)
            if stored
            else None
        )
        return _Record(
            document["namespace"], document["pod"], document["netns"], document["network"], result
        )

    def _forget(self, container_id: str) -> None:
        record = self._load(container_id)
        if record is not None:
            self._result_path(record.network, container_id).unlink(missing_ok=True)
        self._path(container_id).unlink(missing_ok=True)


@contextlib.asynccontextmanager
async def _plain_errors() -> AsyncIterator[None]:
    """What goes wrong below is the plugin's error, in the same words."""
    try:
        yield
    except (DatastoreError, EtcdError) as error:
        raise CniError(str(error)) from None


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all: the node may be killed at any instruction."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        temporary.write_text(text)
        temporary.chmod(0o600)
        temporary.replace(path)
    except OSError as error:
        raise CniError(f"write {path}: {error.strerror}") from None


def _go_time(epoch_s: float) -> str:
    """A time as Go's ``time.Now().UTC().String()`` gives it."""
    now = datetime.datetime.fromtimestamp(epoch_s, datetime.UTC)
    fraction = f".{now.microsecond:06}".rstrip("0").rstrip(".")
    return f"{now:%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC"
