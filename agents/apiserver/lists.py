"""Selecting and paging lists."""

from __future__ import annotations

import base64
import binascii
import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.apiserver.config import MAX_LIST_SNAPSHOTS
from emulator.apimachinery import fieldselector, labels
from emulator.apimachinery.behaviour import selectable_fields
from emulator.apimachinery.objects import dig
from emulator.apimachinery.status import bad_request, expired

if TYPE_CHECKING:
    import random

    from agents.apiserver.cache import Bucket, Entry
    from agents.apiserver.call import Call
    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.resources import ResourceType

_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can start "
    "a new list without the continue parameter."
)


class Selection(NamedTuple):
    """Which objects of a resource a request is about."""

    resource: ResourceType
    prefix: str
    labels: labels.Selector
    fields: fieldselector.FieldSelector

    @classmethod
    def of(cls, call: Call) -> Selection:
        """From the path and the query; StatusError 400 for a bad selector."""
        prefix = f"{call.namespace}/" if call.namespace else ""
        try:
            by_label = labels.parse(call.query.get("labelSelector") or "")
        except labels.SelectorError as error:
            raise bad_request(str(error)) from None
        known = selectable_fields(call.resource, {})
        try:
            by_field = fieldselector.parse(call.query.get("fieldSelector") or "", known)
        except labels.SelectorError as error:
            raise bad_request(str(error)) from None
        if call.name:
            term = fieldselector.FieldTerm("metadata.name", True, call.name)
            by_field = fieldselector.FieldSelector((*by_field.terms, term))
        return cls(call.resource, prefix, by_label, by_field)

    def matches(self, entry: Entry) -> bool:
        """Whether the request is about this object."""
        if self.prefix and not entry.key.startswith(self.prefix):
            return False
        if self.labels.requirements and not self.labels.matches(
            dig(entry.obj, "metadata", "labels")
        ):
            return False
        return not self.fields.terms or self.fields.matches(entry.fields(self.resource))

    @property
    def place(self) -> str:
        """The collection: where its objects are kept, and the namespace."""
        return f"{self.resource.directory} {self.prefix}"

    @property
    def selects(self) -> bool:
        """Whether a label or field selector narrows the list."""
        return bool(self.labels.requirements or self.fields.terms)


class ListPages:
    """Lists in pages, each list from one moment: what is left is kept until it is asked for."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        # Random number → revision, which list it is, what is left of it.
        self._left: OrderedDict[int, tuple[int, str, list[Entry]]] = OrderedDict()

    def page(
        self, query: Any, bucket: Bucket, revision: int, selection: Selection
    ) -> tuple[list[Entry], Obj]:
        """The entries of one page and the list's metadata.  StatusError 400 or 410."""
        try:
            limit = int(query.get("limit") or 0)
        except ValueError:
            raise bad_request(
                f'strconv.ParseInt: parsing "{query["limit"]}": invalid syntax'
            ) from None
        token = query.get("continue") or ""
        if token:
            revision, entries = self._resume(token, selection.place)
        else:
            entries = [
                entry for key in bucket.order() if selection.matches(entry := bucket.entries[key])
            ]
        metadata: Obj = {"resourceVersion": str(revision)}
        if 0 < limit < len(entries):
            metadata["continue"] = self._keep(revision, selection.place, entries[limit:])
            if not selection.selects:
                metadata["remainingItemCount"] = len(entries) - limit
            entries = entries[:limit]
        return entries, metadata

    def _keep(self, revision: int, place: str, left: list[Entry]) -> str:
        # A random number means nothing to the server's next run: its own lists are others.
        number = self._rng.getrandbits(63)
        self._left[number] = (revision, place, left)
        while len(self._left) > MAX_LIST_SNAPSHOTS:
            self._left.popitem(last=False)
        token = json.dumps(
            {"v": "meta.k8s.io/v1", "rv": revision, "start": str(number)},
            separators=(",", ":"),
        )
        return base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")

    def _resume(self, token: str, place: str) -> tuple[int, list[Entry]]:
        try:
            padded = token + "=" * (-len(token) % 4)
            decoded = json.loads(base64.urlsafe_b64decode(padded.encode()))
            number = int(decoded["start"])
        except (binascii.Error, ValueError, KeyError, TypeError, RecursionError) as error:
            raise bad_request(f"continue key is not valid: {error}") from None
        found = self._left.get(number)
        if found is None:
            raise expired(_TOO_OLD)
        revision, of, left = found
        if of != place:
            raise bad_request("continue key is not valid: it belongs to another list")
        return revision, left
