"""podwire env: ``eval "$(podwire env)"`` points kubectl and etcdctl at the cluster."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from emulator.cli.running import add_name, fetch_status, run_async

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)


def run(args: argparse.Namespace) -> int:
    status = run_async(fetch_status(args))
    print(f"export KUBECONFIG={shlex.quote(status['kubeconfig'])}")
    print("export ETCDCTL_API=3")
    print(f"export ETCDCTL_ENDPOINTS={shlex.quote(','.join(status['etcd']['endpoints']))}")
    # etcdctl asks for the password of a user.
    for name in ("user", "cacert", "cert", "key"):
        if value := status["etcd"].get(name):
            print(f"export ETCDCTL_{name.upper()}={shlex.quote(value)}")
    return 0
