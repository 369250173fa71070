"""subnet.env, what a node's CNI plugin and container engine read; pure.

flannel, pkg/subnet/subnet.go (WriteSubnetFile) and dist/mk-docker-opts.sh.
"""

from __future__ import annotations

from dataclasses import dataclass

from emulator.addr import Prefix, format_ip
from emulator.errors import UsageError


@dataclass(frozen=True, slots=True)
class SubnetEnv:
    """The four facts a node's other programs need."""

    network: Prefix
    subnet: Prefix
    mtu: int
    ip_masq: bool

    def text(self) -> str:
        """The file's content; FLANNEL_SUBNET is the subnet's first host address."""
        return (
            f"FLANNEL_NETWORK={self.network}\n"
            f"FLANNEL_SUBNET={format_ip(self.subnet.network + 1)}/{self.subnet.length}\n"
            f"FLANNEL_MTU={self.mtu}\n"
            f"FLANNEL_IPMASQ={str(self.ip_masq).lower()}\n"
        )


def parse_previous_subnet(text: str) -> Prefix | None:
    """FLANNEL_SUBNET of an earlier file, masked; None if it is missing or malformed."""
    for line in text.splitlines():
        name, _, value = line.strip().partition("=")
        if name == "FLANNEL_SUBNET" and "/" in value:
            try:
                return Prefix.parse(value, strict=False)
            except UsageError:
                return None
    return None


def docker_options(
    env: SubnetEnv, *, individual: bool = True, combined: bool = True, key: str = "DOCKER_OPTS"
) -> str:
    """What ``mk-docker-opts.sh`` writes: ``-i`` individual lines, ``-c`` the combined one."""
    options = {
        "BIP": f"--bip={format_ip(env.subnet.network + 1)}/{env.subnet.length}",
        # flannel masquerades, so that docker must not, and the other way round.
        "IPMASQ": f"--ip-masq={str(not env.ip_masq).lower()}",
        "MTU": f"--mtu={env.mtu}",
    }
    lines = [f'DOCKER_OPT_{name}="{value}"\n' for name, value in options.items()]
    joined = "".join(f" {value}" for value in options.values())
    return ("".join(lines) if individual else "") + (f'{key}="{joined}"\n' if combined else "")
