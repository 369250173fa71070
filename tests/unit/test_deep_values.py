"""Values of etcd that are nested deeper than Python calls itself: each costs only itself."""

from __future__ import annotations

import pytest

from agents.apiserver.cache import Entry, decode
from agents.calico import gojson
from agents.calico.admission import admit
from agents.calico.datastore import decode_change
from agents.calico.felix.reading import read_state
from agents.calico.resources import new_resource, resource_key, to_stored
from agents.node.underlay_map import UnderlayEntry
from emulator.apimachinery.status import StatusError
from emulator.errors import UsageError

DEPTHS = (gojson.MAX_DEPTH + 1, 400, 990, 5000, 200_000)


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * depth + b"1" + closing * depth


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_values_of_calico_are_no_values(depth: int, pair: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="nested more than 100 levels deep"):
        gojson.loads(nested(depth, *pair))
    key = resource_key("IPPool", "deep")
    assert decode_change(key, nested(depth, *pair), 7)[0] == "DELETE"


def test_what_is_as_deep_as_it_may_be_is_read_copied_and_understood() -> None:
    assert gojson.loads(nested(gojson.MAX_DEPTH)) != []
    # A dozen levels less for what stands around it.
    odd = gojson.loads(nested(gojson.MAX_DEPTH - 12))
    for kind in ("IPPool", "GlobalNetworkPolicy", "FelixConfiguration", "Node", "BGPPeer"):
        for field in ("cidr", "ingress", "bgp", "filters", "logPrefix"):
            stored = to_stored(new_resource(kind, "odd", {field: odd}))
            change = decode_change(resource_key(kind, "odd"), gojson.dumps(stored), 1)
            assert change.kvp.value is not None
            read_state({change.kvp.key: change.kvp}, "node")


def test_many_short_lists_are_not_deep() -> None:
    wide = {"attributes": [{"secondary": {"pod": f"p{n}"}} for n in range(64)], "text": "[" * 500}
    assert gojson.loads(gojson.dumps(wide)) == wide


def test_a_deep_place_in_the_underlay_map_is_no_place() -> None:
    with pytest.raises(UsageError, match="underlay entry") as caught:
        UnderlayEntry.parse(nested(5000))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [b"garbage", b"[]", b"null", b'{"metadata":[]}', nested(5000)])
def test_what_is_no_object_is_told_with_its_key(value: bytes) -> None:
    assert decode(value) is None
    with pytest.raises(StatusError, match="unable to decode default/x: etcd holds something else"):
        _ = Entry("default/x", value, 1).obj


def test_what_kubectl_writes_too_deep_is_said_to_be() -> None:
    deep: object = 1
    for _ in range(2000):
        deep = {"a": deep}
    for kind, field in (("IPPool", "cidr"), ("GlobalNetworkPolicy", "ingress"), ("BGPPeer", "x")):
        found = admit(new_resource(kind, "odd", {field: deep}), None, ())
        assert [str(each) for each in found.broken] == ["Spec (is nested too deeply)"]
