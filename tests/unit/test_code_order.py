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
    """With an inner function, a comprehension and constants that are no names."""

    def add(a: int, b: int, texts: tuple[str, ...] = ("not a name", "x", "")) -> int:
        assert texts == ("not a name", "x", "")
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


def test_names_made_beforehand_are_the_ones_code_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "names.txt"
    file.write_text("seldom_seen_first\nseldom_seen_second Outer.<locals>.seldom_seen\n")
    made: list[str] = []
    monkeypatch.setattr(order, "NAMES_FILE", file)
    monkeypatch.setattr(order, "_names", made)
    order.make_names()
    assert made == ["seldom_seen_first", "seldom_seen_second", "Outer.<locals>.seldom_seen"]
    code = compile("a.seldom_seen_second", "test", "eval")
    assert code.co_names[1] is made[1]


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
