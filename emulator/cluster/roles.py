"""Which code each role of a cluster runs; importing this module is the zygote's warm-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulator.cluster.plan import ClusterPlan
    from emulator.cluster.zygote import Child


def run_child(plan: ClusterPlan, child: Child) -> int:
    """Run the role a forked child was asked to be; returns its exit code."""
    raise AssertionError(f"no such role {child.role} in {plan.directory}")
