"""Columns of tables and the small formats many kinds share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from emulator.apimachinery.objects import dig, items
from emulator.apimachinery.times import age

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.apimachinery.objects import Obj


class Column(NamedTuple):
    """One column; priority 1 is shown with ``-o wide`` only."""

    name: str
    description: str
    type: str = "string"
    priority: int = 0
    format: str = ""


class Printer(NamedTuple):
    """A kind's columns and the function that gives an object's cells at a time (epoch seconds)."""

    columns: tuple[Column, ...]
    row: Callable[[Any, float], list[Any]]


NAME: Final = Column(
    "Name",
    "Name must be unique within a namespace. Is required when creating resources, although some "
    "resources may allow a client to request the generation of an appropriate name automatically. "
    "Name is primarily intended for creation idempotence and configuration definition. Cannot be "
    "updated. More info: "
    "https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names",
    format="name",
)
AGE: Final = Column(
    "Age",
    "CreationTimestamp is a timestamp representing the server time when this object was created. "
    "It is not guaranteed to be set in happens-before order across separate operations. Clients "
    "may not set this value. It is represented in RFC3339 form and is in UTC.",
)
CREATED_AT: Final = Column("Created At", AGE.description)


def wide(name: str, description: str) -> Column:
    """A column that only ``-o wide`` shows."""
    return Column(name, description, priority=1)


def number(name: str, description: str) -> Column:
    """An integer column."""
    return Column(name, description, "integer")


CONTAINERS: Final = wide("Containers", "Names of each container in the template.")
IMAGES: Final = wide("Images", "Images referenced by each container in the template.")
SELECTOR: Final = wide("Selector", "Label selector of the pods.")


def age_of(obj: Obj, now: float) -> str:
    """The Age cell."""
    return age(dig(obj, "metadata", "creationTimestamp"), now)


def containers_and_images(obj: Obj) -> list[str]:
    """The Containers and Images cells of a pod template."""
    containers = items(obj, "spec", "template", "spec", "containers")
    names = ",".join(str(c.get("name", "")) for c in containers)
    images = ",".join(str(c.get("image", "")) for c in containers)
    return [names, images]


def some(texts: list[str], limit: int = 3, empty: str = "<none>") -> str:
    """The first few of a list: ``a,b,c + 2 more...``."""
    if not texts:
        return empty
    shown = ",".join(texts[:limit])
    return f"{shown} + {len(texts) - limit} more..." if len(texts) > limit else shown


def none_if_empty(text: Any) -> str:
    """``<none>`` for nothing."""
    return str(text) if text else "<none>"
