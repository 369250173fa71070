"""The forms an object can be answered in: itself, a Table, or its metadata only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from emulator.apimachinery.convert import from_storage
from emulator.apimachinery.objects import dump_json
from emulator.apimachinery.status import bad_request
from emulator.apimachinery.table import TableOptions, partial_metadata, printer_for, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agents.apiserver.cache import Entry, Event
    from agents.apiserver.negotiate import Accepted
    from emulator.apimachinery.objects import Obj
    from emulator.apimachinery.resources import ResourceType

META: Final = "meta.k8s.io"
OBJECT_KINDS: Final = frozenset(
    (kind, META, version)
    for kind in ("Table", "PartialObjectMetadata")
    for version in ("v1", "v1beta1")
)
LIST_KINDS: Final = frozenset(
    (kind, META, version)
    for kind in ("Table", "PartialObjectMetadataList")
    for version in ("v1", "v1beta1")
)


class Form:
    """How one request wants its objects."""

    def __init__(
        self, resource: ResourceType, accepted: Accepted, query: Any, now: Callable[[], float]
    ) -> None:
        self.resource = resource
        self.accepted = accepted
        self._now = now
        self._gv = resource.group_version
        self._head = b'{"kind":"%b","apiVersion":"%b",' % (
            resource.kind.encode(),
            self._gv.encode(),
        )
        include = query.get("includeObject") or "Metadata"
        if include not in ("Metadata", "Object", "None"):
            raise bad_request(f'unrecognized includeObject value: "{include}"')
        self._options = TableOptions(include, True, accepted.version or "v1")
        self._first = True

    @property
    def content_type(self) -> str:
        """The Content-Type of an answer in this form."""
        return self.accepted.media

    def convert(self, obj: Obj) -> Obj:
        """The version this client asked for."""
        return from_storage(self.resource, obj)

    def one(self, obj: Obj) -> Any:
        """A single object (already in the client's version) in this form."""
        if self.accepted.kind == "Table":
            meta = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
            return table(printer_for(self.resource), [obj], self._now(), meta, self._options)
        if self.accepted.kind == "PartialObjectMetadata":
            return partial_metadata(obj, self.accepted.version)
        return obj

    def many(self, entries: Sequence[Entry], metadata: Obj) -> bytes:
        """A list in this form, as JSON with its newline."""
        kind = self.accepted.kind
        if kind == "Table":
            objects = (self.convert(entry.obj) for entry in entries)
            body = table(printer_for(self.resource), objects, self._now(), metadata, self._options)
            return dump_json(body) + b"\n"
        if kind == "PartialObjectMetadataList":
            body = {
                "kind": kind,
                "apiVersion": f"{META}/{self.accepted.version}",
                "metadata": metadata,
                "items": [partial_metadata(e.obj, self.accepted.version) for e in entries],
            }
            return dump_json(body) + b"\n"
        head = b'{"kind":"%bList","apiVersion":"%b","metadata":%b,"items":[' % (
            self.resource.kind.encode(),
            self._gv.encode(),
            dump_json(metadata),
        )
        inner = b",".join(b"{%b}" % entry.body(self._gv, self.convert) for entry in entries)
        return head + inner + b"]}\n"

    def line(self, kind: str, event: Event) -> bytes:
        """A watch event."""
        if self.accepted.kind:
            return self._special(kind, self.convert(event.shown(kind).obj))
        return event.line(kind, self._gv, self._head, self.convert)

    def added(self, entry: Entry) -> bytes:
        """An object that was there before the watch."""
        if self.accepted.kind:
            return self._special("ADDED", self.convert(entry.obj))
        body = entry.body(self._gv, self.convert)
        return b'{"type":"ADDED","object":%b%b}}\n' % (self._head, body)

    def _special(self, kind: str, obj: Obj) -> bytes:
        return dump_json({"type": kind, "object": self._special_object(obj)}) + b"\n"

    def _special_object(self, obj: Obj) -> Obj:
        version = self.accepted.version
        if self.accepted.kind != "Table":
            return partial_metadata(obj, version)
        options = self._options._replace(headers=self._first)
        self._first = False
        meta = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
        return table(printer_for(self.resource), [obj], self._now(), meta, options)

    def bookmark(self, revision: int, annotations: dict[str, str] | None) -> bytes:
        """A BOOKMARK line."""
        meta: Obj = {"resourceVersion": str(revision), "creationTimestamp": None}
        if annotations:
            meta["annotations"] = annotations
        obj: Obj = {
            "kind": self.resource.kind,
            "apiVersion": self._gv,
            "metadata": meta,
        }
        if self.accepted.kind == "Table":
            options = self._options._replace(headers=self._first)
            self._first = False
            obj = table(
                printer_for(self.resource), [], self._now(), {"resourceVersion": str(revision)},
                options,
            )  # fmt: skip
            if annotations:
                obj["rows"] = [{"cells": [], "object": {
                    "kind": "PartialObjectMetadata", "apiVersion": f"{META}/v1", "metadata": meta,
                }}]  # fmt: skip
        elif self.accepted.kind:
            obj = {**obj, "kind": "PartialObjectMetadata",
                   "apiVersion": f"{META}/{self.accepted.version}"}  # fmt: skip
        return dump_json({"type": "BOOKMARK", "object": obj}) + b"\n"
