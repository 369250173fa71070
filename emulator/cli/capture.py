"""podwire capture: an emulated interface's packets, as pcapng for tcpdump and Wireshark."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

from emulator.cli.running import add_name, fetch_status, node_socket, run_async
from emulator.errors import UsageError
from emulator.kubeclient.config import KubeConfig
from emulator.kubeclient.errors import ApiError
from emulator.kubeclient.resource import PODS
from emulator.kubeclient.rest import RestClient
from emulator.runtime.control import ControlClient

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument("node", metavar="NODE")
    parser.add_argument("interface", metavar="IFACE", help="eth0, flannel.1, cni0, veth…")
    parser.add_argument("-w", "--write", metavar="FILE", required=True, help="'-' for stdout")
    parser.add_argument("-c", "--count", type=int, default=0, help="stop after so many packets")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--pod", default="", help="inside this pod of the node")
    place.add_argument("--netns", default="", help="a namespace other than the node's own")
    parser.add_argument("-n", "--namespace", default="default", help="the pod's")


def run(args: argparse.Namespace) -> int:
    if args.count < 0:
        raise UsageError(f"--count: {args.count} is not a number of packets")
    return run_async(_run(args))


async def _run(args: argparse.Namespace) -> int:
    path = await node_socket(args, args.node)
    ip = await _pod_ip(args) if args.pod else ""
    async with ControlClient(path) as client:
        netns = _netns(args, ip, await client.call("netns"))
        with _open(args.write) as file:
            return await _capture(client, args, netns, file)


async def _pod_ip(args: argparse.Namespace) -> str:
    """The address of ``--pod``; UsageError unless it runs on the node with its own network."""
    status = await fetch_status(args)
    config = KubeConfig.from_file(status["kubeconfig"])
    async with RestClient(config, user_agent="podwire-capture") as client:
        try:
            pod = await client.get(PODS, args.namespace, args.pod)
        except ApiError as error:
            if error.status != 404:
                raise
            raise UsageError(f"--pod: no pod {args.pod!r} in {args.namespace!r}") from None
    where = pod["spec"].get("nodeName", "no node yet")
    if where != args.node:
        raise UsageError(f"--pod: {args.pod!r} runs on {where}, not on {args.node}")
    if pod["spec"].get("hostNetwork"):
        raise UsageError(f"--pod: {args.pod!r} uses the network of {args.node}; leave --pod out")
    ip = pod.get("status", {}).get("podIP", "")
    if not ip:
        raise UsageError(f"--pod: {args.pod!r} has no address yet")
    return str(ip)


def _netns(args: argparse.Namespace, pod_ip: str, spaces: list[dict[str, Any]]) -> str:
    """The namespace's name; UsageError unless it is there and has the interface."""
    root = spaces[0]
    if pod_ip:
        found = [space for space in spaces[1:] if pod_ip in space["addresses"]]
        where = f"pod {args.pod}"
    else:
        found = [space for space in spaces if space["name"] == (args.netns or root["name"])]
        where = f"{args.node} netns {args.netns}" if args.netns else args.node
    if not found:
        if args.netns:
            names = ", ".join(space["name"] for space in spaces)
            raise UsageError(
                f"{args.node} has no network namespace {args.netns!r} (there are: {names})"
            )
        raise UsageError(f"{where} has no network namespace on {args.node}")
    devices = found[0]["devices"]
    if args.interface not in devices:
        raise UsageError(
            f"{where} has no interface {args.interface!r} (there are: {', '.join(devices)})"
        )
    return str(found[0]["name"])


def _open(name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    if name == "-":
        return contextlib.nullcontext(sys.stdout.buffer)
    try:
        return open(name, "wb")
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}") from None


async def _capture(
    client: ControlClient, args: argparse.Namespace, netns: str, file: BinaryIO
) -> int:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    packets = dropped = 0
    gone = False
    try:
        stream = client.stream("capture", netns=netns, device=args.interface, count=args.count)
        async with contextlib.aclosing(stream):
            async for item in stream:
                file.write(item["data"])
                file.flush()
                if "listening" in item:
                    print(f"capturing on {item['listening']}", file=sys.stderr, flush=True)
                packets += item["packets"]
                dropped, gone = item["dropped"], item.get("gone", False)
    except asyncio.CancelledError:
        if not stopped:
            raise
        task.uncancel()
    print(
        f"{packets} packets captured" + (f", {dropped} dropped" if dropped else ""), file=sys.stderr
    )
    if gone:
        print(f"podwire: {args.interface} of {args.pod or args.node} was removed", file=sys.stderr)
        return 1
    return 0
