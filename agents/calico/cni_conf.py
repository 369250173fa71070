"""What Calico's CNI plugin is told: its configuration, the pod, its annotations (pure).

Source: projectcalico/calico cni-plugin/pkg/{k8s,types,ipamplugin}, manifests/calico-etcd.yaml.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from agents.calico.errors import CniError
from agents.calico.net import Cidr, Ip
from agents.calico.resources import Resource, endpoint_name, new_resource
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agents.calico.ipam.pools import Pool

CONF_FILE: Final = "etc/cni/net.d/10-calico.conflist"
NODENAME_FILE: Final = "var/lib/calico/nodename"
_ANNOTATION: Final = "cni.projectcalico.org/"
INTERFACE_PREFIX: Final = "cali"
# 1460 of a cloud's network less the 20 octets of IP in IP, as the manifests of v3.2 to v3.16 said.
DEFAULT_MTU: Final = 1440
_CONF: Final = """{{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {{
      "type": "calico",
      "log_level": "info",
      "nodename": "{node}",
      "mtu": {mtu},
      "ipam": {{
          "type": "calico-ipam"
      }},
      "policy": {{
          "type": "k8s"
      }},
      "kubernetes": {{
          "kubeconfig": "/etc/cni/net.d/calico-kubeconfig"
      }}
    }},
    {{
      "type": "portmap",
      "snat": true,
      "capabilities": {{"portMappings": true}}
    }}
  ]
}}
"""


class PodLike(Protocol):
    """What the kubelet knows of a pod (agents/kubelet PodSpec); ``obj`` is the API's object."""

    @property
    def namespace(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def service_account(self) -> str: ...

    @property
    def obj(self) -> Mapping[str, Any]: ...


def default_conf(node: str, mtu: int = DEFAULT_MTU) -> str:
    """The network configuration that install-cni leaves on a node."""
    return _CONF.format(node=node, mtu=mtu)


@dataclass(frozen=True, slots=True)
class CalicoConf:
    """The calico plugin's configuration, the first of its list."""

    network: str
    cni_version: str
    mtu: int
    ipv4_pools: tuple[str, ...]
    ip_addrs_no_ipam: bool
    floating_ips: bool

    @classmethod
    def parse(cls, text: str, path: str) -> CalicoConf:
        """Read a .conflist; raises CniError naming the file."""
        try:
            document = json.loads(text)
            plugin = document["plugins"][0]
            ipam, feature = plugin.get("ipam") or {}, plugin.get("feature_control") or {}
            kind, ipam_kind = plugin["type"], ipam.get("type")
            conf = cls(
                str(document["name"]),
                str(document.get("cniVersion", "0.2.0")),
                int(plugin.get("mtu") or DEFAULT_MTU),
                tuple(ipam.get("ipv4_pools") or ()),
                bool(feature.get("ip_addrs_no_ipam")),
                bool(feature.get("floating_ips")),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise CniError(f"error parsing configuration list {path}: {error!r}") from None
        for wanted, got in (("calico", kind), ("calico-ipam", ipam_kind)):
            if got != wanted:
                raise CniError(f'failed to find plugin "{got}" in path [/opt/cni/bin]')
        return conf


def host_interface(namespace: str, pod: str) -> str:
    """The host's end of a pod's veth: always 15 characters."""
    digest = hashlib.sha1(f"{namespace}.{pod}".encode(), usedforsecurity=False).hexdigest()
    return INTERFACE_PREFIX + digest[:11]


def handle_id(network: str, container_id: str) -> str:
    """The handle of a container's addresses."""
    return f"{network}.{container_id}"


@dataclass(frozen=True, slots=True)
class PodRequest:
    """What a pod's and its namespace's annotations ask for.

    ``addresses`` are taken as they are: from IPAM, or with ``without_ipam`` from nobody.
    """

    addresses: tuple[Ip, ...]
    without_ipam: bool
    pools: tuple[str, ...]
    floating_ips: tuple[Ip, ...]
    mac: bytes | None


def read_request(
    conf: CalicoConf, pod: Mapping[str, str], namespace: Mapping[str, str]
) -> PodRequest:
    """Read the annotations ``cni.projectcalico.org/…``; raises CniError."""
    families = pod.get(f"{_ANNOTATION}ipFamilies") or namespace.get(f"{_ANNOTATION}ipFamilies")
    for family in _list(families, "ipFamilies"):
        if family not in ("IPv4", "IPv6"):
            raise CniError(f"error parsing ipFamilies: {families}")
        if family == "IPv6":
            raise CniError("IPv6 pods are not supported: the node's network is IPv4 only")
    asked = pod.get(f"{_ANNOTATION}ipAddrs")
    bypass = pod.get(f"{_ANNOTATION}ipAddrsNoIpam")
    if asked and bypass:
        raise CniError(
            "can't have both annotations: 'ipAddrs' and 'ipAddrsNoIpam' in use at the same time"
        )
    if bypass and not conf.ip_addrs_no_ipam:
        raise CniError("requested feature is not enabled: ip_addrs_no_ipam")
    floating = pod.get(f"{_ANNOTATION}floatingIPs")
    if floating and not conf.floating_ips:
        raise CniError("requested feature is not enabled: floating_ips")
    pools = pod.get(f"{_ANNOTATION}ipv4pools") or namespace.get(f"{_ANNOTATION}ipv4pools")
    mac = pod.get(f"{_ANNOTATION}hwAddr")
    return PodRequest(
        _addresses(asked or bypass, "ipAddrs" if asked else "ipAddrsNoIpam"),
        bool(bypass),
        tuple(_list(pools, "ipv4pools")) if pools else conf.ipv4_pools,
        _addresses(floating, "floatingIPs"),
        _mac(mac) if mac else None,
    )


def _list(text: str | None, name: str) -> list[str]:
    if not text:
        return []
    try:
        found = json.loads(text)
    except ValueError as error:
        raise CniError(f"failed to parse '{text}' as JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise CniError(f"failed to parse annotation {name} '{text}': expected a list of strings")
    return found


def _addresses(text: str | None, name: str) -> tuple[Ip, ...]:
    if not text:
        return ()
    try:
        found = tuple(Ip.parse(each) for each in _list(text, name))
    except UsageError:
        raise CniError(f"invalid IP format in annotation {name}: {text}") from None
    if not found:
        raise CniError(f"annotation '{name}' specified but empty")
    if name != "floatingIPs" and len(found) > 1:
        raise CniError(f"can't have more than one IPv4 address for {name} annotation: {text}")
    if any(ip.version != 4 for ip in found):
        raise CniError(f"annotation {name} asks for an IPv6 address on an IPv4 network: {text}")
    return found


def _mac(text: str) -> bytes:
    try:
        found = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        found = b""
    if len(found) != 6:
        raise CniError(f"failed to parse MAC address {text}")
    return found


def resolve_pools(wanted: Iterable[str], pools: Iterable[Pool]) -> tuple[Cidr, ...]:
    """Networks of pools named by network or by name; raises CniError."""
    known = {pool.name: pool.cidr for pool in pools}
    found: list[Cidr] = []
    for text in wanted:
        try:
            cidr = known[text] if text in known else Cidr.parse(text)
        except UsageError as error:
            raise CniError(f'error parsing pool "{text}": {error}') from None
        if cidr.version != 4:
            raise CniError(f'"{text}" isn\'t a IPv4 address')
        found.append(cidr)
    return tuple(found)


def workload_endpoint(
    node: str,
    pod: PodLike,
    container_id: str,
    interface: str,
    addresses: Iterable[Ip],
    mac: str,
    floating_ips: Iterable[Ip] = (),
) -> Resource:
    """The WorkloadEndpoint of a pod's eth0."""
    meta = pod.obj.get("metadata") or {}
    account = pod.service_account or "default"
    networks = [f"{ip}/{32 if ip.version == 4 else 128}" for ip in addresses]
    spec: dict[str, Any] = {
        "orchestrator": "k8s",
        "node": node,
        "containerID": container_id,
        "pod": pod.name,
        "endpoint": "eth0",
        "serviceAccountName": account,
        "ipNetworks": networks,
        "profiles": [f"kns.{pod.namespace}", f"ksa.{pod.namespace}.{account}"],
        "interfaceName": interface,
        "mac": mac,
    }
    nats = [
        {"internalIP": network.partition("/")[0], "externalIP": str(ip)}
        for network in networks[:1]
        for ip in floating_ips
    ]
    if nats:
        spec["ipNATs"] = nats
    ports = [
        {
            "name": port.get("name", ""),
            "protocol": port.get("protocol", "TCP"),
            "port": port["containerPort"],
        }
        for container in (pod.obj.get("spec") or {}).get("containers") or ()
        for port in container.get("ports") or ()
    ]
    if ports:
        spec["ports"] = ports
    labels = {
        **(meta.get("labels") or {}),
        "projectcalico.org/namespace": pod.namespace,
        "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": account,
    }
    name = endpoint_name(node, "k8s", pod.name)
    resource = new_resource("WorkloadEndpoint", name, spec, namespace=pod.namespace, labels=labels)
    if meta.get("generateName"):
        resource["metadata"]["generateName"] = meta["generateName"]
    return resource
