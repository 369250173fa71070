"""Sets of field paths, as ``managedFields`` keeps them (structured-merge-diff, fieldpath).

A path is a tuple of elements: ``f:name`` a member, ``k:{"name":"c"}`` an item of a keyed list,
``v:"x"`` an item of a set, and as the last element ``.`` the item itself.  A set of paths is a
dict, so that its order is that of the object it was taken from; its values are the leaves' values,
or ``MEMBER`` for the mere presence of an item.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.shapes import FieldShape, Shapes, TypeShape

Path = tuple[str, ...]
PathSet = dict[Path, Any]
MEMBER: Final = "\0member"

# Members nobody owns: identity and what the server writes.
_UNOWNED: Final = (
    "name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation",
    "managedFields", "resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds",
)  # fmt: skip
# Key members that have a default in the schema, so that a manifest may leave them out.
_KEY_DEFAULTS: Final = {"protocol": "TCP"}


def compact(value: Any) -> str:
    """JSON without blanks, keys sorted."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def item_element(item: Any, field: FieldShape) -> str:
    """The path element of one item of a keyed list or a set."""
    if field.list_type == "map" and isinstance(item, dict):
        keys = {k: item.get(k, _KEY_DEFAULTS.get(k)) for k in field.list_keys}
        return "k:" + compact({k: v for k, v in keys.items() if v is not None})
    return "v:" + compact(item)


def is_granular_list(field: FieldShape | None) -> bool:
    """Whether a list's items are owned one by one."""
    return field is not None and field.list_type in ("map", "set")


class Walker:
    """Takes the owned paths of objects of one set of types."""

    __slots__ = ("_shapes",)

    def __init__(self, shapes: Shapes) -> None:
        self._shapes = shapes

    def paths(self, obj: Obj, type_name: str) -> PathSet:
        """Owned path → value, for every leaf of an object."""
        out: PathSet = {}
        shape = self._shapes.type(type_name)
        for key, value in obj.items():
            if key in ("kind", "apiVersion"):
                continue
            if key == "metadata" and isinstance(value, dict):
                meta = {k: v for k, v in value.items() if k not in _UNOWNED}
                inner = self._shapes.type("meta.v1.ObjectMeta")
                for name, member in meta.items():
                    self._member(out, ("f:metadata",), name, member, inner)
            else:
                self._member(out, (), key, value, shape)
        return out

    def _member(
        self, out: PathSet, path: Path, key: str, value: Any, shape: TypeShape | None
    ) -> None:
        field = shape.field(key) if shape is not None else None
        self._value(out, (*path, f"f:{key}"), value, field)

    def _value(self, out: PathSet, path: Path, value: Any, field: FieldShape | None) -> None:
        if isinstance(value, dict) and value and not self.atomic(field):
            inner = self.struct_of(field)
            for key, member in value.items():
                self._member(out, path, key, member, inner)
        elif isinstance(value, list) and value and field is not None and is_granular_list(field):
            inner = self._shapes.type(field.struct) if field.struct else None
            for item in value:
                element = (*path, item_element(item, field))
                if isinstance(item, dict):
                    out[(*element, ".")] = MEMBER
                    for key, member in item.items():
                        self._member(out, element, key, member, inner)
                else:
                    out[element] = MEMBER
        elif value is not None:
            out[path] = value

    def atomic(self, field: FieldShape | None) -> bool:
        """Whether a field is owned as one whole."""
        if field is None:
            return False
        if field.atomic:
            return True
        if not field.code.startswith("@"):
            return False
        shape = self._shapes.type(field.struct)
        return shape is not None and shape.atomic

    def struct_of(self, field: FieldShape | None) -> TypeShape | None:
        """The type of a struct field, None for maps and unknown fields."""
        if field is None or not field.code.startswith("@"):
            return None
        return self._shapes.type(field.struct)


def encode(paths: PathSet) -> Obj:
    """``fieldsV1`` of a set."""
    root: Obj = {}
    for path in sorted(paths):
        node = root
        for element in path:
            node = node.setdefault(element, {})
    return root


def decode(fields: Any) -> PathSet:
    """The set of a ``fieldsV1``; anything odd in it is ignored."""
    out: PathSet = {}

    def walk(node: Any, path: Path) -> None:
        if not isinstance(node, dict) or not node:
            if path:
                out[path] = MEMBER
            return
        for element, inner in node.items():
            walk(inner, (*path, str(element)))

    walk(fields, ())
    return out


def text(path: Path) -> str:
    """A path for people: ``.spec.containers[name="c"].image``."""
    out = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            out += f".{rest}"
        elif kind == "k":
            try:
                keys = json.loads(rest)
            except ValueError:
                keys = {}
            inner = ",".join(f"{k}={json.dumps(v)}" for k, v in keys.items())
            out += f"[{inner}]"
        elif kind == "v":
            out += f"[={rest}]"
    return out
