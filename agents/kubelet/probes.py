"""Runs one probe: HTTP, TCP or exec, over the node's own network as the real kubelet does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from emulator.shell.context import Buffer, os_error_text
from emulator.shell.http import BadReplyError, EmptyReplyError, Exchange, ShortBodyError

if TYPE_CHECKING:
    from agents.kubelet.container import Container
    from agents.kubelet.spec import ProbeSpec
    from emulator.runtime.stack import StackNetwork

# Bytes of a failing exec's output shown in the event (maxRespBodyLength is 10 KiB).
MAX_OUTPUT_BYTES = 10 * 1024


class ProbeResult(NamedTuple):
    """``output`` is the text of the Unhealthy event."""

    success: bool
    output: str


async def run_probe(
    probe: ProbeSpec, container: Container, node: StackNetwork, version: str
) -> ProbeResult:
    """Run the probe once within its timeout; ``version`` is the kubelet's, for the user agent."""
    match probe.action:
        case "httpGet":
            return await _http(probe, container, node, version)
        case "tcpSocket":
            return await _tcp(probe, container, node)
        case "exec":
            return await _exec(probe, container)
    return ProbeResult(False, f"missing probe handler for {container.spec.name}: {probe.action}")


async def _http(
    probe: ProbeSpec, container: Container, node: StackNetwork, version: str
) -> ProbeResult:
    detail = probe.detail
    host = detail.get("host") or container.sandbox.ip
    port = container.spec.port(detail.get("port"))
    path = detail.get("path") or "/"
    path = path if path.startswith("/") else f"/{path}"
    url = f"http://{host}:{port}{path}"
    minor = ".".join(version.lstrip("v").split(".")[:2])
    headers = [("Host", f"{host}:{port}"), ("User-Agent", f"kube-probe/{minor}")]
    headers += [("Accept", "*/*"), ("Connection", "close")]
    headers += [(each["name"], each["value"]) for each in detail.get("httpHeaders") or ()]
    try:
        async with asyncio.timeout(probe.timeout_s), Exchange(node, host, port) as exchange:
            await exchange.connect()
            await exchange.send("GET", path, headers)
            head = await exchange.head()
    except (EmptyReplyError, BadReplyError, ShortBodyError):
        return ProbeResult(False, f'Get "{url}": EOF')
    except OSError as error:
        if isinstance(error, TimeoutError):
            return ProbeResult(
                False,
                f'Get "{url}": context deadline exceeded '
                "(Client.Timeout exceeded while awaiting headers)",
            )
        text = os_error_text(error).lower()
        return ProbeResult(False, f'Get "{url}": dial tcp {host}:{port}: connect: {text}')
    if 200 <= head.status < 400:
        return ProbeResult(True, "ok")
    return ProbeResult(False, f"HTTP probe failed with statuscode: {head.status}")


async def _tcp(probe: ProbeSpec, container: Container, node: StackNetwork) -> ProbeResult:
    host = probe.detail.get("host") or container.sandbox.ip
    port = container.spec.port(probe.detail.get("port"))
    try:
        async with asyncio.timeout(probe.timeout_s):
            _, writer = await node.open_connection(host, port)
    except TimeoutError:
        return ProbeResult(False, f"dial tcp {host}:{port}: i/o timeout")
    except OSError as error:
        text = os_error_text(error).lower()
        return ProbeResult(False, f"dial tcp {host}:{port}: connect: {text}")
    writer.close()
    return ProbeResult(True, "ok")


async def _exec(probe: ProbeSpec, container: Container) -> ProbeResult:
    output = Buffer()
    command = [str(word) for word in probe.detail.get("command") or ()]
    if not command or not container.can_execute(command[0]):
        word = command[0] if command else ""
        return ProbeResult(False, f'exec: "{word}": executable file not found in $PATH')
    try:
        async with asyncio.timeout(probe.timeout_s):
            code = await container.execute(
                command, stdin=None, stdout=output, stderr=output, interrupt=asyncio.Event()
            )
    except TimeoutError:
        return ProbeResult(False, f'command "{" ".join(command)}" timed out')
    text = output.data[:MAX_OUTPUT_BYTES].decode("utf-8", "replace")
    return ProbeResult(code == 0, text)
