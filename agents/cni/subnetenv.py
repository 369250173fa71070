"""The file flanneld leaves for the CNI plugin: /run/flannel/subnet.env (pure)."""

from __future__ import annotations

from typing import NamedTuple

from agents.cni.errors import GENERIC, CniError
from emulator.addr import Prefix
from emulator.errors import UsageError

SUBNET_FILE = "/run/flannel/subnet.env"
_REQUIRED = ("FLANNEL_NETWORK", "FLANNEL_SUBNET", "FLANNEL_MTU", "FLANNEL_IPMASQ")


class SubnetEnv(NamedTuple):
    """What subnet.env says; ``subnet`` is masked as the plugin masks it."""

    network: Prefix
    subnet: Prefix
    mtu: int
    ip_masq: bool


def missing_file(path: str, era: str) -> CniError:
    """The error of an absent file: three texts over the years, the first and the last are here."""
    if era == "2017":
        return CniError(GENERIC, f"open {path}: no such file or directory")
    return CniError(
        GENERIC,
        f"failed to load flannel 'subnet.env' file: open {path}: no such file or directory. "
        "Check the flannel pod log for this node.",
    )


def parse_subnet_env(text: str, *, path: str = SUBNET_FILE) -> SubnetEnv:
    """Read subnet.env as flannel-io/cni-plugin's loadFlannelSubnetEnv does.

    Raises CniError naming every missing variable, or the variable whose value does not parse.
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            values[name.strip()] = value.strip()
    missing = [name for name in _REQUIRED if not values.get(name)]
    if missing:
        raise CniError(GENERIC, f"{path} is missing {', '.join(missing)}")
    try:
        return SubnetEnv(
            Prefix.parse(values["FLANNEL_NETWORK"], strict=False),
            Prefix.parse(values["FLANNEL_SUBNET"], strict=False),
            int(values["FLANNEL_MTU"]),
            values["FLANNEL_IPMASQ"] == "true",
        )
    except (UsageError, ValueError) as error:
        raise CniError(GENERIC, f"{path}: {error}") from None
