"""The flannel plugin: it plugs nothing itself but renders a bridge configuration (pure).

Source: flannel-io/cni-plugin flannel_linux.go; up to 2017 in containernetworking/cni.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agents.cni.errors import GENERIC, CniError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agents.cni.subnetenv import SubnetEnv


def render_delegate(conf: Mapping[str, Any], env: SubnetEnv, era: str) -> dict[str, Any]:
    """Return the delegate's network configuration, keys in the order Go's encoder gives (sorted).

    ``conf`` is flannel's own configuration (``type`` "flannel").  Raises CniError for a delegate
    that names itself or brings its own IPAM.
    """
    delegate = conf.get("delegate") or {}
    if not isinstance(delegate, dict):
        raise CniError(GENERIC, "'delegate' dictionary expected")
    if "name" in delegate:
        raise CniError(
            GENERIC, "'delegate' dictionary must not have 'name' field, it'll be set by flannel"
        )
    if "ipam" in delegate:
        raise CniError(
            GENERIC, "'delegate' dictionary must not have 'ipam' field, it'll be set by flannel"
        )
    rendered: dict[str, Any] = dict(delegate)
    rendered["name"] = conf.get("name", "")
    rendered.setdefault("type", "bridge")
    rendered.setdefault("ipMasq", not env.ip_masq)
    rendered.setdefault("mtu", env.mtu)
    if rendered["type"] == "bridge":
        rendered.setdefault("isGateway", True)
    if conf.get("cniVersion"):
        rendered["cniVersion"] = conf["cniVersion"]
    rendered["ipam"] = _ipam(conf, env, era)
    return dict(sorted(rendered.items()))


def _ipam(conf: Mapping[str, Any], env: SubnetEnv, era: str) -> dict[str, Any]:
    route = {"dst": str(env.network)}
    if era == "2017":
        return {"routes": [route], "subnet": str(env.subnet), "type": "host-local"}
    own = conf.get("ipam") or {}
    return {
        **{key: value for key, value in own.items() if key not in ("ranges", "routes", "subnet")},
        "type": own.get("type", "host-local"),
        "ranges": [[{"subnet": str(env.subnet)}]],
        "routes": [*own.get("routes", ()), route],
    }
