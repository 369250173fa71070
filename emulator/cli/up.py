"""podwire up: start a cluster, in the foreground or detached."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from emulator.cli.etcd_access import access_of, add_access_arguments
from emulator.cluster.networks import NETWORKS
from emulator.cluster.order import make_names
from emulator.cluster.presets import PRESETS, preset_text
from emulator.cluster.spec import load_spec
from emulator.cluster.state import ClusterDirectory
from emulator.errors import PodwireError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from emulator.cluster.plan import ClusterPlan
    from emulator.cluster.spec import ClusterSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="cluster.yaml", help="the cluster file")
    parser.add_argument(
        "--preset", metavar="NAME", help=f"a cluster file that comes along: {', '.join(PRESETS)}"
    )
    parser.add_argument("--name", help="the cluster's name (default: podwire)")
    parser.add_argument("--nodes", type=int, metavar="N", help="how many nodes (default: 3)")
    parser.add_argument("--network", metavar="NAME", help=f"one of: {', '.join(NETWORKS)}")
    parser.add_argument("--pod-cidr", metavar="PREFIX", help="the pod network")
    parser.add_argument("--etcd-endpoints", metavar="URLS", help="use this etcd, not our own")
    add_access_arguments(parser)
    parser.add_argument("-d", "--detach", action="store_true", help="return when the cluster is up")


def run(args: argparse.Namespace) -> int:
    started_at = time.monotonic()
    # Until the supervisor has handlers of its own: clean up then, too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    spec = spec_of(args)
    directory = ClusterDirectory(spec.name)
    directory.acquire()
    try:
        make_names()
        from emulator.cluster.launch import prepare, supervise  # and with it nearly all there is

        plan = prepare(spec, directory)
    except BaseException:
        directory.remove()
        raise
    progress = Progress(len(plan.nodes) + 1 + plan.embedded_etcd)
    if args.detach:
        return _detached(plan, directory, progress, started_at)

    def on_up() -> None:
        progress.finish()
        print(_what_next(plan, time.monotonic() - started_at))
        print("Ctrl-C takes the cluster down.", flush=True)

    try:
        supervise(plan, directory, on_progress=progress.step, on_up=on_up)
    finally:
        progress.finish()
    print(f"cluster {spec.name!r} is down")
    return 0


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def spec_of(args: argparse.Namespace) -> ClusterSpec:
    """The spec of the file and the options; UsageError names the file."""
    if args.preset is not None and args.file is not None:
        raise UsageError("--preset: give a preset or a cluster file, not both")
    text = read_file(args.file) if args.preset is None else preset_text(args.preset)
    endpoints = tuple(filter(None, (args.etcd_endpoints or "").split(",")))
    try:
        return load_spec(
            text,
            name=args.name,
            nodes=args.nodes,
            network=args.network,
            pod_cidr=args.pod_cidr,
            etcd_endpoints=endpoints,
            etcd_access=access_of(args),
        )
    except UsageError as error:
        if args.file is not None:
            raise UsageError(f"{args.file}: {error}") from None
        raise


def read_file(path: str | None) -> str | None:
    """A cluster file's text, None without one; UsageError names the file."""
    if path is None:
        return None
    try:
        return Path(path).read_text()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file") from None


class Progress:
    """How far the start is: one line rewritten on a terminal, nothing where nobody looks."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._live = sys.stderr.isatty()

    def step(self, role: str, ready: int, total: int) -> None:
        """``role`` became ready; now ``ready`` of ``total`` are."""
        if self._live:
            width = 30
            filled = width * ready // total
            bar = "█" * filled + "░" * (width - filled)
            print(f"\r\x1b[K{bar} {ready}/{total} {role}", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """Leave a clean line."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._live = False


def _what_next(plan: ClusterPlan, took_s: float) -> str:
    name = "" if plan.spec.name == "podwire" else f" --name {plan.spec.name}"
    first = plan.nodes[0]
    calico = plan.spec.network.calico is not None
    look = f"  birdc -s {plan.bird_ctl(first.spec.name)} show protocols\n" if calico else ""
    keys = "/calico/ipam" if calico else "/coreos.com"
    return (
        f"Cluster {plan.spec.name!r} is up: {len(plan.nodes)} nodes in {took_s:.2f} s.\n\n"
        f"  export KUBECONFIG={plan.kubeconfig}\n"
        f"  kubectl get nodes -o wide\n"
        f"  kubectl create deployment web --image=nginx --replicas=3\n"
        f"  kubectl expose deployment web --port=80 --type=NodePort\n"
        f"  curl http://{first.host}:<nodePort>\n"
        f"  podwire exec{name} {first.spec.name} -- ip route\n"
        f"  etcdctl --endpoints={','.join(plan.etcd_endpoints)} get --prefix {keys}\n"
        f"{look}"
        f"  podwire down{name}\n"
    )


def _detached(
    plan: ClusterPlan, directory: ClusterDirectory, progress: Progress, started_at: float
) -> int:
    """Fork the supervisor into its own session and wait until it is up or has failed.

    It ends the cluster if we end before that.
    """
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        status = 1
        try:
            status = _supervisor_process(plan, directory, theirs)
        finally:
            os._exit(status)
    theirs.close()
    with ours, ours.makefile() as lines:
        try:
            return _follow(lines, plan, progress, started_at)
        except (KeyboardInterrupt, SystemExit):
            progress.finish()
            ours.shutdown(socket.SHUT_WR)
            for _ in lines:
                """Nothing of the cluster is left when the supervisor hangs up."""
            raise


def _follow(lines: Iterable[str], plan: ClusterPlan, progress: Progress, started_at: float) -> int:
    for line in lines:
        message: dict[str, Any] = json.loads(line)
        if "role" in message:
            progress.step(message["role"], message["ready"], message["total"])
        elif "up" in message:
            progress.finish()
            print(_what_next(plan, time.monotonic() - started_at), end="", flush=True)
            return 0
        elif "error" in message:
            progress.finish()
            raise (
                UsageError(message["error"]) if message["usage"] else PodwireError(message["error"])
            )
    progress.finish()
    raise PodwireError("the supervisor died while starting; is memory short?")


def _supervisor_process(
    plan: ClusterPlan, directory: ClusterDirectory, terminal: socket.socket
) -> int:
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(plan.log("supervisor"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(null)
    os.close(log)

    def tell(message: dict[str, Any]) -> None:
        # Nobody may be waiting any more: then there is nobody to tell.
        with contextlib.suppress(OSError):
            terminal.sendall(json.dumps(message).encode() + b"\n")

    def on_progress(role: str, ready: int, total: int) -> None:
        tell({"role": role, "ready": ready, "total": total})

    def on_up() -> None:
        tell({"up": True})
        terminal.close()

    from emulator.cluster.launch import supervise

    try:
        supervise(
            plan,
            directory,
            on_progress=on_progress,
            on_up=on_up,
            private_descriptors=(terminal.fileno(),),
            waiter=terminal.fileno(),
        )
    except PodwireError as error:
        tell({"error": str(error), "usage": isinstance(error, UsageError)})
        return 1
    except Exception as error:  # a bug of ours: it must reach the terminal, the log is gone
        tell({"error": f"{type(error).__name__}: {error}", "usage": False})
        raise
    return 0
