"""``Table`` answers: what ``kubectl get`` prints (meta.k8s.io/v1 Table)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from emulator.apimachinery import printers_core, printers_workloads
from emulator.apimachinery.columns import AGE, NAME, Column, Printer, age_of
from emulator.apimachinery.objects import dig, name_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.resources import ResourceType


def _default_row(obj: Obj, now: float) -> list[Any]:
    return [name_of(obj), age_of(obj, now)]


DEFAULT: Final = Printer((NAME, AGE), _default_row)
_PRINTERS: Final = {**printers_core.PRINTERS, **printers_workloads.PRINTERS}


def printer_for(resource: ResourceType) -> Printer:
    """The columns of a resource; Name and Age where nothing better is known."""
    if resource.printer is not None:
        return resource.printer
    return _PRINTERS.get((resource.group, resource.plural), DEFAULT)


def column_definitions(columns: tuple[Column, ...]) -> list[Obj]:
    """``columnDefinitions``."""
    return [
        {
            "name": c.name,
            "type": c.type,
            "format": c.format,
            "description": c.description,
            "priority": c.priority,
        }
        for c in columns
    ]


class TableOptions(NamedTuple):
    """``include_object``: ``Metadata`` (default), ``Object`` or ``None``; headers or not."""

    include_object: str = "Metadata"
    headers: bool = True
    version: str = "v1"


def _row(printer: Printer, obj: Obj, now: float, options: TableOptions) -> Obj:
    row: Obj = {"cells": printer.row(obj, now)}
    if options.include_object == "Object":
        row["object"] = obj
    elif options.include_object == "Metadata":
        row["object"] = partial_metadata(obj, options.version)
    return row


def table(
    printer: Printer,
    objects: Iterable[Obj],
    now: float,
    metadata: Obj,
    options: TableOptions = TableOptions(),  # noqa: B008
) -> Obj:
    """A Table of these objects; ``metadata`` is the list's own."""
    return {
        "kind": "Table",
        "apiVersion": f"meta.k8s.io/{options.version}",
        "metadata": metadata,
        "columnDefinitions": column_definitions(printer.columns) if options.headers else None,
        "rows": [_row(printer, obj, now, options) for obj in objects],
    }


def partial_metadata(obj: Obj, version: str = "v1") -> Obj:
    """``PartialObjectMetadata`` of an object."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": dig(obj, "metadata") or {},
    }
