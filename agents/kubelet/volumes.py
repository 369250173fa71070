"""The files a pod's volumes bring (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.kubelet.environment import ContainerConfigError, byte_data, field_value, resource_value
from emulator.errors import PodwireError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agents.kubelet.config import KubeletConfig
    from agents.kubelet.environment import Lookup
    from agents.kubelet.spec import PodSpec

    Object = Mapping[str, Any]
    # audience → a service account token of the pod.
    TokenSource = Callable[[str], str]


class VolumeError(PodwireError):
    """A volume cannot be set up; the text is FailedMount's."""

    def __init__(self, volume: str, cause: str) -> None:
        super().__init__(f'MountVolume.SetUp failed for volume "{volume}" : {cause}')


@dataclass(frozen=True, slots=True)
class VolumeFiles:
    """One volume: relative path → content."""

    files: dict[str, bytes]
    read_only: bool


def volume_sources(pod: PodSpec) -> tuple[tuple[str, str], ...]:
    """(kind, name) of every ConfigMap and Secret the volumes need, each once."""
    found: dict[tuple[str, str], None] = {}
    for volume in pod.volumes:
        for source in (volume, *((volume.get("projected") or {}).get("sources") or ())):
            if source.get("configMap"):
                found["configmap", source["configMap"]["name"]] = None
            secret = source.get("secret")
            if secret:
                found["secret", secret.get("secretName") or secret["name"]] = None
    return tuple(found)


def env_sources(pod: PodSpec) -> tuple[tuple[str, str], ...]:
    """(kind, name) of every ConfigMap and Secret the environments need, each once."""
    found: dict[tuple[str, str], None] = {}
    for container in pod.all_containers:
        for each in container.env_from:
            for field, kind in (("configMapRef", "configmap"), ("secretRef", "secret")):
                if each.get(field):
                    found[kind, each[field]["name"]] = None
        for entry in container.env:
            source = entry.get("valueFrom") or {}
            for field, kind in (("configMapKeyRef", "configmap"), ("secretKeyRef", "secret")):
                if source.get(field):
                    found[kind, source[field]["name"]] = None
    return tuple(found)


def token_audiences(pod: PodSpec) -> dict[str, str]:
    """The audiences of the projected service account tokens, each with a volume that has it."""
    found: dict[str, str] = {}
    for volume in pod.volumes:
        for source in (volume.get("projected") or {}).get("sources") or ():
            if "serviceAccountToken" in source:
                found.setdefault(source["serviceAccountToken"].get("audience", ""), volume["name"])
    return found


def build_volumes(
    pod: PodSpec, config: KubeletConfig, lookup: Lookup, token: TokenSource, pod_ip: str
) -> dict[str, VolumeFiles]:
    """Return every volume by name; VolumeError for one whose source is missing.

    Volumes of other kinds (hostPath, persistentVolumeClaim, …) are acknowledged as empty
    directories.
    """
    return {
        volume["name"]: _volume(volume, pod, config, lookup, token, pod_ip)
        for volume in pod.volumes
    }


def _volume(
    volume: Object,
    pod: PodSpec,
    config: KubeletConfig,
    lookup: Lookup,
    token: TokenSource,
    pod_ip: str,
) -> VolumeFiles:
    name = volume["name"]
    try:
        if "projected" in volume:
            files: dict[str, bytes] = {}
            for source in volume["projected"].get("sources") or ():
                files |= _source(source, pod, config, lookup, token, pod_ip)
            return VolumeFiles(files, read_only=True)
        if any(kind in volume for kind in ("configMap", "secret", "downwardAPI")):
            return VolumeFiles(_source(volume, pod, config, lookup, token, pod_ip), read_only=True)
    except ContainerConfigError as error:
        raise VolumeError(name, str(error)) from None
    return VolumeFiles({}, read_only=False)


def _source(
    source: Object,
    pod: PodSpec,
    config: KubeletConfig,
    lookup: Lookup,
    token: TokenSource,
    pod_ip: str,
) -> dict[str, bytes]:
    if "serviceAccountToken" in source:
        section = source["serviceAccountToken"]
        return {section.get("path", "token"): token(section.get("audience", "")).encode()}
    if "downwardAPI" in source:
        return {
            item["path"]: _downward(item, pod, config, pod_ip).encode()
            for item in source["downwardAPI"].get("items") or ()
        }
    for field, kind in (("configMap", "configmap"), ("secret", "secret")):
        section = source.get(field)
        if section is not None:
            return _keys(section, kind, lookup)
    return {}


def _downward(item: Object, pod: PodSpec, config: KubeletConfig, pod_ip: str) -> str:
    if "fieldRef" in item:
        return field_value(item["fieldRef"]["fieldPath"], pod, config, pod_ip)
    reference = item["resourceFieldRef"]
    wanted = reference.get("containerName")
    for container in pod.all_containers:
        if container.name == wanted:
            return resource_value(reference, container, config)
    raise ContainerConfigError(f"container {wanted} not found")


def _keys(section: Object, kind: str, lookup: Lookup) -> dict[str, bytes]:
    name = section.get("secretName") or section["name"]
    found = lookup(kind, name)
    if found is None:
        if section.get("optional"):
            return {}
        raise ContainerConfigError(f'{kind} "{name}" not found')
    data = byte_data(found, kind)
    items = section.get("items")
    if not items:
        return data
    missing = [item["key"] for item in items if item["key"] not in data]
    if missing and not section.get("optional"):
        raise ContainerConfigError(f"references non-existent {kind} key: {missing[0]}")
    return {item["path"]: data[item["key"]] for item in items if item["key"] in data}
