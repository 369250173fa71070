"""podwire demo: a story in which every step must hold."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.e2e.harness import Podwire

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("network", "shown"),
    [
        ("flannel", "/coreos.com/network/subnets/"),
        ("calico", "policies default/knp.default.web-is"),
    ],
)
def test_every_step_of_the_demo_holds(home: Path, network: str, shown: str) -> None:
    podwire = Podwire(home, f"de{os.getpid()}")
    if shutil.which("kubectl", path=podwire.env["PATH"]) is None:
        pytest.skip("kubectl is not installed")
    out = podwire.podwire("demo", "--network", network).out
    assert re.search(r"✓ 1\d steps held", out), out
    assert shown in out
    assert podwire.name not in os.listdir(home)
