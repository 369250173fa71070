"""Writes emulator/cluster/order.txt: runs a cluster and notes what its first node runs.

``python -m tests.bench.write_order`` (takes some seconds; needs kubectl)
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

from emulator.cli.main import main as podwire
from emulator.cluster import roles
from emulator.cluster.order import ORDER_FILE
from tests.bench.bench_cluster import MANIFEST
from tests.e2e.harness import Podwire

if TYPE_CHECKING:
    from types import CodeType

    from emulator.cluster.plan import ClusterPlan
    from emulator.cluster.zygote import Child

NODE = "node-0"


def note_what_runs(into: Path) -> None:
    """Let the node of the clusters this process starts leave an order file."""
    run_child = roles.run_child

    def noting(plan: ClusterPlan, child: Child) -> int:
        seen: dict[CodeType, None] = {}

        def note(frame: Any, event: str, argument: object) -> None:
            if event == "call":
                seen[frame.f_code] = None

        sys.setprofile(note if child.role == NODE else None)
        try:
            return run_child(plan, child)
        finally:
            sys.setprofile(None)
            if child.role == NODE:
                into.write_text(order_text(seen))

    roles.run_child = noting


def order_text(codes: dict[CodeType, None]) -> str:
    """The order file's lines, sorted: the functions whose code ran."""
    gc.unfreeze()  # what was there before the fork
    names: dict[str, set[str]] = defaultdict(set)
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__ in codes:
            names[str(function.__module__)].add(function.__qualname__)
    for found in names.values():
        found -= {name for name in found if "<" in name}
    return "".join(f"{each}: {' '.join(sorted(names[each]))}\n" for each in sorted(names))


def main() -> None:
    """Run the cluster in this very process's children."""
    with tempfile.TemporaryDirectory(prefix="pw-order-") as home:
        cluster = Podwire(Path(home), "order")
        note_what_runs(ORDER_FILE)
        os.environ["PODWIRE_HOME"] = home
        podwire(["up", "--name", "order", "--nodes", "3", "--detach"])
        try:
            cluster.env["KUBECONFIG"] = f"{home}/order/kubeconfig"
            cluster.kubectl("create", "-f", "-", stdin=MANIFEST)
            cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
        finally:
            cluster.podwire("down")
    print(f"{ORDER_FILE}: {len(ORDER_FILE.read_text().split())} words")


if __name__ == "__main__":
    main()
