"""Network configurations on a node's disk: /etc/cni/net.d, as flannel's manifests install them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.cni.errors import DECODING_FAILURE, INVALID_CONFIG, CniError

if TYPE_CHECKING:
    from pathlib import Path

# What multi-node/generic/worker-install.sh of coreos-kubernetes wrote in 2017.
_CONF_2017 = """{
    "name": "podnet",
    "type": "flannel",
    "delegate": {
        "isDefaultGateway": true
    }
}
"""
# What the install-cni container of kube-flannel.yml copies today.
_CONF_MODERN = """{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"""


def default_conf(era: str) -> tuple[str, str]:
    """Return (path under the node's root, text) of the era's configuration."""
    if era == "2017":
        return "etc/kubernetes/cni/net.d/10-flannel.conf", _CONF_2017
    return "etc/cni/net.d/10-flannel.conflist", _CONF_MODERN


class NetworkConf(NamedTuple):
    """One network: its plugins in order, each with ``name`` and ``cniVersion`` inserted."""

    name: str
    cni_version: str
    plugins: tuple[dict[str, Any], ...]


def parse_conf(text: str, path: str) -> NetworkConf:
    """Read a .conf (one plugin) or .conflist; raises CniError naming the file."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise CniError(DECODING_FAILURE, f"error parsing configuration {path}: {error}") from None
    if not isinstance(document, dict) or not document.get("name"):
        raise CniError(INVALID_CONFIG, f"error parsing configuration {path}: no 'name'")
    version = str(document.get("cniVersion", "0.2.0"))
    plugins = document.get("plugins", [document])
    if not isinstance(plugins, list) or not plugins:
        raise CniError(INVALID_CONFIG, f"error parsing configuration list {path}: no plugins")
    chained: list[dict[str, Any]] = []
    for plugin in plugins:
        if not isinstance(plugin, dict) or not plugin.get("type"):
            raise CniError(INVALID_CONFIG, f"error parsing configuration {path}: missing 'type'")
        chained.append({**plugin, "name": document["name"], "cniVersion": version})
    return NetworkConf(str(document["name"]), version, tuple(chained))


def load_conf(directory: Path) -> NetworkConf | None:
    """Return the directory's first configuration by name, the one the runtime picks."""
    if not directory.is_dir():
        return None
    for path in sorted(directory.iterdir()):
        if path.suffix in (".conf", ".conflist", ".json"):
            return parse_conf(path.read_text(), str(path))
    return None
