"""What a pod's containers are filled with: volumes, environment, command line.

Objects the pod refers to are read from the API server when the pod starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.kubelet.environment import command_line, container_environment
from agents.kubelet.sandbox import hosts_file, resolv_conf
from agents.kubelet.volumes import (
    VolumeError,
    build_volumes,
    env_sources,
    token_audiences,
    volume_sources,
)
from emulator.kubeclient.errors import ApiError
from emulator.kubeclient.resource import CONFIGMAPS, SECRETS, SERVICEACCOUNTS
from emulator.shell.files import MemoryFiles
from emulator.workloads.images import image_env, image_files

if TYPE_CHECKING:
    from agents.kubelet.config import KubeletConfig
    from agents.kubelet.sandbox import Sandbox
    from agents.kubelet.spec import ContainerSpec, PodSpec
    from agents.kubelet.volumes import VolumeFiles
    from emulator.kubeclient.rest import RestClient
    from emulator.kubeclient.store import Lister
    from emulator.runtime.clock import Clock
    from emulator.workloads.registry import Image

    Object = dict[str, Any]

# Directories every image has.
_DIRECTORIES = (
    *("/bin", "/dev", "/etc", "/home", "/lib", "/proc", "/root", "/run", "/sbin", "/sys"),
    *("/tmp", "/usr", "/usr/bin", "/var"),
)
# The API server knows by this very number that a kubelet asks, and gives a year: nothing here
# writes a new token into a running pod.
TOKEN_SECONDS = 3607


@dataclass(frozen=True, slots=True)
class Prepared:
    """A container ready to start."""

    argv: tuple[str, ...]
    env: dict[str, str]
    files: MemoryFiles


class PodContent:
    """Reads and keeps what the pods of a node refer to, from a pod's start to its end."""

    def __init__(
        self, config: KubeletConfig, client: RestClient, services: Lister, clock: Clock
    ) -> None:
        self._config = config
        self._client = client
        self._services = services
        self._clock = clock
        self._objects: dict[str, dict[tuple[str, str], Object | None]] = {}
        self._tokens: dict[str, dict[str, str]] = {}
        self._volumes: dict[str, dict[str, MemoryFiles]] = {}

    async def prepare(self, pod: PodSpec) -> None:
        """Read every object the pod names; VolumeError when a volume cannot be filled."""
        found: dict[tuple[str, str], Object | None] = {}
        for kind, name in dict.fromkeys((*volume_sources(pod), *env_sources(pod))):
            found[kind, name] = await self._get(kind, pod.namespace, name)
        tokens = {
            audience: await self._token(pod, volume, audience)
            for audience, volume in token_audiences(pod).items()
        }
        self._objects[pod.uid], self._tokens[pod.uid] = found, tokens
        # Fails now rather than when the address is known; the address itself may be missing yet.
        self._build(pod, "")

    def forget(self, pod: PodSpec) -> None:
        """Drop what was kept for a pod that is over."""
        self._objects.pop(pod.uid, None)
        self._tokens.pop(pod.uid, None)
        self._volumes.pop(pod.uid, None)

    async def container(
        self, pod: PodSpec, spec: ContainerSpec, image: Image, sandbox: Sandbox
    ) -> Prepared:
        """Return the container's command line, environment and files.

        Raises ContainerConfigError or VolumeError naming what is missing.
        """
        objects = self._objects.get(pod.uid, {})
        missing = [key for key, obj in objects.items() if obj is None]
        for kind, name in missing:
            objects[kind, name] = await self._get(kind, pod.namespace, name)
        env = container_environment(
            pod,
            spec,
            self._config,
            image_env=image_env(image),
            services=self._services.list(),
            lookup=lambda kind, name: objects.get((kind, name)),
            hostname=sandbox.hostname,
            pod_ip=sandbox.ip,
        )
        definition = image.definition
        argv = command_line(spec, definition.entrypoint, definition.command, env)
        return Prepared(argv, env, self._files(pod, spec, image, sandbox, argv))

    def _files(
        self,
        pod: PodSpec,
        spec: ContainerSpec,
        image: Image,
        sandbox: Sandbox,
        argv: tuple[str, ...],
    ) -> MemoryFiles:
        now = self._clock.time()
        files = image_files(image)
        files["/etc/hostname"] = (f"{sandbox.hostname}\n".encode(), now)
        files["/etc/hosts"] = (hosts_file(pod, sandbox, self._config), now)
        files["/etc/resolv.conf"] = (resolv_conf(pod, self._config), now)
        root = MemoryFiles(
            self._clock.time,
            files=files,
            generated={"/proc/1/cmdline": "\0".join((*argv, "")).encode},
            directories=_DIRECTORIES,
        )
        volumes = self._pod_volumes(pod, sandbox)
        for mount in spec.mounts:
            volume = volumes.get(mount["name"])
            if volume is not None:
                root.mount(
                    mount["mountPath"],
                    volume,
                    sub_path=mount.get("subPath", ""),
                    read_only=bool(mount.get("readOnly")),
                )
        return root

    def _pod_volumes(self, pod: PodSpec, sandbox: Sandbox) -> dict[str, MemoryFiles]:
        """The pod's volumes, made once: an emptyDir outlives its containers' restarts."""
        if pod.uid not in self._volumes:
            now = self._clock.time()
            self._volumes[pod.uid] = {
                name: MemoryFiles(
                    self._clock.time,
                    files={f"/{path}": (data, now) for path, data in volume.files.items()},
                )
                for name, volume in self._build(pod, sandbox.ip).items()
            }
        return self._volumes[pod.uid]

    def _build(self, pod: PodSpec, pod_ip: str) -> dict[str, VolumeFiles]:
        objects, tokens = self._objects.get(pod.uid, {}), self._tokens.get(pod.uid, {})
        return build_volumes(
            pod,
            self._config,
            lambda kind, name: objects.get((kind, name)),
            lambda audience: tokens.get(audience, ""),
            pod_ip,
        )

    async def _get(self, kind: str, namespace: str, name: str) -> Object | None:
        try:
            resource = CONFIGMAPS if kind == "configmap" else SECRETS
            return await self._client.get(resource, namespace, name)
        except ApiError as error:
            if error.is_not_found:
                return None
            raise

    async def _token(self, pod: PodSpec, volume: str, audience: str) -> str:
        """A token of the pod's service account; VolumeError where there is no such account."""
        body: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"namespace": pod.namespace, "name": pod.service_account},
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": TOKEN_SECONDS,
                "boundObjectRef": {
                    "kind": "Pod",
                    "apiVersion": "v1",
                    "name": pod.name,
                    "uid": pod.uid,
                },
            },
        }
        try:
            answer = await self._client.create(SERVICEACCOUNTS, body, subresource="token")
        except ApiError as error:
            if error.is_not_found:
                raise VolumeError(volume, f"failed to fetch token: {error}") from None
            raise
        return str((answer.get("status") or {}).get("token", ""))
