"""What a reconciler asks for; pure values.  ``shell.py`` carries them out in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulator.kubeclient.resource import Resource
    from emulator.kubeclient.rest import PatchKind

    Object = dict[str, Any]


class Create(NamedTuple):
    """POST an object."""

    resource: Resource
    obj: Object


class Patch(NamedTuple):
    """PATCH an object; a ``metadata.resourceVersion`` in the body makes it conditional."""

    resource: Resource
    namespace: str
    name: str
    body: Any
    subresource: str = ""
    kind: PatchKind = "merge"


class Delete(NamedTuple):
    """DELETE an object (only this very one if ``uid`` is given); already gone is success."""

    resource: Resource
    namespace: str
    name: str
    uid: str = ""
    propagation: str = ""
    grace_s: int | None = None


class Emit(NamedTuple):
    """Record an event about a referenced object; after a failed action it is not reached."""

    reference: Object
    type: str
    reason: str
    message: str
    component: str


Action = Create | Patch | Delete | Emit


class Plan(NamedTuple):
    """Actions in order and, if time alone will change the answer, when to ask again."""

    actions: tuple[Action, ...] = ()
    again_s: float | None = None


def soonest(*delays: float | None) -> float | None:
    """The smallest of the delays that are given."""
    return min((d for d in delays if d is not None), default=None)


def replacing(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> Object:
    """A merge patch that turns ``old`` into ``new`` as a whole: what is missing is removed."""
    return {**dict.fromkeys((key for key in (old or {}) if key not in new), None), **new}
