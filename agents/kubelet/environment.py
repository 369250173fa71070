"""A container's environment variables (pure).

Order and precedence follow kubelet_pods.go makeEnvironmentVariables: image, services, envFrom,
env; ``$(NAME)`` is expanded with what came before, as in third_party/forked/golang/expansion.
"""

from __future__ import annotations

import base64
import math
import re
from typing import TYPE_CHECKING, Any

from emulator.apimachinery import quantity
from emulator.errors import PodwireError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from agents.kubelet.config import KubeletConfig
    from agents.kubelet.spec import ContainerSpec, PodSpec

    Object = Mapping[str, Any]
    # kind ("configmap" or "secret") and name → the object, None where there is none.
    Lookup = Callable[[str, str], Object | None]

_REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")
# env_var names as of validation.IsEnvVarName; envFrom skips the others.
_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
MASTER_SERVICE = "kubernetes"


class ContainerConfigError(PodwireError):
    """A reference of the container cannot be resolved: CreateContainerConfigError."""


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace ``$(NAME)``; ``$$(NAME)`` stays ``$(NAME)``, an unknown name stays as written."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return env.get(match[2], match[0])

    return _REFERENCE.sub(value, text)


def command_line(
    container: ContainerSpec,
    entrypoint: Sequence[str],
    command: Sequence[str],
    env: Mapping[str, str],
) -> tuple[str, ...]:
    """The argv: the pod's command and args over the image's entrypoint and command."""
    if container.command:
        words = [*container.command, *container.args]
    elif container.args:
        words = [*entrypoint, *container.args]
    else:
        return (*entrypoint, *command)
    return tuple(expand(word, env) for word in words)


def service_environment(services: Iterable[Object], namespace: str) -> dict[str, str]:
    """Variables of every service with a ClusterIP in ``namespace``, and of ``kubernetes``.

    Both forms of pkg/kubelet/envvars: ``{NAME}_SERVICE_HOST`` and docker links.
    """
    chosen: dict[str, Object] = {}
    for service in services:
        meta = service["metadata"]
        if service["spec"].get("clusterIP") in (None, "", "None"):
            continue
        if not service["spec"].get("ports"):
            continue
        name = meta["name"]
        if meta["namespace"] == namespace or (
            meta["namespace"] == "default" and name == MASTER_SERVICE and name not in chosen
        ):
            chosen[name] = service
    env: dict[str, str] = {}
    for name in sorted(chosen):
        env |= _one_service(name, chosen[name]["spec"])
    return env


def _one_service(name: str, spec: Object) -> dict[str, str]:
    prefix, ip, ports = name.upper().replace("-", "_"), spec["clusterIP"], spec["ports"]
    env = {f"{prefix}_SERVICE_HOST": ip, f"{prefix}_SERVICE_PORT": str(ports[0]["port"])}
    for port in ports:
        if port.get("name"):
            key = port["name"].upper().replace("-", "_")
            env[f"{prefix}_SERVICE_PORT_{key}"] = str(port["port"])
    for index, port in enumerate(ports):
        protocol = str(port.get("protocol", "TCP"))
        number = str(port["port"])
        url = f"{protocol.lower()}://{ip}:{number}"
        if index == 0:
            env[f"{prefix}_PORT"] = url
        link = f"{prefix}_PORT_{number}_{protocol.upper()}"
        env |= {
            link: url,
            f"{link}_PROTO": protocol.lower(),
            f"{link}_PORT": number,
            f"{link}_ADDR": ip,
        }
    return env


def field_value(
    path: str, pod: PodSpec, config: KubeletConfig, pod_ip: str, *, api_version: str = "v1"
) -> str:
    """The text of a downward API field; ContainerConfigError for an unknown one."""
    meta = pod.obj["metadata"]
    simple = {
        "metadata.name": pod.name,
        "metadata.namespace": pod.namespace,
        "metadata.uid": pod.uid,
        "spec.nodeName": config.node_name,
        "spec.serviceAccountName": pod.service_account,
        "status.hostIP": config.node_ip,
        "status.hostIPs": config.node_ip,
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
    }
    if path in simple:
        return simple[path]
    if path in ("metadata.labels", "metadata.annotations"):
        table = meta.get(path.partition(".")[2]) or {}
        return "\n".join(f'{key}="{value}"' for key, value in sorted(table.items()))
    match = re.fullmatch(r"metadata\.(labels|annotations)\['(.*)'\]", path)
    if match:
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    raise ContainerConfigError(f"unsupported fieldPath: {path}")


def container_environment(
    pod: PodSpec,
    container: ContainerSpec,
    config: KubeletConfig,
    *,
    image_env: Mapping[str, str],
    services: Iterable[Object],
    lookup: Lookup,
    hostname: str,
    pod_ip: str,
) -> dict[str, str]:
    """Return the whole environment, in the order the variables are set.

    Raises ContainerConfigError naming the object or key that is missing.
    """
    env = dict(image_env)
    env["HOSTNAME"] = hostname
    # Without service links a pod still sees the API server's variables.
    links = service_environment(
        (
            service
            for service in services
            if pod.service_links or service["metadata"]["name"] == MASTER_SERVICE
        ),
        pod.namespace if pod.service_links else "default",
    )
    env |= links
    for source in container.env_from:
        env |= _env_from(source, pod, lookup)
    for entry in container.env:
        value = _env_value(entry, pod, container, config, env, lookup, pod_ip)
        if value is not None:
            env[entry["name"]] = value
    env.setdefault("HOME", "/root")
    return env


def _env_from(source: Object, pod: PodSpec, lookup: Lookup) -> dict[str, str]:
    prefix = source.get("prefix", "")
    for field, kind in (("configMapRef", "configmap"), ("secretRef", "secret")):
        reference = source.get(field)
        if reference is None:
            continue
        found = lookup(kind, reference["name"])
        if found is None:
            if reference.get("optional"):
                return {}
            raise ContainerConfigError(f'{kind} "{reference["name"]}" not found')
        data = text_data(found, kind)
        return {prefix + key: value for key, value in data.items() if _NAME.fullmatch(prefix + key)}
    return {}


def _env_value(
    entry: Object,
    pod: PodSpec,
    container: ContainerSpec,
    config: KubeletConfig,
    env: Mapping[str, str],
    lookup: Lookup,
    pod_ip: str,
) -> str | None:
    source = entry.get("valueFrom")
    if not source:
        return expand(str(entry.get("value") or ""), env)
    if "fieldRef" in source:
        return field_value(source["fieldRef"]["fieldPath"], pod, config, pod_ip)
    if "resourceFieldRef" in source:
        return resource_value(source["resourceFieldRef"], container, config)
    for field, kind in (("configMapKeyRef", "configmap"), ("secretKeyRef", "secret")):
        reference = source.get(field)
        if reference is None:
            continue
        name, key = reference["name"], reference["key"]
        found = lookup(kind, name)
        data = text_data(found, kind) if found is not None else {}
        if key in data:
            return data[key]
        if reference.get("optional"):
            return None
        if found is None:
            raise ContainerConfigError(f'{kind} "{name}" not found')
        where = "ConfigMap" if kind == "configmap" else "Secret"
        raise ContainerConfigError(f"couldn't find key {key} in {where} {pod.namespace}/{name}")
    return None


def resource_value(reference: Object, container: ContainerSpec, config: KubeletConfig) -> str:
    """A request or limit in units of the reference's divisor, rounded up.

    A limit that is not set is what the node has (resource.ExtractContainerResourceValue).
    """
    section, _, name = str(reference["resource"]).partition(".")
    given = (container.resources.get(section) or {}).get(name)
    if given is None:
        whole = {"cpu": config.cpus, "memory": config.memory_mib * 1024 * 1024}
        given = whole.get(name, 0) if section == "limits" else 0
    try:
        amount = quantity.parse(given)
        divisor = quantity.parse(reference.get("divisor") or "1")
    except UsageError as error:
        raise ContainerConfigError(f"{reference['resource']}: {error}") from None
    return str(math.ceil(amount / (divisor or 1)))


def text_data(obj: Object, kind: str) -> dict[str, str]:
    """The keys of a ConfigMap or Secret as text."""
    return {key: value.decode("utf-8", "replace") for key, value in byte_data(obj, kind).items()}


def byte_data(obj: Object, kind: str) -> dict[str, bytes]:
    """The keys of a ConfigMap or Secret as bytes."""
    if kind == "secret":
        return {key: base64.b64decode(value) for key, value in (obj.get("data") or {}).items()}
    data = {key: str(value).encode() for key, value in (obj.get("data") or {}).items()}
    binary = obj.get("binaryData") or {}
    return data | {key: base64.b64decode(value) for key, value in binary.items()}
