"""bbolt files: what is written is read again, whatever the sizes; damage is named."""

from __future__ import annotations

import pytest

from etcd.core import bbolt
from etcd.core.bbolt import PAGE_BYTES, Bucket, Database
from etcd.core.errors import CorruptionError
from tests.run_out import run_out


def written(*buckets: Bucket) -> bytes:
    layout = run_out(bbolt.plan(buckets))
    data = b"".join(layout.pages())
    assert len(data) == layout.size
    return data


def content(data: bytes) -> dict[bytes, dict[bytes, bytes]]:
    database = Database(data, "test.db")
    return {name: dict(database.bucket(name)) for name in database}


def test_empty_and_small_buckets_live_in_the_root_page() -> None:
    data = written(Bucket.of(b"empty", {}), Bucket.of(b"small", {b"k": b"v"}))
    assert content(data) == {b"empty": {}, b"small": {b"k": b"v"}}
    # Two meta pages, the freelist, the root leaf.
    assert len(data) == 4 * PAGE_BYTES


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("pages", [1, 2, 3])
def test_a_value_that_just_fits_or_just_does_not(pages: int, over: int) -> None:
    # Page header and element header take 16 bytes each, the key 3.
    value = bytes(pages * PAGE_BYTES - 16 - 16 - 3 + over)
    data = written(Bucket.of(b"b", {b"key": value}))
    assert content(data) == {b"b": {b"key": value}}
    assert len(data) == (4 + pages + (over > 0)) * PAGE_BYTES


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_second_pair_goes_to_the_next_page_only_when_it_must(over: int) -> None:
    first = bytes(2000)
    second = bytes(PAGE_BYTES - 16 - 2 * 16 - 2 - 2000 + over)
    data = written(Bucket.of(b"b", {b"1": first, b"2": second}))
    assert content(data) == {b"b": {b"1": first, b"2": second}}
    # A second leaf also needs a branch above the two.
    assert len(data) == (5 + 2 * (over > 0)) * PAGE_BYTES


@pytest.mark.parametrize("count", [4, 5, 12, 13, 60, 700])
def test_many_levels(count: int) -> None:
    # Three or four such keys fill a branch page, so a few hundred need five levels.
    pairs = {b"%04d" % n + bytes(1000): b"%d" % n for n in range(count)}
    data = written(Bucket.of(b"deep", pairs))
    assert list(Database(data, "test.db").bucket(b"deep")) == sorted(pairs.items())


def test_either_meta_page_is_enough() -> None:
    data = bytearray(written(Bucket.of(b"b", {b"k": b"v"})))
    data[30] ^= 1
    assert content(bytes(data)) == {b"b": {b"k": b"v"}}
    data[PAGE_BYTES + 30] ^= 1
    with pytest.raises(CorruptionError, match=r"test\.db: no valid bbolt meta page"):
        content(bytes(data))


def test_a_cut_file_is_refused() -> None:
    data = written(Bucket.of(b"b", {b"%d" % n: bytes(900) for n in range(20)}))
    with pytest.raises(CorruptionError, match="the file was cut"):
        content(data[:-PAGE_BYTES])


def test_a_page_that_names_itself_as_child_is_found_out() -> None:
    data = bytearray(written(Bucket.of(b"b", {b"%d" % n: bytes(900) for n in range(20)})))
    branch = next(
        at
        for at in range(3 * PAGE_BYTES, len(data), PAGE_BYTES)
        if int.from_bytes(data[at + 8 : at + 10], "little") == 1
    )
    data[branch + 16 + 8 : branch + 16 + 16] = (branch // PAGE_BYTES).to_bytes(8, "little")
    with pytest.raises(CorruptionError, match="goes in circles"):
        content(bytes(data))
