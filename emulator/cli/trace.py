"""podwire trace: one real probe, and every hop it took on every node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from emulator.addr import parse_ip
from emulator.cli.running import add_name, fetch_status, is_port, run_async
from emulator.cli.trace_text import last_seen, render
from emulator.errors import PodwireError, UsageError
from emulator.kubeclient.config import KubeConfig
from emulator.kubeclient.errors import ApiError
from emulator.kubeclient.resource import PODS, SERVICES
from emulator.kubeclient.rest import RestClient
from emulator.runtime.control import ControlClient

if TYPE_CHECKING:
    import argparse
# A probe across two nodes takes about a millisecond; a TCP SYN is sent again after 1 s.
DEFAULT_TIMEOUT_S: Final = 1.0


class Source(NamedTuple):
    """Where the probe starts: the namespace on ``node`` that has the address ``ip``."""

    label: str
    node: str
    ip: str


class Target(NamedTuple):
    """Where it goes; port 0 is a ping."""

    label: str
    ip: str
    port: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument("--udp", action="store_true", help="send UDP rather than a TCP SYN")
    parser.add_argument("-n", "--namespace", default="default", help="of pods and services")
    parser.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="S")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("-v", "--verbose", action="store_true", help="every rule, all of a packet")
    parser.add_argument("source", metavar="FROM", help="a node or a pod")
    parser.add_argument(
        "target",
        metavar="TO[:PORT]",
        help="an address, a pod, a service or a node; a ping if no port",
    )


def run(args: argparse.Namespace) -> int:
    return run_async(_run(args))


async def _run(args: argparse.Namespace) -> int:
    if not 0 < args.timeout < math.inf:
        raise UsageError(f"--timeout: {args.timeout:g} is not a time to wait, in seconds")
    status = await fetch_status(args)
    config = KubeConfig.from_file(status["kubeconfig"])
    async with RestClient(config, user_agent="podwire-trace") as client:
        source = await _source(client, status, args)
        target = await _target(client, status, args)
        names = await _pod_names(client)
    async with contextlib.AsyncExitStack() as stack:
        nodes = {
            node["name"]: await stack.enter_async_context(ControlClient(node["control"]))
            for node in status["nodes"]
            if node["ready"]
        }
        if source.node not in nodes:
            raise UsageError(f"{source.node} is not running (podwire status)")
        probe = await nodes[source.node].call(
            "probe_plan", src=source.ip, dst=target.ip, port=target.port, udp=args.udp
        )
        await asyncio.gather(*(node.call("trace_arm", probe=probe) for node in nodes.values()))
        answer = await nodes[source.node].call("probe", probe=probe, timeout_s=args.timeout)
        collected = await asyncio.gather(
            *(node.call("trace_collect", probe=probe) for node in nodes.values())
        )
        spaces = await asyncio.gather(*(node.call("netns") for node in nodes.values()))
    pods = {
        space["name"]: names[ip]
        for part in spaces
        for space in part
        for ip in space["addresses"]
        if space["name"] != "root" and ip in names
    }
    steps = sorted((step for part in collected for step in part), key=lambda step: step["at"])
    if args.output == "json":
        print(_as_json(probe, steps, pods, answer))
    else:
        print(f"{probe['description']}  ({source.label} → {target.label})")
        print(render(steps, pods, verbose=args.verbose))
        seen = "" if answer["answered"] else f"; {last_seen(steps, pods)}"
        print(answer["text"] + seen)
    return 0 if answer["ok"] else 1


def _as_json(
    probe: dict[str, Any], steps: list[dict[str, Any]], pods: dict[str, str], answer: dict[str, Any]
) -> str:
    """``{"probe", "steps", "answer"}``; each step also names its pod, "" outside of pods."""
    shown = {key: value for key, value in probe.items() if key != "token"}
    told = [{**step, "pod": pods.get(step["netns"], "")} for step in steps]
    return json.dumps({"probe": shown, "steps": told, "answer": answer}, indent=2)


async def _source(client: RestClient, status: dict[str, Any], args: argparse.Namespace) -> Source:
    for node in status["nodes"]:
        if node["name"] == args.source:
            return Source(args.source, args.source, node["ip"])
    pod = await _pod(client, args.source, args.namespace)
    if pod is None:
        raise UsageError(f"FROM: {args.source!r} is neither a node nor a pod in {args.namespace!r}")
    ip = pod.get("status", {}).get("podIP")
    if not ip:
        raise UsageError(f"FROM: pod {args.source!r} has no address yet")
    return Source(args.source, pod["spec"]["nodeName"], ip)


async def _target(client: RestClient, status: dict[str, Any], args: argparse.Namespace) -> Target:
    name, colon, port_text = args.target.partition(":")
    if colon and not is_port(port_text):
        raise UsageError(f"TO: {port_text!r} is not a port")
    port = int(port_text or 0)
    if args.udp and not port:
        raise UsageError(f"TO: a UDP probe needs a port: {name}:PORT")
    with contextlib.suppress(UsageError):
        parse_ip(name)
        return Target(args.target, name, port)
    for node in status["nodes"]:
        if node["name"] == name:
            return Target(args.target, node["ip"], port)
    pod = await _pod(client, name, args.namespace)
    if pod is not None:
        ip = pod.get("status", {}).get("podIP")
        if not ip:
            raise UsageError(f"TO: pod {name!r} has no address yet")
        return Target(args.target, ip, port)
    with contextlib.suppress(ApiError):
        service = await client.get(SERVICES, args.namespace, name)
        ip = service["spec"].get("clusterIP") or "None"
        if ip == "None":
            raise UsageError(
                f"TO: service {name!r} has no address of its own; name one of its pods"
            )
        return Target(args.target, ip, port)
    raise UsageError(f"TO: {name!r} is no address, node, pod or service in {args.namespace!r}")


async def _pod(client: RestClient, name: str, namespace: str) -> dict[str, Any] | None:
    try:
        return dict(await client.get(PODS, namespace, name))
    except ApiError as error:
        if error.status != 404:
            raise
        return None


async def _pod_names(client: RestClient) -> dict[str, str]:
    """Address → name of the pods that have a network of their own."""
    try:
        pods = await client.list(PODS)
    except (PodwireError, OSError):
        return {}  # the packets' way is told even while the API server is away
    return {
        pod["status"]["podIP"]: pod["metadata"]["name"]
        for pod in pods.items
        if pod.get("status", {}).get("podIP") and not pod["spec"].get("hostNetwork")
    }
