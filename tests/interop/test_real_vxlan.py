"""An emulated node and a real Linux kernel in one overlay: ping both ways, TCP both ways."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.root
def test_linux_understands_our_vxlan_and_we_its() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: two real network namespaces and a vxlan device are made")
    for tool in ("unshare", "nsenter", "ip", "bridge", "ping"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    probe = subprocess.run(
        ["unshare", "-n", "ip", "link", "add", "vx", "type", "vxlan", "id", "1", "dstport", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"vxlan devices do not work here: {probe.stderr.strip()}")
    result = subprocess.run(
        ["unshare", "-n", sys.executable, "-m", "tests.interop.real_vxlan_peer"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout)
    # Each side forwards once: the pod's node on the way out, and on the way in.
    assert seen["ttl"] == 63
    assert seen["ping"].count("64 bytes from 10.2.1.2") == 3
    assert "ttl=63" in seen["ping"]
    assert seen["same"]
    assert seen["bad"] == 0
    assert seen["hits"] > 100
