"""A pod's sandbox: its network namespace, address, hostname and the files all containers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from emulator.addr import format_ip
from emulator.runtime.stack import StackNetwork

if TYPE_CHECKING:
    from agents.kubelet.config import KubeletConfig
    from agents.kubelet.spec import PodSpec
    from emulator.netstack.kernel import Kernel
    from emulator.netstack.netns import NetNs


class PodAttachment(Protocol):
    """What the network plugin gave a pod."""

    @property
    def ip(self) -> str: ...


class PodNetwork(Protocol):
    """The network plugin as the kubelet sees it (agents/cni, agents/calico).

    Errors are PodwireErrors.  Adding what is wired and deleting what is not are none.
    """

    @property
    def plugin_type(self) -> str:
        """The plugin's name, which events blame."""

    def ready(self) -> str | None:
        """None when pods can be wired, else the runtime's complaint."""

    async def add(self, container_id: str, netns: str, pod: PodSpec) -> PodAttachment: ...

    async def delete(self, container_id: str, netns: str) -> None: ...

    async def collect(self, live: list[str]) -> tuple[str, ...]:
        """Give back what sandboxes not in ``live`` held."""


@dataclass(slots=True)
class Sandbox:
    """One pod's place to run in; ``netns`` is empty for pods on the node's own network."""

    sandbox_id: str
    netns: str
    ns: NetNs
    network: StackNetwork
    hostname: str
    ip: str

    def addresses(self) -> tuple[str, ...]:
        """Every address of the namespace, loopback first."""
        return tuple(format_ip(each.ip) for each in self.ns.addrs())


async def create_sandbox(
    pod: PodSpec,
    config: KubeletConfig,
    kernel: Kernel,
    plugin: PodNetwork,
    root_network: StackNetwork,
    sandbox_id: str,
) -> Sandbox:
    """Make the namespace and wire it; a PodwireError leaves nothing behind."""
    hostname = pod.hostname or pod.name
    if pod.host_network:
        return Sandbox(sandbox_id, "", kernel.root, root_network, config.node_name, config.node_ip)
    netns = f"cni-{sandbox_id}"
    ns = kernel.netns_add(netns)
    try:
        ns.link_set("lo", up=True)
        attachment = await plugin.add(sandbox_id, netns, pod)
    except BaseException:
        kernel.netns_del(netns)
        raise
    hosts = {hostname: [attachment.ip]}
    for alias in pod.host_aliases:
        for name in alias.get("hostnames") or ():
            hosts.setdefault(name, []).append(alias["ip"])
    return Sandbox(sandbox_id, netns, ns, StackNetwork(ns, hosts=hosts), hostname, attachment.ip)


async def delete_sandbox(sandbox: Sandbox, kernel: Kernel, plugin: PodNetwork) -> None:
    """Give the address back and drop the namespace; a sandbox half made is no error."""
    if not sandbox.netns:
        return
    await plugin.delete(sandbox.sandbox_id, sandbox.netns)
    if sandbox.netns in kernel.netns_names():
        kernel.netns_del(sandbox.netns)


def hosts_file(pod: PodSpec, sandbox: Sandbox, config: KubeletConfig) -> bytes:
    """/etc/hosts as the kubelet manages it (kubelet_pods.go managedHostsFileContent)."""
    lines = [
        "# Kubernetes-managed hosts file.",
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet",
        "fe00::0\tip6-mcastprefix",
        "fe00::1\tip6-allnodes",
        "fe00::2\tip6-allrouters",
    ]
    names = sandbox.hostname
    if pod.subdomain:
        domain = f"{pod.subdomain}.{pod.namespace}.svc.{config.cluster_domain}"
        names = f"{sandbox.hostname}.{domain}\t{sandbox.hostname}"
    lines.append(f"{sandbox.ip}\t{names}")
    if pod.host_aliases:
        lines += ["", "# Entries added by HostAliases."]
        lines += [
            "\t".join([alias["ip"], *(alias.get("hostnames") or ())]) for alias in pod.host_aliases
        ]
    return ("\n".join(lines) + "\n").encode()


def resolv_conf(pod: PodSpec, config: KubeletConfig) -> bytes:
    """/etc/resolv.conf for the pod's DNS policy."""
    if not config.cluster_dns or pod.dns_policy == "Default":
        return b""
    domain = config.cluster_domain
    return (
        f"search {pod.namespace}.svc.{domain} svc.{domain} {domain}\n"
        f"nameserver {config.cluster_dns}\n"
        "options ndots:5\n"
    ).encode()
