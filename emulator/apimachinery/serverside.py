"""Server-side apply and the bookkeeping of field managers (structured-merge-diff, merge.Updater).

Every manager has one entry per operation and subresource in ``metadata.managedFields``.  An Update
takes over what it changed; an Apply owns what its manifest names, gives up what the manifest no
longer names (and removes it unless somebody else owns it too), and conflicts where it would change
what another manager owns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from emulator.apimachinery import fieldset
from emulator.apimachinery.fieldset import MEMBER, Path, PathSet, Walker, item_element
from emulator.apimachinery.objects import Obj, copy_json, dig, drop_nulls
from emulator.apimachinery.status import StatusError

if TYPE_CHECKING:
    from emulator.apimachinery.resources import ResourceType
    from emulator.apimachinery.shapes import FieldShape, Shapes, TypeShape


class Manager(NamedTuple):
    """Who writes, in which role."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""

    def shown(self) -> str:
        """As conflicts name it."""
        out = f'"{self.name}"'
        if self.subresource:
            out += f' with subresource "{self.subresource}"'
        return f"{out} using {self.api_version}" if self.operation == "Update" else out


class Entry(NamedTuple):
    """One manager's fields and when they last changed."""

    fields: PathSet
    time: str


Managers = dict[Manager, Entry]


def read_managers(obj: Obj) -> Managers:
    """The managers of an object."""
    out: Managers = {}
    for raw in dig(obj, "metadata", "managedFields") or []:
        if not isinstance(raw, dict) or not raw.get("manager"):
            continue
        manager = Manager(
            str(raw["manager"]),
            str(raw.get("operation") or "Update"),
            str(raw.get("apiVersion") or ""),
            str(raw.get("subresource") or ""),
        )
        out[manager] = Entry(fieldset.decode(raw.get("fieldsV1")), str(raw.get("time") or ""))
    return out


def write_managers(obj: Obj, managers: Managers) -> None:
    """Store the managers that still own something; Apply entries first, then by time and name."""
    entries: list[Obj] = []
    order = sorted(managers, key=lambda m: (m.operation != "Apply", managers[m].time, m.name))
    for manager in order:
        fields, time = managers[manager]
        if not fields:
            continue
        entry: Obj = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": manager.api_version,
            "time": time,
            "fieldsType": "FieldsV1",
            "fieldsV1": fieldset.encode(fields),
        }
        if manager.subresource:
            entry["subresource"] = manager.subresource
        entries.append(entry)
    if entries:
        obj["metadata"]["managedFields"] = entries
    else:
        obj["metadata"].pop("managedFields", None)


def record_update(
    resource: ResourceType, old: Obj | None, new: Obj, manager: Manager, now: str, shapes: Shapes
) -> None:
    """Note in ``new`` who changed what against ``old`` (None: who created it)."""
    walker = Walker(shapes)
    after = walker.paths(new, resource.schema)
    before = walker.paths(old, resource.schema) if old is not None else {}
    changed = {p: MEMBER for p, v in after.items() if p not in before or before[p] != v}
    if old is None and not manager.subresource:
        changed = {p: MEMBER for p in changed if p[0] != "f:status"}
    managers = read_managers(new)
    for other, entry in list(managers.items()):
        kept = {
            p: MEMBER for p in entry.fields if p in after and (other == manager or p not in changed)
        }
        managers[other] = Entry(kept, entry.time)
    if changed:
        own = managers.get(manager, Entry({}, now)).fields
        managers[manager] = Entry({**own, **changed}, now)
    write_managers(new, managers)


def apply(
    resource: ResourceType,
    live: Obj | None,
    manifest: Obj,
    manager: Manager,
    now: str,
    shapes: Shapes,
    *,
    force: bool,
) -> Obj:
    """The object after a server-side apply.  Raises StatusError 409 for conflicts."""
    walker = Walker(shapes)
    wanted = walker.paths(manifest, resource.schema)
    if live is None:
        out: Obj = copy_json(manifest)
        write_managers(out, {manager: Entry(wanted, now)})
        return out
    have = walker.paths(live, resource.schema)
    managers = read_managers(live)
    conflicts: list[tuple[Manager, Path]] = []
    for other, entry in list(managers.items()):
        if other.name == manager.name and other.operation == "Apply":
            continue
        against = [p for p in entry.fields if p in wanted and p in have and have[p] != wanted[p]]
        conflicts += [(other, p) for p in against]
        if against and force:
            kept = {p: MEMBER for p in entry.fields if p not in against}
            managers[other] = Entry(kept, entry.time)
    if conflicts and not force:
        raise _conflict_error(conflicts)
    merger = _Merger(walker, shapes)
    out = merger.struct(copy_json(live), manifest, shapes.type(resource.schema))
    before = managers.get(manager, Entry({}, now))
    others = {p for m, e in managers.items() if m != manager for p in e.fields}
    gone = [p for p in before.fields if p not in wanted and p not in others]
    for path in sorted(gone, key=len, reverse=True):
        _remove(out, path, shapes.type(resource.schema), walker, shapes)
    changed = set(before.fields) != set(wanted)
    managers[manager] = Entry(wanted, now if changed or not before.time else before.time)
    write_managers(out, managers)
    return out


def _conflict_error(conflicts: list[tuple[Manager, Path]]) -> StatusError:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f"conflict with {manager.shown()}",
            "field": fieldset.text(path),
        }
        for manager, path in conflicts
    ]
    if len(conflicts) == 1:
        manager, path = conflicts[0]
        message = (
            f"Apply failed with 1 conflict: conflict with {manager.shown()}: {fieldset.text(path)}"
        )
    else:
        lines: list[str] = []
        for manager in sorted({m for m, _ in conflicts}):
            lines.append(f"conflicts with {manager.shown()}:")
            lines += [f"- {fieldset.text(p)}" for m, p in conflicts if m == manager]
        message = f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)
    return StatusError(409, "Conflict", message, {"causes": causes})


class _Merger:
    """Lays a manifest over a live object."""

    __slots__ = ("_shapes", "_walker")

    def __init__(self, walker: Walker, shapes: Shapes) -> None:
        self._walker = walker
        self._shapes = shapes

    def struct(self, live: Obj, manifest: Obj, shape: TypeShape | None) -> Obj:
        for key, value in manifest.items():
            field = shape.field(key) if shape is not None else None
            live[key] = self._value(live.get(key), value, field)
        return live

    def _value(self, live: Any, value: Any, field: FieldShape | None) -> Any:
        if isinstance(value, dict) and isinstance(live, dict) and not self._walker.atomic(field):
            return self.struct(live, value, self._walker.struct_of(field))
        if (
            isinstance(value, list)
            and isinstance(live, list)
            and field is not None
            and field.list_type in ("map", "set")
        ):
            return self._list(live, value, field)
        return copy_json(value)

    def _list(self, live: list[Any], value: list[Any], field: FieldShape) -> list[Any]:
        shape = self._shapes.type(field.struct) if field.struct else None
        at = {item_element(item, field): i for i, item in enumerate(live)}
        for item in value:
            index = at.get(item_element(item, field))
            if index is None:
                live.append(copy_json(item))
            elif isinstance(item, dict):
                live[index] = self.struct(live[index], item, shape)
        return live


def _remove(obj: Any, path: Path, shape: TypeShape | None, walker: Walker, shapes: Shapes) -> None:
    """Delete what a path names, and containers that are empty afterwards."""
    head, rest = path[0], path[1:]
    if not isinstance(obj, dict) or not head.startswith("f:"):
        return
    key = head[2:]
    if key not in obj:
        return
    field = shape.field(key) if shape is not None else None
    if not rest:
        del obj[key]
        return
    value = obj[key]
    if isinstance(value, list) and field is not None:
        _remove_item(value, rest, field, walker, shapes)
    else:
        inner = shapes.type("meta.v1.ObjectMeta") if key == "metadata" else walker.struct_of(field)
        _remove(value, rest, inner, walker, shapes)
    if value in ({}, []) and key != "metadata":
        del obj[key]


def _remove_item(
    items: list[Any], path: Path, field: FieldShape, walker: Walker, shapes: Shapes
) -> None:
    element, rest = path[0], path[1:]
    for i, item in enumerate(items):
        if item_element(item, field) != element:
            continue
        if not rest or rest == (".",):
            del items[i]
        else:
            _remove(item, rest, shapes.type(field.struct), walker, shapes)
        return


def clean_manifest(manifest: Obj) -> Obj:
    """A manifest without nulls; StatusError 400 if it brings managedFields of its own."""
    if dig(manifest, "metadata", "managedFields"):
        raise StatusError(400, "BadRequest", "metadata.managedFields must be nil")
    out: Obj = drop_nulls(copy_json(manifest))
    return out
