"""Strategic merge patch (apimachinery/pkg/util/strategicpatch/patch.go).

Lists of structs with a merge key merge item by item; other lists are replaced.  Directives:
``$patch: replace|delete|merge``, ``$deleteFromPrimitiveList/F``, ``$setElementOrder/F``,
``$retainKeys``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from emulator.apimachinery.gotext import quote
from emulator.apimachinery.objects import copy_json
from emulator.errors import UsageError

if TYPE_CHECKING:
    from emulator.apimachinery.shapes import FieldShape, Shapes, TypeShape

DIRECTIVE: Final = "$patch"
DELETE_FROM: Final = "$deleteFromPrimitiveList/"
SET_ORDER: Final = "$setElementOrder/"
RETAIN_KEYS: Final = "$retainKeys"


class PatchError(UsageError):
    """A patch that cannot be applied; an API server answers 400 or 422 with this text."""


def apply(target: Any, patch: Any, type_name: str, shapes: Shapes) -> dict[str, Any]:
    """The patched object; ``target`` is not changed.  Raises PatchError."""
    if not isinstance(patch, dict):
        raise PatchError("a strategic merge patch must be a JSON object")
    base = copy_json(target) if isinstance(target, dict) else {}
    merged = _Merger(shapes).struct(base, copy_json(patch), shapes.type(type_name))
    assert isinstance(merged, dict)
    return merged


class _Merger:
    __slots__ = ("_shapes",)

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes

    def struct(
        self, target: dict[str, Any], patch: dict[str, Any], shape: TypeShape | None
    ) -> dict[str, Any]:
        directive = patch.pop(DIRECTIVE, None)
        if directive == "replace":
            return cast("dict[str, Any]", _clean(patch))
        if directive == "delete":
            return {}
        if directive not in (None, "merge"):
            raise PatchError(f"Unknown patch type: {directive} in map")
        retained = patch.pop(RETAIN_KEYS, None)
        if retained is not None:
            self._retain(target, patch, retained)
        orders: dict[str, list[Any]] = {}
        for key in list(patch):
            if key.startswith(DELETE_FROM):
                field = key.removeprefix(DELETE_FROM)
                gone = patch.pop(key)
                if not isinstance(gone, list):
                    raise PatchError(f"{key} must be a list")
                if isinstance(target.get(field), list):
                    target[field] = [v for v in target[field] if v not in gone]
            elif key.startswith(SET_ORDER):
                order = patch.pop(key)
                if not isinstance(order, list):
                    raise PatchError(f"{key} must be a list")
                orders[key.removeprefix(SET_ORDER)] = order
        for key, value in patch.items():
            self._member(target, key, value, shape, orders)
        for key, order in orders.items():
            if key not in patch and isinstance(target.get(key), list):
                known = shape.field(key) if shape is not None else None
                merge_key = known.merge_key if known else ""
                live = _identities(target[key], merge_key)
                target[key] = _reorder(target[key], live, order, merge_key)
        return target

    @staticmethod
    def _retain(target: dict[str, Any], patch: dict[str, Any], retained: Any) -> None:
        if not isinstance(retained, list):
            raise PatchError("$retainKeys must be a list")
        for key in patch:
            if key not in retained and not key.startswith("$"):
                raise PatchError(f"the patch sets {quote(key)}, which is not in its $retainKeys")
        for key in [k for k in target if k not in retained]:
            del target[key]

    def _member(
        self,
        target: dict[str, Any],
        key: str,
        value: Any,
        shape: TypeShape | None,
        orders: dict[str, list[Any]],
    ) -> None:
        if value is None:
            target.pop(key, None)
            return
        field = shape.field(key) if shape is not None else None
        current = target.get(key)
        if isinstance(value, dict):
            inner = current if isinstance(current, dict) else {}
            target[key] = self.struct(inner, value, self._inner_type(field))
        elif isinstance(value, list):
            target[key] = self._list(
                current if isinstance(current, list) else [], value, field, orders.get(key)
            )
        else:
            target[key] = value

    def _inner_type(self, field: FieldShape | None) -> TypeShape | None:
        if field is None or not field.code.startswith("@"):
            return None
        return self._shapes.type(field.struct)

    def _list(
        self,
        target: list[Any],
        patch: list[Any],
        field: FieldShape | None,
        order: list[Any] | None,
    ) -> list[Any]:
        if field is None or "merge" not in field.strategies:
            return cast("list[Any]", _clean([v for v in patch if not _is_directive(v)]))
        if not field.struct:
            merged = target + [v for v in patch if v not in target]
            return merged if order is None else _reorder(merged, target, order, "")
        key = field.merge_key
        if any(isinstance(v, dict) and v.get(DIRECTIVE) == "replace" for v in patch):
            return cast("list[Any]", _clean([v for v in patch if not _is_directive(v)]))
        live = _identities(target, key)
        merged = self._merge_items(list(target), patch, key, field)
        return merged if order is None else _reorder(merged, live, order, key)

    def _merge_items(
        self, target: list[Any], patch: list[Any], key: str, field: FieldShape
    ) -> list[Any]:
        shape = self._shapes.type(field.struct)
        for item in patch:
            if not isinstance(item, dict):
                raise PatchError(f"expected an object in a list merged by {quote(key)}")
            if key not in item:
                raise PatchError(f"map: {item} does not contain declared merge key: {key}")
            same = [
                i
                for i, have in enumerate(target)
                if isinstance(have, dict) and have.get(key) == item[key]
            ]
            if item.get(DIRECTIVE) == "delete":
                for i in reversed(same):
                    del target[i]
            elif same:
                target[same[0]] = self.struct(target[same[0]], item, shape)
            else:
                target.append(self.struct({}, item, shape))
        return target


def _is_directive(value: Any) -> bool:
    return isinstance(value, dict) and DIRECTIVE in value


def _identities(values: list[Any], key: str) -> list[Any]:
    return [v.get(key) if key and isinstance(v, dict) else v for v in values]


def _reorder(merged: list[Any], live: list[Any], order: list[Any], key: str) -> list[Any]:
    """Order a merged list: the patch's order, mixed with items only the live list has.

    Two sorted lists are merged by where both items stood in ``live``; where one of them is new,
    the live list's item goes first (upstream normalizeElementOrder, mergeSortedSlice).
    """
    wanted = _identities(order, key)
    keyed = list(zip(_identities(merged, key), merged, strict=True))
    named = sorted((p for p in keyed if p[0] in wanted), key=lambda p: wanted.index(p[0]))
    server_only = [p for p in keyed if p[0] not in wanted]
    out: list[Any] = []
    while named and server_only:
        left, right = named[0][0], server_only[0][0]
        both = left in live and right in live
        first = named if both and live.index(left) < live.index(right) else server_only
        out.append(first.pop(0)[1])
    return out + [value for _, value in named + server_only]


def _clean(value: Any) -> Any:
    """A patch's value without directives and nulls, for where there is nothing to merge with."""
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items() if v is not None and not k.startswith("$")}
    if isinstance(value, list):
        return [_clean(v) for v in value]
    return value
