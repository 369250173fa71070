"""Go's random numbers and the order in which hosts try blocks: checked against known outputs."""

from __future__ import annotations

import itertools

import pytest

from agents.calico.ipam.gorand import GoSource
from agents.calico.ipam.order import block_order, blocks_in, fnv1_32
from agents.calico.net import Cidr


def test_the_source_gives_the_numbers_go_programs_print() -> None:
    source = GoSource(1)
    # What every Go tour prints with seed 1.
    assert [source.int63() for _ in range(4)] == [
        5577006791947779410,
        8674665223082153551,
        6129484611666145821,
        4037200794235010051,
    ]


def test_seeds_that_go_folds_together_give_the_same_numbers() -> None:
    assert GoSource(0).int63() == GoSource(89482311).int63()
    assert GoSource(-1).int63() == GoSource((1 << 31) - 2).int63()
    assert GoSource((1 << 31) - 1).int63() == GoSource(0).int63()


def test_the_source_goes_on_beyond_its_state() -> None:
    source, again = GoSource(7), GoSource(7)
    numbers = [source.uint64() for _ in range(2000)]
    assert numbers == [again.uint64() for _ in range(2000)]
    for at in range(607, 2000):
        assert numbers[at] == (numbers[at - 607] + numbers[at - 273]) % (1 << 64)


@pytest.mark.parametrize(
    ("host", "block"),
    [
        ("kube-0", "192.168.145.64/26"),
        ("kube-1", "192.168.126.64/26"),
        ("node-1", "192.168.84.128/26"),
        ("kube-master", "192.168.221.192/26"),
    ],
)
def test_hosts_of_real_clusters_get_their_blocks(host: str, block: str) -> None:
    order = block_order(Cidr.parse("192.168.0.0/16"), 26, host, now_ns=0)
    assert str(next(order)) == block


def test_fnv_1_multiplies_before_it_mixes() -> None:
    # Reference values of the FNV authors.
    assert fnv1_32("") == 0x811C9DC5
    assert fnv1_32("a") == 0x050C5D7E
    assert fnv1_32("foobar") == 0x31F0B262


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        ("10.0.0.0/16", 26),
        ("10.0.0.0/26", 26),
        ("10.10.1.0/24", 27),
        ("10.10.1.0/28", 32),
        ("fd80:24e2:f998:72d6::/116", 122),
        ("fd80:24e2:f998:72d6::/121", 128),
    ],
)
def test_every_block_comes_exactly_once(pool: str, size: int) -> None:
    cidr = Cidr.parse(pool)
    found = list(block_order(cidr, size, "host", now_ns=123))
    assert sorted(found) == list(blocks_in(cidr, size))
    following = dict(itertools.pairwise([*blocks_in(cidr, size), next(blocks_in(cidr, size))]))
    assert all(following[one] == other for one, other in itertools.pairwise(found))


def test_a_pool_of_2_to_the_74_blocks_has_an_order() -> None:
    order = block_order(Cidr.parse("fd00::/48"), 122, "kube-0", now_ns=0)
    first, second = next(order), next(order)
    assert second.network - first.network == 64
    assert Cidr.parse("fd00::/48").covers(first)


def test_blocks_of_one_address_have_a_new_order_each_time() -> None:
    pool = Cidr.parse("10.0.0.0/24")
    firsts = {next(block_order(pool, 32, "host", now_ns=now)) for now in range(20)}
    assert len(firsts) > 1
