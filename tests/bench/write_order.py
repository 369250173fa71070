"""Writes emulator/cluster/{order,names}.txt: runs a cluster and notes what its first node runs.

``python -m tests.bench.write_order`` (takes some seconds; needs kubectl)
"""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
import textwrap
from collections import defaultdict
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from emulator.cli.main import main as podwire
from emulator.cluster import roles
from emulator.cluster.order import NAMES_FILE, ORDER_FILE
from tests.bench.bench_cluster import MANIFEST
from tests.e2e.harness import Podwire

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from emulator.cluster.zygote import Child

NODE = "node-0"
# The interpreter keeps one object of each string that looks like a name; of functions inside
# functions the names have angle brackets.
NOT_A_NAME = re.compile(r"[^\w.<>]|^$", re.ASCII)


def note_what_runs() -> None:
    """Let the node of the clusters this process starts leave an order file and a names file."""
    run_child = roles.run_child

    def noting(made: Mapping[str, roles.Role], child: Child) -> int:
        seen: dict[CodeType, None] = {}

        def note(frame: Any, event: str, argument: object) -> None:
            if event == "call":
                seen[frame.f_code] = None

        sys.setprofile(note if child.role == NODE else None)
        try:
            return run_child(made, child)
        finally:
            sys.setprofile(None)
            if child.role == NODE:
                ORDER_FILE.write_text(order_text(seen))
                NAMES_FILE.write_text(names_text(seen))

    roles.run_child = noting


def order_text(codes: dict[CodeType, None]) -> str:
    """The order file's lines, sorted: the functions whose code ran."""
    gc.unfreeze()  # what was there before the fork
    names: dict[str, set[str]] = defaultdict(set)
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__ in codes:
            module = str(function.__module__)
            if not module.startswith(("_pytest", "tests.")):  # they share code that decorators made
                names[module].add(function.__qualname__)
    for found in names.values():
        found -= {name for name in found if "<" in name}
    return "".join(f"{each}: {' '.join(sorted(names[each]))}\n" for each in sorted(names))


def names_text(codes: Iterable[CodeType]) -> str:
    """The names file's lines, sorted: what the code looks up, is called and has as constants."""
    found: set[str] = set()

    def add(value: object) -> None:
        if isinstance(value, str) and not NOT_A_NAME.search(value):
            found.add(value)
        elif isinstance(value, tuple):
            for item in value:
                add(item)
        elif isinstance(value, CodeType):
            add((value.co_name, value.co_qualname, value.co_names, value.co_consts))

    add(tuple(codes))
    return textwrap.fill(" ".join(sorted(found)), 100, break_on_hyphens=False) + "\n"


def main() -> None:
    """Run the cluster in this very process's children."""
    with tempfile.TemporaryDirectory(prefix="pw-order-") as home:
        cluster = Podwire(Path(home), "order")
        note_what_runs()
        os.environ["PODWIRE_HOME"] = home
        podwire(["up", "--name", "order", "--nodes", "3", "--detach"])
        try:
            cluster.env["KUBECONFIG"] = f"{home}/order/kubeconfig"
            cluster.kubectl("create", "-f", "-", stdin=MANIFEST)
            cluster.kubectl("rollout", "status", "deployment/web", "--timeout=30s")
        finally:
            cluster.podwire("down")
    for file in (ORDER_FILE, NAMES_FILE):
        print(f"{file}: {len(file.read_text().split())} words")


if __name__ == "__main__":
    main()
