"""v1 Events: what ``kubectl describe`` and ``kubectl get events`` show.

The same thing said again raises the count of the event already there, and what is said too often
is said together or not at all (k8s.io/client-go/tools/record/events_cache.go).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from emulator.kubeclient.errors import ApiError, ApiUnreachableError
from emulator.kubeclient.event_correlator import EventCorrelator, Said
from emulator.kubeclient.meta import format_micro_time, format_time, object_reference
from emulator.kubeclient.resource import EVENTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from emulator.kubeclient.resource import Resource
    from emulator.kubeclient.rest import RestClient
    from emulator.runtime.clock import Clock

    Object = dict[str, Any]

# Events waiting to be sent; when the API server is away longer, the oldest are dropped, as
# events are a courtesy.  client-go's broadcaster holds 1000.
MAX_PENDING = 1000
# Distinct events whose counts are remembered; client-go: 4096.
MAX_REMEMBERED = 4096
# Sends of different events under way at once.
SENDERS = 4


class _Pending(NamedTuple):
    said: Said
    reference: Object
    at_s: float


class _Known(NamedTuple):
    name: str
    times: int


class EventRecorder:
    """Sends events in the background; ``event`` never waits and never fails."""

    def __init__(
        self,
        client: RestClient,
        clock: Clock,
        component: str,
        *,
        host: str = "",
        action: str = "",
        log: logging.Logger | None = None,
    ) -> None:
        """``component`` is the event's source (``default-scheduler``), ``host`` the node's name.

        With ``action`` events are of the newer kind (events.k8s.io), which have no count and one
        precise time, which kubectl lists first, and which nobody aggregates or counts against a
        limit (k8s.io/client-go/tools/events).
        """
        self._client = client
        self._clock = clock
        self._component = component
        self._host = host
        self._action = action
        self._log = log or logging.getLogger("podwire.kubeclient")
        self._pending: asyncio.Queue[_Pending] = asyncio.Queue(MAX_PENDING)
        self._correlator = EventCorrelator()
        self._known: OrderedDict[Said, _Known] = OrderedDict()
        self._last_nanos = 0

    def event(
        self,
        obj: Mapping[str, Any],
        resource: Resource,
        type_: str,
        reason: str,
        message: str,
        *,
        field_path: str = "",
        component: str = "",
    ) -> None:
        """Note an event about ``obj``; ``type_`` is Normal or Warning.

        ``field_path`` names a container (``spec.containers{nginx}``); ``component`` overrides the
        recorder's own.
        """
        reference = object_reference(obj, resource)
        if field_path:
            reference["fieldPath"] = field_path
        self.event_about(reference, type_, reason, message, component=component)

    def event_about(
        self, reference: Object, type_: str, reason: str, message: str, *, component: str = ""
    ) -> None:
        """Note an event about an ObjectReference (nodes name themselves by name as uid)."""
        said = Said(
            component or self._component,
            self._host,
            reference.get("namespace", ""),
            reference.get("kind", ""),
            reference.get("name", ""),
            reference.get("uid", ""),
            reference.get("fieldPath", ""),
            type_,
            reason,
            message,
        )
        while self._pending.full():
            self._pending.get_nowait()
        self._pending.put_nowait(_Pending(said, reference, self._clock.time()))

    async def run(self) -> None:
        """Send what is noted; returns only when cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(SENDERS):
                group.create_task(self._send_all(), name=f"events.{self._component}.{number}")

    async def _send_all(self) -> None:
        while True:
            pending = await self._pending.get()
            try:
                await self._send(pending)
            except (ApiError, ApiUnreachableError) as error:
                self._log.debug("event %s not sent: %s", pending.said.reason, error)

    async def _send(self, pending: _Pending) -> None:
        said, message, at_s = pending.said, pending.said.message, pending.at_s
        if not self._action:
            said, message = self._correlator.aggregate(said, at_s)
        namespace = said.namespace or "default"
        # Counted before the wait, so that two senders never write the same count.
        known = self._known.get(said) or _Known(f"{said.name}.{self._nanos(at_s):x}", 0)
        known = known._replace(times=known.times + 1)
        self._remember(said, known)
        if not self._action and not self._correlator.may_say(said, at_s):
            return
        if known.times > 1:
            body: Object = {
                "count": known.times,
                "lastTimestamp": format_time(at_s),
                "message": message,
            }
            if self._action:
                seen = format_micro_time(at_s)
                body = {"series": {"count": known.times, "lastObservedTime": seen}}
            try:
                await self._client.patch(EVENTS, namespace, known.name, body, "merge")
            except ApiError as error:
                if not error.is_not_found:
                    raise
                self._remember(said, known._replace(times=1))
            else:
                return
        await self._client.create(EVENTS, self._document(pending, message, namespace, known.name))

    def _document(self, pending: _Pending, message: str, namespace: str, name: str) -> Object:
        said = pending.said
        source = {"component": said.source}
        if said.host:
            source["host"] = said.host
        at = format_time(pending.at_s)
        document: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": pending.reference,
            "reason": said.reason,
            "message": message,
            "reportingComponent": said.source,
            "reportingInstance": said.host,
            "type": said.type,
        }
        if self._action:
            return document | {
                "action": self._action,
                "reportingInstance": said.host or said.source,
                "eventTime": format_micro_time(pending.at_s),
                "source": {},
                "firstTimestamp": None,
                "lastTimestamp": None,
            }
        return document | {
            "source": source,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
            "eventTime": None,
        }

    def _nanos(self, at_s: float) -> int:
        # Two events of one instant about one object still need two names.
        self._last_nanos = max(int(at_s * 1e9), self._last_nanos + 1)
        return self._last_nanos

    def _remember(self, said: Said, known: _Known) -> None:
        self._known[said] = known
        self._known.move_to_end(said)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)
