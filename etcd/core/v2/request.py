"""Requests of the v2 keys API: what an HTTP request asks for.

Source: etcd 3.4 etcdserver/api/v2http/client.go parseKeyRequest, etcdserver/apply_v2.go.  The order
of the checks is etcd's, so a request with two faults gets the same answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from etcd.core.v2 import errors
from etcd.core.v2.errors import V2Error
from etcd.core.v2.form import Form, FormError, int64, parse_bool, parse_form, parse_uint
from etcd.core.v2.paths import clean
from etcd.core.v2.store import SECOND_NS, Op, Operation

if TYPE_CHECKING:
    from collections.abc import Sequence

METHODS: Final = ("HEAD", "GET", "PUT", "POST", "DELETE")


class Read(NamedTuple):
    """A GET or HEAD; ``quorum`` reads take an index of the (real) cluster's log."""

    path: str
    recursive: bool
    in_order: bool
    quorum: bool


class Wait(NamedTuple):
    """A GET that waits for a change; ``since`` 0 is from now on."""

    path: str
    recursive: bool
    stream: bool
    since: int


class Change(NamedTuple):
    """Anything else; ``values`` False wants the answer without nodes."""

    operation: Operation
    values: bool


Request = Read | Wait | Change


class _Fields:
    """A form whose faults are V2Errors."""

    def __init__(self, form: Form) -> None:
        self._form = form

    def has(self, name: str) -> bool:
        return name in self._form

    def first(self, name: str) -> str:
        return self._form[name][0] if name in self._form else ""

    def index(self, name: str) -> int:
        if name not in self._form:
            return 0
        value = parse_uint(self._form[name][0])
        if value is None:
            raise V2Error(errors.INDEX_NAN, f'invalid value for "{name}"')
        return value

    def flag(self, name: str, bare: str = "") -> bool:
        if name not in self._form:
            return False
        value = parse_bool(self._form[name][0])
        if value is None:
            raise V2Error(errors.INVALID_FIELD, "invalid value for " + (bare or f'"{name}"'))
        return value


def parse(method: str, path: str, sources: Sequence[bytes], *, now_ns: int) -> Request:
    """Return what a request asks for; ``path`` is what follows /v2/keys.

    ``sources`` are the form's body (of a PUT or POST, if it is a form) and the query.  Raises
    V2Error for a request that cannot mean anything.
    """
    try:
        fields = _Fields(parse_form(*sources))
    except FormError as error:
        raise V2Error(errors.INVALID_FORM, str(error)) from None
    path = clean(path)
    prev_index, since = fields.index("prevIndex"), fields.index("waitIndex")
    recursive, in_order, wait = fields.flag("recursive"), fields.flag("sorted"), fields.flag("wait")
    is_dir, quorum, stream = fields.flag("dir"), fields.flag("quorum"), fields.flag("stream")
    if wait and method != "GET":
        raise V2Error(errors.INVALID_FIELD, '"wait" can only be used with GET requests')
    prev_value = fields.first("prevValue")
    if fields.has("prevValue") and not prev_value:
        raise V2Error(errors.PREV_VALUE_REQUIRED, '"prevValue" cannot be empty')
    silent = fields.flag("noValueOnSuccess")
    expires_ns = _expiration(fields, now_ns)
    prev_exist = fields.flag("prevExist", "prevExist") if fields.has("prevExist") else None
    refresh = fields.flag("refresh", "refresh")
    if refresh:
        if fields.first("value"):
            raise V2Error(errors.REFRESH_VALUE, "A value was provided on a refresh")
        if not fields.first("ttl"):
            raise V2Error(errors.REFRESH_TTL_REQUIRED, "No TTL value set")
    if method in ("GET", "HEAD"):
        # A quorum read goes through the log, where nobody waits.
        if wait and not quorum:
            return Wait(path, recursive, stream, since)
        return Read(path, recursive, in_order, quorum and method == "GET")
    compares = prev_index > 0 or bool(prev_value)
    if method == "DELETE":
        op = Op.COMPARE_AND_DELETE if compares else Op.DELETE
    elif method == "POST":
        op = Op.CREATE_IN_ORDER
    elif prev_exist is False:
        op = Op.CREATE
    elif compares:
        op = Op.COMPARE_AND_SWAP
    else:
        op = Op.UPDATE if prev_exist else Op.SET
    operation = Operation(
        op,
        now_ns,
        path,
        fields.first("value"),
        dir=is_dir,
        recursive=recursive,
        refresh=refresh,
        expires_ns=expires_ns,
        prev_value=prev_value,
        prev_index=prev_index,
    )
    return Change(operation, not silent)


def _expiration(fields: _Fields, now_ns: int) -> int | None:
    """Return when the node shall expire, computed in 64 bits as Go's time does."""
    text = fields.first("ttl")
    if not text:
        return None
    seconds = parse_uint(text)
    if seconds is None:
        raise V2Error(errors.TTL_NAN, 'invalid value for "ttl"')
    return int64(now_ns + int64(int64(seconds) * SECOND_NS)) or None
