"""The kubeconfig that points kubectl at the cluster."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from emulator.cluster.pki import Pair


def render_kubeconfig(
    *, cluster: str, server: str, ca: Path, client: Pair | None = None, token: str | None = None
) -> str:
    """Return the YAML of a kubeconfig with everything embedded."""

    def embed(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    user: dict[str, str] = {}
    if client is not None:
        user["client-certificate-data"] = embed(client.cert)
        user["client-key-data"] = embed(client.key)
    if token is not None:
        user["token"] = token
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": cluster,
                "cluster": {"server": server, "certificate-authority-data": embed(ca)},
            }
        ],
        "users": [{"name": f"{cluster}-admin", "user": user}],
        "contexts": [
            {"name": cluster, "context": {"cluster": cluster, "user": f"{cluster}-admin"}}
        ],
        "current-context": cluster,
    }
    return yaml.safe_dump(document, sort_keys=False)
