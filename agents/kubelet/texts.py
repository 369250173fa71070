"""Event texts of the kubelet, by era (pure).  Sources: pkg/kubelet/events, kuberuntime."""

from __future__ import annotations

STARTING = "Starting kubelet."


def already_present(image: str) -> str:
    """Pulled, from the node's own store."""
    return f'Container image "{image}" already present on machine'


def pulling(image: str, era: str) -> str:
    """Pulling."""
    return f'pulling image "{image}"' if era == "2017" else f'Pulling image "{image}"'


def pulled(image: str, seconds: float, size_bytes: int, era: str) -> str:
    """Pulled, after a pull of so many seconds."""
    if era == "2017":
        return f'Successfully pulled image "{image}"'
    took = _go_duration(seconds)
    return (
        f'Successfully pulled image "{image}" in {took} ({took} including waiting). '
        f"Image size: {size_bytes} bytes."
    )


def pull_failed(image: str, cause: str) -> str:
    """Failed: the pull itself."""
    return f'Failed to pull image "{image}": {cause}'


def created(container: str, container_id: str, era: str) -> str:
    """Created."""
    if era == "2017":
        return f"Created container with docker id {container_id[:12]}"
    return f"Created container: {container}"


def started(container: str, container_id: str, era: str) -> str:
    """Started."""
    if era == "2017":
        return f"Started container with docker id {container_id[:12]}"
    return f"Started container {container}"


def stopping(container: str, container_id: str, pod: str, era: str) -> str:
    """Killing, because the pod goes."""
    if era == "2017":
        return f"Killing container with docker id {container_id[:12]}: Need to kill pod."
    return f"Stopping container {container}"


def liveness_restart(container: str) -> str:
    """Killing, because liveness failed."""
    return f"Container {container} failed liveness probe, will be restarted"


def startup_restart(container: str) -> str:
    """Killing, because the startup probe failed."""
    return f"Container {container} failed startup probe, will be restarted"


def unhealthy(kind: str, output: str) -> str:
    """Unhealthy: ``kind`` is Readiness, Liveness or Startup."""
    return f"{kind} probe failed: {output}"


def sandbox_failed(sandbox_id: str, plugin: str, cause: str) -> str:
    """FailedCreatePodSandBox, as kuberuntime and containerd word it together."""
    return (
        "Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network "
        f'for sandbox "{sandbox_id}": plugin type="{plugin}" failed (add): {cause}'
    )


def sandbox_not_removed(uid: str, sandbox_id: str, plugin: str, cause: str) -> str:
    """FailedKillPod, as kuberuntime and containerd word it together."""
    inner = (
        f'failed to destroy network for sandbox "{sandbox_id}": plugin type="{plugin}" failed '
        f"(delete): {cause}"
    )
    quoted = f"rpc error: code = Unknown desc = {inner}".replace('"', '\\"')
    return (
        f'error killing pod: failed to "KillPodSandbox" for "{uid}" with KillPodSandboxError: '
        f'"{quoted}"'
    )


def network_not_ready(cause: str) -> str:
    """NetworkNotReady."""
    return (
        "network is not ready: container runtime network not ready: NetworkReady=false "
        f"reason:NetworkPluginNotReady message:Network plugin returns error: {cause}"
    )


def start_failed(command: str) -> str:
    """The runtime's error for a program that the image does not hold."""
    return (
        "failed to create containerd task: failed to create shim task: OCI runtime create failed: "
        "runc create failed: unable to start container process: error during container init: "
        f'exec: "{command}": executable file not found in $PATH: unknown'
    )


def exec_failed(command: str, exec_id: str) -> str:
    """The same for an exec; ``exec_id`` is containerd's, which nobody remembers."""
    return (
        "error executing command in container: failed to exec in container: "
        f'failed to start exec "{exec_id}": '
        "OCI runtime exec failed: exec failed: unable to start container process: "
        f'exec: "{command}": executable file not found in $PATH: unknown'
    )


def forward_failed(port: int, sandbox_id: str, netns: str, cause: str) -> str:
    """containerd's error for a port nobody listens on (sandbox_portforward_linux.go)."""
    return (
        f"error forwarding port {port} to pod {sandbox_id}, uid : failed to execute portforward in "
        f'network namespace "/var/run/netns/{netns}": failed to connect to localhost:{port} inside '
        f'namespace "{sandbox_id}", IPv4: dial tcp4 127.0.0.1:{port}: connect: {cause} '
        "IPv6 dial tcp6: address localhost: no suitable address "
    )


def _go_duration(seconds: float) -> str:
    if seconds < 1:
        return f"{max(1, round(seconds * 1000))}ms"
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
