"""host-local: never one address twice, next fit, wrap, exhaustion."""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.cni.errors import CniError
from agents.cni.hostlocal import HostLocal
from agents.cni.ipam import Range, candidates, parse_ranges
from emulator.addr import Prefix, format_ip, parse_ip

CONF = {"subnet": "10.2.59.0/28"}
USABLE = [parse_ip(f"10.2.59.{last}") for last in range(2, 15)]


def upstream_order(part: Range, last: int | None) -> list[int]:
    """RangeIter.Next of the real plugin, for one range."""
    order: list[int] = []
    current = last
    start: int | None = None
    while True:
        if current is None or current == part.end:
            current = part.start
        else:
            current += 1
        if start is None:
            start = current
        elif current == start:
            return order
        if current != part.gateway:
            order.append(current)


@given(st.integers(24, 30), st.integers(0, 300), st.booleans())
def test_candidates_come_in_the_order_of_the_real_iterator(
    length: int, offset: int, fresh: bool
) -> None:
    (part,) = parse_ranges({"subnet": f"10.2.0.0/{length}"})
    last = None if fresh else part.start + offset % (part.end - part.start + 1)
    assert [ip for ip, _ in candidates((part,), last)] == upstream_order(part, last)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 19)), max_size=40))
def test_no_two_containers_ever_hold_one_address(steps: list[tuple[bool, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        ipam = HostLocal(Path(directory), "podnet")
        held: dict[int, int] = {}
        last = parse_ip("10.2.59.1")
        for add, number in steps:
            name = f"c{number}"
            if not add:
                assert ipam.delete(name, "eth0") == ((held.pop(number),) if number in held else ())
                continue
            if number in held:
                with pytest.raises(CniError, match="duplicate allocation is not allowed"):
                    ipam.add(CONF, name, "eth0")
            elif len(held) == len(USABLE):
                with pytest.raises(CniError) as error:
                    ipam.add(CONF, name, "eth0")
                assert str(error.value) == (
                    "failed to allocate for range 0: "
                    "no IP addresses available in range set: 10.2.59.1-10.2.59.14"
                )
            else:
                free = [ip for ip in USABLE if ip not in held.values()]
                expected = next((ip for ip in free if ip > last), free[0])
                last = held[number] = ipam.add(CONF, name, "eth0").ip
                assert last == expected
        assert {ip: name for ip, (name, _) in ipam.holders().items()} == {
            ip: f"c{number}" for number, ip in held.items()
        }


def test_the_directory_is_what_the_real_plugin_keeps(tmp_path: Path) -> None:
    ipam = HostLocal(tmp_path, "podnet")
    assert format_ip(ipam.add({"subnet": "10.2.59.0/24"}, "abc", "eth0").ip) == "10.2.59.2"
    directory = tmp_path / "podnet"
    assert sorted(path.name for path in directory.iterdir()) == [
        "10.2.59.2",
        "last_reserved_ip.0",
        "lock",
    ]
    assert (directory / "10.2.59.2").read_bytes() == b"abc\r\neth0"
    assert (directory / "last_reserved_ip.0").read_bytes() == b"10.2.59.2"
    assert (directory / "10.2.59.2").stat().st_mode & 0o777 == 0o600


def blocked_on(inode: int) -> bool:
    """True if somebody waits for a lock of this file (proc_locks(5): ``->`` marks a waiter)."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any(" -> " in line and f":{inode} " in line for line in lines)


def test_nothing_is_reserved_while_another_plugin_holds_the_directory(tmp_path: Path) -> None:
    ipam = HostLocal(tmp_path, "podnet")
    ipam.add(CONF, "first", "eth0")
    directory = tmp_path / "podnet"
    # The weakest lock another process may hold: an exclusive one must wait even for this.
    with (directory / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        adding = threading.Thread(target=ipam.add, args=(CONF, "second", "eth0"))
        adding.start()
        deadline = time.monotonic() + 10
        inode = os.fstat(other.fileno()).st_ino
        while adding.is_alive() and not blocked_on(inode) and time.monotonic() < deadline:
            time.sleep(0.001)
        assert blocked_on(inode)
        assert sorted(path.name for path in directory.iterdir()) == [
            "10.2.59.2",
            "last_reserved_ip.0",
            "lock",
        ]
    adding.join(10)
    assert ipam.find("second", "eth0") == parse_ip("10.2.59.3")


def test_an_address_file_of_2017_holds_the_container_alone(tmp_path: Path) -> None:
    (tmp_path / "podnet").mkdir()
    (tmp_path / "podnet" / "10.2.59.7").write_text("old")
    ipam = HostLocal(tmp_path, "podnet")
    assert ipam.delete("old", "eth0") == (parse_ip("10.2.59.7"),)


def test_the_last_address_given_is_known_by_either_name_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "podnet").mkdir()
    (tmp_path / "podnet" / "last_reserved_ip").write_text("10.2.59.7")
    ipam = HostLocal(tmp_path, "podnet")
    assert format_ip(ipam.add(CONF, "a", "eth0").ip) == "10.2.59.8"
    # Since 2018; whatever it holds, an address is found.
    (tmp_path / "podnet" / "last_reserved_ip.0").write_bytes(b"\xff\0")
    assert format_ip(ipam.add(CONF, "b", "eth0").ip) == "10.2.59.9"


def test_an_address_that_cannot_be_written_down_is_not_reserved(tmp_path: Path) -> None:
    (tmp_path / "podnet" / "last_reserved_ip.0").mkdir(parents=True)
    ipam = HostLocal(tmp_path, "podnet")
    with pytest.raises(CniError, match=r"last_reserved_ip\.0: Is a directory"):
        ipam.add(CONF, "a", "eth0")
    assert ipam.holders() == {}


def test_a_fixed_address_is_given_once_and_never_the_gateway(tmp_path: Path) -> None:
    ipam, wanted = HostLocal(tmp_path, "n"), parse_ip("10.2.59.9")
    assert ipam.add(CONF, "a", "eth0", wanted).ip == wanted
    with pytest.raises(CniError, match=r"requested IP address 10\.2\.59\.9 is not available"):
        ipam.add(CONF, "b", "eth0", wanted)
    with pytest.raises(CniError, match="subnet's gateway"):
        ipam.add(CONF, "b", "eth0", parse_ip("10.2.59.1"))
    with pytest.raises(CniError, match=r"not available in range set 10\.2\.59\.1-10\.2\.59\.14"):
        ipam.add(CONF, "b", "eth0", parse_ip("10.3.0.1"))


def test_a_subnet_too_small_is_refused() -> None:
    with pytest.raises(CniError, match="too small"):
        Range.parse({"subnet": "10.2.59.0/31"})
    assert Range.parse({"subnet": "10.2.59.0/30"}).subnet == Prefix.parse("10.2.59.0/30")
