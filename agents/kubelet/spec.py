"""A pod as the kubelet reads it: JSON decoded once into frozen records (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    Object = Mapping[str, Any]

DEFAULT_GRACE_S = 30


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """One probe; ``action`` is httpGet, tcpSocket, exec or grpc and ``detail`` its section."""

    action: str
    detail: Object
    initial_delay_s: float
    period_s: float
    timeout_s: float
    success_threshold: int
    failure_threshold: int

    @classmethod
    def parse(cls, section: Object | None) -> ProbeSpec | None:
        """Read a probe; None where there is none or it has no action."""
        if not section:
            return None
        for action in ("httpGet", "tcpSocket", "exec", "grpc"):
            if section.get(action) is not None:
                return cls(
                    action,
                    section[action],
                    float(section.get("initialDelaySeconds") or 0),
                    float(section.get("periodSeconds") or 10),
                    float(section.get("timeoutSeconds") or 1),
                    int(section.get("successThreshold") or 1),
                    int(section.get("failureThreshold") or 3),
                )
        return None


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """One container; an init container with ``always_restarted`` is a sidecar."""

    name: str
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: tuple[Object, ...]
    env_from: tuple[Object, ...]
    ports: tuple[Object, ...]
    mounts: tuple[Object, ...]
    pull_policy: str
    working_dir: str
    stdin: bool
    tty: bool
    always_restarted: bool
    resources: Object
    readiness: ProbeSpec | None
    liveness: ProbeSpec | None
    startup: ProbeSpec | None

    @classmethod
    def parse(cls, section: Object) -> ContainerSpec:
        """Read one entry of ``spec.containers``."""
        return cls(
            name=section["name"],
            image=section.get("image", ""),
            command=tuple(section.get("command") or ()),
            args=tuple(section.get("args") or ()),
            env=tuple(section.get("env") or ()),
            env_from=tuple(section.get("envFrom") or ()),
            ports=tuple(section.get("ports") or ()),
            mounts=tuple(section.get("volumeMounts") or ()),
            pull_policy=section.get("imagePullPolicy", ""),
            working_dir=section.get("workingDir", ""),
            stdin=bool(section.get("stdin")),
            tty=bool(section.get("tty")),
            always_restarted=section.get("restartPolicy") == "Always",
            resources=section.get("resources") or {},
            readiness=ProbeSpec.parse(section.get("readinessProbe")),
            liveness=ProbeSpec.parse(section.get("livenessProbe")),
            startup=ProbeSpec.parse(section.get("startupProbe")),
        )

    def port(self, named: object) -> int:
        """The number of a probe's port: itself, or that of the container port of this name."""
        if isinstance(named, int):
            return named
        for port in self.ports:
            if port.get("name") == named:
                return int(port["containerPort"])
        text = str(named)
        return int(text) if text.isdigit() else 0


@dataclass(frozen=True, slots=True)
class PodSpec:
    """One pod bound to this node; ``obj`` is the object it was read from."""

    uid: str
    namespace: str
    name: str
    restart_policy: str
    host_network: bool
    hostname: str
    subdomain: str
    grace_s: int
    deleting: bool
    dns_policy: str
    service_account: str
    service_links: bool
    init_containers: tuple[ContainerSpec, ...]
    containers: tuple[ContainerSpec, ...]
    volumes: tuple[Object, ...]
    host_aliases: tuple[Object, ...]
    obj: Object

    @classmethod
    def parse(cls, obj: Object) -> PodSpec:
        """Read a Pod; KeyError only for what the API server guarantees."""
        meta, spec = obj["metadata"], obj["spec"]
        deleting = bool(meta.get("deletionTimestamp"))
        grace = spec.get("terminationGracePeriodSeconds")
        if deleting and meta.get("deletionGracePeriodSeconds") is not None:
            grace = meta["deletionGracePeriodSeconds"]
        return cls(
            uid=meta["uid"],
            namespace=meta["namespace"],
            name=meta["name"],
            restart_policy=spec.get("restartPolicy", "Always"),
            host_network=bool(spec.get("hostNetwork")),
            hostname=spec.get("hostname", ""),
            subdomain=spec.get("subdomain", ""),
            grace_s=DEFAULT_GRACE_S if grace is None else int(grace),
            deleting=deleting,
            dns_policy=spec.get("dnsPolicy", "ClusterFirst"),
            service_account=spec.get("serviceAccountName", "default"),
            service_links=spec.get("enableServiceLinks", True) is not False,
            init_containers=tuple(
                ContainerSpec.parse(each) for each in spec.get("initContainers") or ()
            ),
            containers=tuple(ContainerSpec.parse(each) for each in spec.get("containers") or ()),
            volumes=tuple(spec.get("volumes") or ()),
            host_aliases=tuple(spec.get("hostAliases") or ()),
            obj=obj,
        )

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def all_containers(self) -> tuple[ContainerSpec, ...]:
        """Init containers, then the others."""
        return self.init_containers + self.containers

    @property
    def full_name(self) -> str:
        """``name_namespace(uid)``, as kubelet texts name a pod."""
        return f"{self.name}_{self.namespace}({self.uid})"
