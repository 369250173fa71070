"""AllocationBlock: the line of free addresses, attributes, sequence numbers, its bytes."""

from __future__ import annotations

import pytest

from agents.calico import gojson
from agents.calico.errors import ParsingError, UpdateConflictError
from agents.calico.ipam.block import AllocationBlock, ReleaseOptions
from agents.calico.ipam.pools import Reservations
from agents.calico.net import Cidr, Ip

OPEN = Reservations()
CIDR = Cidr.parse("10.0.0.0/29")


def new(cidr: Cidr = CIDR) -> AllocationBlock:
    return AllocationBlock.new(cidr, "host:a", now_ns=1000, claim_time="2026-01-01T00:00:00Z")


def ip(last: int) -> Ip:
    return CIDR.ip(last)


def ordinals(block: AllocationBlock, count: int, handle: str = "h") -> list[int]:
    return [CIDR.ordinal(each) for each in block.auto_assign(count, handle, None, OPEN)]


def test_addresses_are_given_in_turn_and_come_back_at_the_end_of_the_line() -> None:
    block = new()
    assert ordinals(block, 3) == [0, 1, 2]
    block.release([ReleaseOptions(ip(1)), ReleaseOptions(ip(0))])
    assert block.unallocated == [3, 4, 5, 6, 7, 1, 0]
    assert ordinals(block, 6) == [3, 4, 5, 6, 7, 1]
    assert ordinals(block, 6) == [0]
    assert ordinals(block, 1) == []


def test_reserved_addresses_keep_their_place() -> None:
    block = new()
    reserved = Reservations([Cidr.parse("10.0.0.0/31"), Cidr.parse("10.0.0.4")])
    assert block.free_count(reserved) == 5
    taken = block.auto_assign(3, None, None, reserved)
    assert [CIDR.ordinal(each) for each in taken] == [2, 3, 5]
    assert block.unallocated == [0, 1, 4, 6, 7]


def test_equal_attributes_are_kept_once_and_renumbered_when_one_goes() -> None:
    block = new()
    for handle, pod in (("h1", "a"), ("h2", "b"), ("h1", "a"), ("h1", "c")):
        block.auto_assign(1, handle, {"pod": pod}, OPEN)
    assert block.allocations[:4] == [0, 1, 0, 2]
    block.release([ReleaseOptions(ip(1))])
    assert block.allocations[:4] == [0, None, 0, 1]
    assert [each.secondary for each in block.attributes or ()] == [{"pod": "a"}, {"pod": "c"}]
    block.release([ReleaseOptions(ip(0))])
    assert block.allocations[:4] == [None, None, 0, 1]
    assert block.release_by_handle("h1") == 2
    assert block.attributes == []
    assert block.is_empty()


def test_no_handle_and_an_empty_one_are_different_attributes() -> None:
    block = new()
    block.auto_assign(1, None, None, OPEN)
    block.auto_assign(1, None, {}, OPEN)
    assert block.allocations[:2] == [0, 1]


def test_a_release_with_another_sequence_number_or_handle_changes_nothing() -> None:
    block = new()
    ordinals(block, 2)
    before = gojson.dumps(block.to_value())
    for wrong in (
        ReleaseOptions(ip(1), sequence_number=999),
        ReleaseOptions(ip(1), handle="other"),
    ):
        with pytest.raises(UpdateConflictError, match=r"update conflict: 10\.0\.0\.1") as caught:
            block.release([ReleaseOptions(ip(0)), wrong])
        assert "does not match" in caught.value.cause
    assert gojson.dumps(block.to_value()) == before
    done = block.release([ReleaseOptions(ip(1), handle="h", sequence_number=1000)])
    assert done == ((), {"h": 1})


def test_repeated_and_free_addresses_are_counted_once() -> None:
    block = new()
    ordinals(block, 2)
    done = block.release([ReleaseOptions(ip(0)), ReleaseOptions(ip(0)), ReleaseOptions(ip(7))])
    assert done == ((ip(7),), {"h": 1})
    assert block.unallocated == [2, 3, 4, 5, 6, 7, 0]


def test_one_address_can_be_asked_for_once() -> None:
    block = new()
    assert block.assign(ip(5), "h", None)
    assert not block.assign(ip(5), "h2", None)
    assert block.unallocated == [0, 1, 2, 3, 4, 6, 7]
    assert block.sequence_numbers == {5: 1000}


def test_a_handle_ends_before_a_carriage_return() -> None:
    block = new()
    block.auto_assign(1, "abc\r\neth0", None, OPEN)
    assert block.ips_by_handle("abc") == [ip(0)]
    assert block.release_by_handle("abc") == 1


def test_the_stored_form_is_go_s_byte_for_byte() -> None:
    block = new(Cidr.parse("10.0.0.0/30"))
    assert gojson.dumps(block.to_value()) == (
        b'{"cidr":"10.0.0.0/30","affinity":"host:a","affinity_claim_time":"2026-01-01T00:00:00Z",'
        b'"allocations":[null,null,null,null],"unallocated":[0,1,2,3],"attributes":null,'
        b'"sequenceNumber":1000,"sequenceNumberForAllocation":{},"deleted":false}'
    )
    block.auto_assign(1, "k8s-pod-network.1", {"pod": "p<1>", "namespace": "default"}, OPEN)
    block.auto_assign(1, None, None, OPEN)
    block.affinity = block.affinity_claim_time = None
    block.sequence_number += 1
    data = gojson.dumps(block.to_value())
    assert data == (
        b'{"cidr":"10.0.0.0/30","affinity":null,"allocations":[0,1,null,null],'
        b'"unallocated":[2,3],"attributes":[{"handle_id":"k8s-pod-network.1","secondary":'
        b'{"namespace":"default","pod":"p\\u003c1\\u003e"}},{"handle_id":null,"secondary":null}],'
        b'"sequenceNumber":1001,"sequenceNumberForAllocation":{"0":1000,"1":1000},"deleted":false}'
    )


def test_sequence_numbers_are_sorted_as_go_sorts_a_map() -> None:
    block = new(Cidr.parse("10.0.0.0/28"))
    block.auto_assign(12, None, None, OPEN)
    assert list(block.to_value()["sequenceNumberForAllocation"]) == [
        *("0", "1", "10", "11", "2", "3", "4", "5", "6", "7", "8", "9")
    ]


@pytest.mark.parametrize("cidr", ["10.0.0.0/29", "fd00::/125"])
def test_a_stored_block_reads_back_as_it_was(cidr: str) -> None:
    block = new(Cidr.parse(cidr))
    block.auto_assign(3, "h", {"pod": "a"}, OPEN)
    assert AllocationBlock.from_value(block.to_value()) == block


def test_blocks_of_old_clients_are_read() -> None:
    # v3.1: strictAffinity, no sequence numbers, and before that hostAffinity.
    old = {
        "cidr": "10.0.0.0/30",
        "affinity": None,
        "hostAffinity": "a",
        "strictAffinity": False,
        "allocations": [0, None, None, None],
        "unallocated": [1, 2, 3],
        "attributes": [{"handle_id": None, "secondary": None}],
    }
    block = AllocationBlock.from_value(old)
    assert (block.affinity, block.host, block.sequence_number) == ("host:a", "a", 0)
    assert block.release([ReleaseOptions(block.cidr.ip(0), sequence_number=0)]).by_handle == {}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"cidr": "x"},
        {"cidr": "10.0.0.0/30", "allocations": [None], "unallocated": []},
        {"cidr": "10.0.0.0/30", "allocations": [3, None, None, None], "unallocated": []},
    ],
)
def test_what_is_no_block_is_refused(value: object) -> None:
    with pytest.raises(ParsingError):
        AllocationBlock.from_value(value)


def test_a_freed_address_keeps_no_sequence_number() -> None:
    """A late release with the number of the former use must not find it."""
    block = new()
    ordinals(block, 2)
    block.release([ReleaseOptions(ip(0))])
    assert list(block.sequence_numbers) == [1]
    assert block.to_value()["sequenceNumberForAllocation"] == {"1": 1000}
