"""What the API server asks before kubectl's writes of Calico's resources are stored (pure).

Calico's own API server validates as calicoctl does; here its CustomResourceDefinitions do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agents.calico.errors import ErroredField, ValidationError
from agents.calico.known_fields import Path, unknown_paths
from agents.calico.resources import spec_of
from agents.calico.unenforced import refuse_rules, unenforced
from agents.calico.validation import prepare
from agents.calico.validation_pool import check_changed_pool, check_overlap, default_pool_spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agents.calico.resources import Resource


class Findings(NamedTuple):
    """Fields its kind does not have, fields that break its rules, and what nobody acts on."""

    unknown: tuple[Path, ...]
    broken: tuple[ErroredField, ...]
    warnings: tuple[str, ...]


def admit(new: Resource, old: Resource | None, others: Iterable[Resource]) -> Findings:
    """Judge a resource; ``old`` is what it replaces, ``others`` are all of its kind."""
    try:
        return _judge(new, old, others)
    except RecursionError:
        # Deeper than Python's stack, and than any field of Calico's.
        return Findings((), (ErroredField("Spec", "is nested too deeply"),), ())


def _judge(new: Resource, old: Resource | None, others: Iterable[Resource]) -> Findings:
    broken: tuple[ErroredField, ...] = ()
    try:
        ready = prepare(new)
        refuse_rules(ready)
        if new["kind"] == "IPPool":
            _check_pool(ready, old, others)
    except ValidationError as error:
        broken = error.fields
    # Its fields are looked at before a name is made up.
    warnings = unenforced(new) if new["metadata"].get("name") else ()
    return Findings(tuple(unknown_paths(new)), broken, warnings)


def _check_pool(ready: Resource, old: Resource | None, others: Iterable[Resource]) -> None:
    if old is None:
        check_overlap(ready, others)
        return
    spec = dict(spec_of(old))
    default_pool_spec(spec)
    check_changed_pool({**old, "spec": spec}, ready)
