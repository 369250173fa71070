"""Longest prefix match against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emulator.addr import Prefix
from emulator.netstack.fib import Fib, Route

# Few bits, so that prefixes overlap.
addresses = st.integers(0, 255).map(lambda n: n << 24)
prefixes = st.builds(Prefix.of, addresses, st.sampled_from([0, 1, 4, 6, 7, 8, 32]))
routes = st.builds(
    Route, prefixes, st.sampled_from(["a", "b"]), metric=st.integers(0, 2), mtu=st.integers(0, 3)
)


@given(st.lists(routes, max_size=30), addresses, st.sampled_from(["", "a"]))
def test_lookup_is_longest_then_least_metric_then_oldest(found, ip: int, oif: str) -> None:
    fib = Fib()
    for route in found:
        fib.insert(route)
    fitting = [r for r in found if ip in r.dst and (not oif or r.dev == oif)]
    best = min(fitting, key=lambda r: (-r.dst.length, r.metric), default=None)
    assert fib.lookup(ip, oif) is best


@given(st.lists(routes, max_size=30))
def test_a_dump_is_sorted_and_removal_leaves_nothing(found) -> None:
    fib = Fib()
    for route in found:
        fib.insert(route)
    order = [(r.dst.network, -r.dst.length, r.metric) for r in fib]
    assert order == sorted(order)
    assert len(fib) == len(found)
    for route in found:
        fib.remove(route)
    assert (list(fib), len(fib)) == ([], 0)
    assert fib.lookup(0) is None
