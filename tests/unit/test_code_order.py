"""Code objects copied together before nodes are forked."""

from __future__ import annotations

import gc
import importlib
import operator
from typing import TYPE_CHECKING

from emulator.cluster import order

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def sums(limit: int) -> list[int]:
    """With an inner function and a comprehension."""

    def add(a: int, b: int) -> int:
        return a + b

    return [add(number, limit) for number in range(limit)]


def untouched() -> None:
    """Not in the order file."""


def test_copied_functions_do_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "order.txt"
    file.write_text(f"{__name__}: sums gone\nno.such.module: f\n")
    monkeypatch.setattr(order, "ORDER_FILE", file)
    gc.unfreeze()  # another test of this process may have forked a zygote
    before, other = sums.__code__, untouched.__code__
    order.lay_together()
    assert sums.__code__ is not before
    assert sums.__code__ == before
    assert untouched.__code__ is other
    assert sums(3) == [3, 4, 5]


def test_nearly_all_of_our_functions_in_the_order_file_exist() -> None:
    importlib.import_module("emulator.cluster.roles")
    ours = ("agents.", "emulator.", "etcd.")
    gone = []
    total = 0
    for module, names in order.parse_order(order.ORDER_FILE.read_text()).items():
        if not module.startswith(ours):
            continue
        for name in sorted(names):
            total += 1
            try:
                operator.attrgetter(name)(importlib.import_module(module))
            except (AttributeError, ImportError):
                gone.append(f"{module}: {name}")
    assert len(gone) < total / 10, f"run python -m tests.bench.write_order; gone: {gone}"
