"""The gateway's JSON: any message goes through it, any bytes end in Go's words."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from etcd.core import gateway_json, gojson
from etcd.core.gojson import GoJsonError, Scanner, UnfinishedError
from etcd.core.pb import rpc_pb2 as pb
from etcd.server.gateway import METHODS

if TYPE_CHECKING:
    from google.protobuf.message import Message

_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def _plainly(value: gojson.Value) -> object:
    match value:
        case gojson.Number(text):
            return json.loads(text)
        case list():
            return [_plainly(item) for item in value]
        case dict():
            return {name: _plainly(item) for name, item in value.items()}
        case _:
            return value


@given(_plain, st.sampled_from(["", " ", "\n\t"]), st.booleans())
def test_what_python_writes_is_read(value: object, space: str, escaped: bool) -> None:
    text = space + json.dumps(value, ensure_ascii=escaped) + space
    data = text.encode()
    span = Scanner(data).value()
    assert span is not None
    assert _plainly(gojson.tree(data[slice(*span)])) == value
    assert _plainly(gojson.whole(data)) == value


@given(_plain, st.integers(0, 60))
def test_a_beginning_is_unfinished_and_never_refused(value: object, cut: int) -> None:
    data = json.dumps([value]).encode()
    if cut < len(data) - 1:
        scanner = Scanner(data[: cut + 1])
        with pytest.raises(UnfinishedError):
            scanner.value()


@given(
    st.binary(max_size=60)
    | st.text(alphabet='{}[]",:0123tfn.eE+-\\u "', max_size=40).map(str.encode)
)
def test_any_bytes_are_read_or_refused_in_gos_words(data: bytes) -> None:
    refusal = ""
    try:
        gateway_json.fill(pb.TxnRequest(), gojson.whole(data))
    except GoJsonError as error:
        refusal = str(error)
    words = ("invalid ", "unexpected end", "json: cannot ", "exceeded max", "illegal ", "unknown ")
    assert not refusal or refusal.startswith(words)


_REQUESTS = sorted({method.request for method in METHODS.values()}, key=lambda cls: cls.__name__)


def _names(request: type[Message]) -> list[str]:
    """All field names in a request and what it holds."""
    seen: dict[str, None] = {}
    todo, done = [request.DESCRIPTOR], set()
    while todo:
        descriptor = todo.pop()
        if descriptor.full_name in done:
            continue
        done.add(descriptor.full_name)
        for field in descriptor.fields:
            seen[field.name] = seen[field.json_name] = None
            if field.message_type is not None:
                todo.append(field.message_type)
    return [*seen, "unknown"]


@st.composite
def _nearly_right(draw: st.DrawFn) -> tuple[type[Message], object]:
    """A request's class and a JSON value that has its field names, with values of any kind."""
    request = draw(st.sampled_from(_REQUESTS))
    names = st.sampled_from(_names(request))
    value = st.recursive(
        _plain | st.sampled_from(["YQ==", "7", "VERSION", "\ud800", -1, 1 << 70]),
        lambda inner: st.dictionaries(names, inner, max_size=3) | st.lists(inner, max_size=2),
        max_leaves=8,
    )
    return request, draw(st.dictionaries(names, value, max_size=4))


@given(_nearly_right())
def test_fields_of_the_wrong_kind_are_refused_in_gos_words(
    case: tuple[type[Message], object],
) -> None:
    request, value = case
    message = request()
    with contextlib.suppress(GoJsonError):
        gateway_json.fill(message, gojson.whole(json.dumps(value).encode()))
    message.SerializeToString()


_puts = st.builds(
    pb.PutRequest,
    key=st.binary(),
    value=st.binary(),
    lease=st.integers(-(2**63), 2**63 - 1),
    prev_kv=st.booleans(),
)
_ranges = st.builds(
    pb.RangeRequest,
    key=st.binary(),
    limit=st.integers(-(2**63), 2**63 - 1),
    sort_order=st.integers(0, 2),
    sort_target=st.integers(0, 4),
)
_ops = st.lists(
    st.builds(pb.RequestOp, request_put=_puts) | st.builds(pb.RequestOp, request_range=_ranges),
    max_size=3,
)
_txns = st.builds(
    pb.TxnRequest,
    compare=st.lists(
        st.builds(pb.Compare, key=st.binary(), target=st.integers(0, 4), value=st.binary()),
        max_size=2,
    ),
    success=_ops,
)


@given(_txns, st.booleans())
def test_a_message_goes_out_and_in_again(message: pb.TxnRequest, camel: bool) -> None:
    if camel:
        text = json_format.MessageToJson(message)
    else:
        text = gateway_json.message_text(message)
    again = pb.TxnRequest()
    gateway_json.fill(again, gojson.whole(text.encode()))
    assert again == message


@given(st.binary(max_size=12).map(lambda data: data.replace(b'"', b"")))
def test_base64_is_wrong_exactly_where_it_cannot_be_decoded(text: bytes) -> None:
    at = gateway_json.wrong_at(text)
    assert at is None or 0 <= at <= len(text)


def test_depth_has_a_limit() -> None:
    deep = b"[" * (gojson.MAX_DEPTH + 1)
    with pytest.raises(GoJsonError, match="exceeded max depth"):
        Scanner(deep).value()


def test_html_is_escaped_as_go_does() -> None:
    assert gojson.dumps({"a": "<é&\u2028>"}) == '{"a":"\\u003cé\\u0026\\u2028\\u003e"}'
