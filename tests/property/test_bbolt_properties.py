"""bbolt files for any content, and any damage."""

from __future__ import annotations

import contextlib

from hypothesis import example, given
from hypothesis import strategies as st

from etcd.core import bbolt
from etcd.core.bbolt import Bucket, Database
from etcd.core.errors import CorruptionError
from tests.run_out import run_out

# Values about the sizes where pages end, written as (byte, length) to stay small when shrunk.
_values = st.builds(
    lambda byte, size: bytes([byte]) * size,
    st.integers(0, 255),
    st.one_of(st.integers(0, 40), st.integers(1300, 1400), st.integers(4030, 4110)),
)
_keys = st.binary(min_size=1, max_size=20) | st.builds(
    lambda key: key + bytes(900), st.binary(min_size=1, max_size=3)
)
_contents = st.dictionaries(_keys, _values, max_size=40)


def _file(buckets: dict[bytes, dict[bytes, bytes]]) -> bytes:
    layout = run_out(bbolt.plan(Bucket.of(name, pairs) for name, pairs in buckets.items()))
    return b"".join(layout.pages())


@given(st.dictionaries(st.binary(min_size=1, max_size=8), _contents, max_size=5))
def test_what_is_written_is_read_again_in_order(buckets: dict[bytes, dict[bytes, bytes]]) -> None:
    database = Database(_file(buckets), "any.db")
    assert list(database) == sorted(buckets)
    for name, pairs in buckets.items():
        assert list(database.bucket(name)) == sorted(pairs.items())


@given(_contents, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=8))
@example({b"k": b"v"}, [(3 * 4096 + 10, 0xFF), (3 * 4096 + 11, 0xFF)])
def test_damage_is_read_as_something_else_or_named_never_more(
    pairs: dict[bytes, bytes], flips: list[tuple[int, int]]
) -> None:
    data = bytearray(_file({b"key": pairs}))
    for at, value in flips:
        data[at % len(data)] = value
    with contextlib.suppress(CorruptionError):
        database = Database(bytes(data), "any.db")
        for name in database:
            list(database.bucket(name))
