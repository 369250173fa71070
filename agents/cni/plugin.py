"""The runtime's side of CNI on one node: configuration, plugin chain, cached results.

What containerd with libcni does: pick the configuration, run ADD through the chain, keep the
result for DEL and CHECK in ``/var/lib/cni/results``.  All paths lie under the node's root.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from agents.cni import masquerade
from agents.cni.bridge import BridgeConf, BridgePlugin, container_routes
from agents.cni.conf import NetworkConf, default_conf, load_conf
from agents.cni.delegate import render_delegate
from agents.cni.errors import GENERIC, IO_FAILURE, UNKNOWN_CONTAINER, CniError
from agents.cni.hostlocal import HostLocal
from agents.cni.result import AddressConf, CniResult
from agents.cni.subnetenv import SUBNET_FILE, SubnetEnv, missing_file, parse_subnet_env
from emulator.addr import format_ip

if TYPE_CHECKING:
    import random
    from collections.abc import Collection
    from pathlib import Path

    from emulator.netstack.kernel import Kernel

NOT_INITIALIZED = "cni plugin not initialized"


class NodeCni:
    """CNI as one node's kubelet uses it.

    ``root_dir`` is the node's root on the host's disk; ``era`` is "2017" or "modern".
    """

    def __init__(self, kernel: Kernel, root_dir: Path, *, era: str, rng: random.Random) -> None:
        self._kernel = kernel
        self._root = root_dir
        self._era = era
        self._bridge = BridgePlugin(kernel, era=era, rng=rng)
        self._install_conf()

    def ready(self) -> str | None:
        """None when pods can be wired, else why not, in the runtime's words."""
        if self._conf() is None or not self._path(SUBNET_FILE).exists():
            return NOT_INITIALIZED
        return None

    def add(self, container_id: str, netns: str, *, ifname: str = "eth0") -> CniResult:
        """Give the sandbox's namespace an address and a link.

        Repeating it for a wired sandbox returns the cached result.  Raises CniError; nothing
        stays allocated then.
        """
        conf = self._need_conf()
        cached = self._cached(conf.name, container_id, ifname)
        if cached is not None:
            return cached
        flannel = conf.plugins[0]
        delegate = self._delegate(flannel)
        self._save(f"var/lib/cni/flannel/{container_id}", delegate)
        ipam = self._ipam(delegate)
        bridge = BridgeConf.parse(delegate)
        try:
            lease = ipam.add(delegate["ipam"], container_id, ifname)
            address = AddressConf(lease.ip, lease.range.subnet.length, lease.range.gateway, 2)
            routes = container_routes(bridge, delegate["ipam"], address.gateway)
            result = self._bridge.add(bridge, address, routes, netns=netns, ifname=ifname)
            if delegate.get("ipMasq"):
                subnet = str(lease.range.subnet)
                root = self._kernel.root
                masquerade.set_up(root, delegate["name"], container_id, result.ip, subnet)
        except CniError:
            ipam.delete(container_id, ifname)
            self._path(f"var/lib/cni/flannel/{container_id}").unlink(missing_ok=True)
            raise
        self._cache(conf, container_id, ifname, netns, result)
        return result

    def delete(self, container_id: str, netns: str, *, ifname: str = "eth0") -> None:
        """Undo ``add``; absent parts are success, as the specification asks."""
        saved = self._path(f"var/lib/cni/flannel/{container_id}")
        if not saved.exists():
            return
        delegate = json.loads(saved.read_text())
        self._bridge.delete(netns=netns, ifname=ifname)
        held = self._ipam(delegate).delete(container_id, ifname)
        for ip in held if delegate.get("ipMasq") else ():
            root = self._kernel.root
            masquerade.tear_down(root, delegate["name"], container_id, format_ip(ip))
        saved.unlink(missing_ok=True)
        self._result_path(delegate["name"], container_id, ifname).unlink(missing_ok=True)

    def check(self, container_id: str, netns: str, *, ifname: str = "eth0") -> None:
        """Raise CniError when the pod's wiring differs from the cached result."""
        conf = self._need_conf()
        cached = self._cached(conf.name, container_id, ifname)
        if cached is None:
            raise CniError(UNKNOWN_CONTAINER, f"no cached result for container {container_id}")
        delegate = json.loads(self._path(f"var/lib/cni/flannel/{container_id}").read_text())
        if self._ipam(delegate).find(container_id, ifname) is None:
            raise CniError(
                GENERIC, f"host-local: Failed to find address added by container {container_id}"
            )
        self._bridge.check(BridgeConf.parse(delegate), cached, netns=netns, ifname=ifname)

    def collect(self, live: Collection[str]) -> tuple[str, ...]:
        """Delete what belongs to no live sandbox (CNI 1.1's GC); returns the dead IDs, sorted.

        After a node's process died nothing is live: every address it held is free again.
        """
        directory = self._path("var/lib/cni/flannel")
        dead = sorted(
            path.name
            for path in (directory.iterdir() if directory.is_dir() else ())
            if path.name not in live
        )
        for container_id in dead:
            self.delete(container_id, f"cni-{container_id}")
        return tuple(dead)

    def _install_conf(self) -> None:
        path, text = default_conf(self._era)
        target = self._path(path)
        if not target.exists():
            _write(target, text)

    def _conf(self) -> NetworkConf | None:
        return load_conf(self._path(default_conf(self._era)[0]).parent)

    def _need_conf(self) -> NetworkConf:
        conf = self._conf()
        if conf is None:
            raise CniError(GENERIC, NOT_INITIALIZED)
        if conf.plugins[0]["type"] not in ("flannel", "bridge"):
            raise CniError(
                GENERIC, f'failed to find plugin "{conf.plugins[0]["type"]}" in path [/opt/cni/bin]'
            )
        return conf

    def _subnet_env(self, path: str) -> SubnetEnv:
        try:
            text = self._path(path).read_text()
        except FileNotFoundError:
            raise missing_file(path, self._era) from None
        return parse_subnet_env(text, path=path)

    def _delegate(self, plugin: dict[str, Any]) -> dict[str, Any]:
        if plugin["type"] == "bridge":
            return plugin
        env = self._subnet_env(plugin.get("subnetFile", SUBNET_FILE))
        return render_delegate(plugin, env, self._era)

    def _ipam(self, delegate: dict[str, Any]) -> HostLocal:
        data_dir = delegate["ipam"].get("dataDir", "/var/lib/cni/networks")
        return HostLocal(self._path(data_dir), delegate["name"])

    def _path(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def _save(self, path: str, document: dict[str, Any]) -> None:
        _write(self._path(path), json.dumps(document, separators=(",", ":")))

    def _result_path(self, network: str, container_id: str, ifname: str) -> Path:
        return self._path(f"var/lib/cni/results/{network}-{container_id}-{ifname}")

    def _cache(
        self, conf: NetworkConf, container_id: str, ifname: str, netns: str, result: CniResult
    ) -> None:
        document = {
            "kind": "cniCacheV1",
            "containerId": container_id,
            "ifName": ifname,
            "networkName": conf.name,
            "netns": f"/var/run/netns/{netns}",
            "result": result.to_json("0.3.1" if conf.cni_version < "0.3" else conf.cni_version),
        }
        _write(
            self._result_path(conf.name, container_id, ifname),
            json.dumps(document, separators=(",", ":")),
        )

    def _cached(self, network: str, container_id: str, ifname: str) -> CniResult | None:
        try:
            text = self._result_path(network, container_id, ifname).read_text()
        except FileNotFoundError:
            return None
        return CniResult.from_json(json.loads(text)["result"])


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all: the node may be killed at any instruction."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        temporary.write_text(text)
        temporary.chmod(0o600)
        temporary.replace(path)
    except OSError as error:
        raise CniError(IO_FAILURE, f"write {path}: {error.strerror}") from None
