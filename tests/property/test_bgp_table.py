"""The table's counts beside a walk of the table, after any changes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agents.bird.attributes import Attrs
from agents.bird.channel import Channel
from agents.bird.config import Dest
from agents.bird.filters import Source
from agents.bird.net import Afi, Net
from agents.bird.nexthop import Resolver
from agents.bird.rib import Path, Table

KEYS = [Net.parse(f"10.{i}.0.0/16").key for i in range(4)]

# Which channel, which path of it, which networks; the route's preference, None to take it away.
change = st.tuples(
    st.integers(0, 2),
    st.integers(0, 1),
    st.lists(st.sampled_from(KEYS), unique=True, max_size=4),
    st.none() | st.integers(1, 3),
)


@given(st.lists(change, max_size=30))
def test_counts_are_those_of_a_walk(
    changes: list[tuple[int, int, list[bytes], int | None]],
) -> None:
    table = Table(Afi.IPV4)
    resolver = Resolver(table)
    channels = [Channel(f"p{i}", Source.STATIC, table, resolver) for i in range(3)]
    for number, path_id, keys, preference in changes:
        channel, path = channels[number], None
        if preference is not None:
            attrs = Attrs(preference=preference)
            path = Path(channel, attrs, 0.0, path_id=path_id, dest=Dest.BLACKHOLE)
        table.update(channel, path_id, keys, path)
        walked = [paths for _, paths in table.items()]
        routes = Counter(path.channel.name for paths in walked for path in paths)
        best = Counter(paths[0].channel.name for paths in walked)
        for each in channels:
            assert (each.routes, each.preferred) == (routes[each.name], best[each.name])
