"""Patches: what holds for every object and every patch."""

from __future__ import annotations

import contextlib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agents.apiserver.definitions import protobuf_decoder, shapes
from agents.apiserver.spdy import SpdyError, SpdyServer
from emulator.apimachinery import mergepatch, strategic, strict
from emulator.apimachinery.labels import SelectorError, parse
from emulator.apimachinery.objects import copy_json
from emulator.errors import WireError

names = st.sampled_from(["a", "b", "c", "d"])
images = st.sampled_from(["x:1", "x:2", "y"])
containers = st.lists(
    st.fixed_dictionaries({"name": names}, optional={"image": images}),
    unique_by=lambda c: c["name"],
)
pods = st.fixed_dictionaries(
    {"spec": st.fixed_dictionaries({"containers": containers})},
    optional={"metadata": st.fixed_dictionaries({"labels": st.dictionaries(names, images)})},
)
values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(pods, pods)
def test_a_strategic_patch_is_idempotent_and_changes_no_argument(
    target: dict[str, Any], patch: dict[str, Any]
) -> None:
    before = copy_json(target), copy_json(patch)
    once = strategic.apply(target, patch, "core.v1.Pod", shapes())
    assert strategic.apply(once, patch, "core.v1.Pod", shapes()) == once
    assert (target, patch) == before
    found = {c["name"] for c in once["spec"]["containers"]}
    assert found == {c["name"] for side in before for c in side["spec"]["containers"]}


@given(values, values)
def test_merge_patch_of_rfc_7396(target: Any, patch: Any) -> None:
    out = mergepatch.apply(target, patch)
    assert mergepatch.apply(out, patch) == out
    if isinstance(patch, dict):
        assert all(key not in out for key, value in patch.items() if value is None)


@given(st.binary())
def test_garbage_is_no_protobuf(data: bytes) -> None:
    for body in (data, b"k8s\0" + data):
        with contextlib.suppress(WireError):
            protobuf_decoder().decode(body, "core.v1.Pod")


@given(st.lists(st.binary(max_size=64)))
def test_garbage_on_spdy_ends_only_in_its_own_error(chunks: list[bytes]) -> None:
    server = SpdyServer()
    with contextlib.suppress(SpdyError):
        for chunk in chunks:
            server.receive_data(chunk)


@given(values)
def test_any_json_is_decoded_or_refused(value: Any) -> None:
    if isinstance(value, dict):
        with contextlib.suppress(strict.DecodeError):
            strict.check(value, "core.v1.Pod", shapes(), strict=True)


@given(st.text(alphabet="ab=!,<>() in/-."))
def test_any_selector_text_parses_or_is_refused(text: str) -> None:
    try:
        selector = parse(text)
    except SelectorError:
        return
    assert parse(str(selector)) == selector
