"""How the roles of a cluster share the processors."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from emulator.cluster import roles

if TYPE_CHECKING:
    import pytest


def test_only_a_crowd_of_nodes_gives_way() -> None:
    assert roles.nodes_niceness(3, 1) == 0
    assert roles.nodes_niceness(16, 2) == 0
    assert roles.nodes_niceness(17, 2) == roles.CROWD_NICENESS
    assert roles.nodes_niceness(100, 16) == 0


async def test_a_node_gives_way_before_it_does_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []

    async def run_node(config: object, env: object) -> None:
        done.append((config, env))

    monkeypatch.setattr(os, "nice", done.append)
    monkeypatch.setattr(roles, "run_node", run_node)
    await roles._run_node("config", 10, "env")  # type: ignore[arg-type]
    assert done == [10, ("config", "env")]
