"""Loop that follows which kinds the API server serves: definitions come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulator.kubeclient.controller import Controller
from emulator.kubeclient.discovery import deletable, discover
from emulator.kubeclient.resource import DEFINITIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agents.controllers.shell import Shell
    from emulator.kubeclient.resource import Resource

    Object = dict[str, Any]


class Kinds:
    """Every kind that can be listed, watched and deleted, in order of discovery."""

    def __init__(self, shell: Shell, served: Iterable[Resource]) -> None:
        """``served`` is what discovery told at the start."""
        self._shell = shell
        # (group, kind) → where it is kept; an owner may be named by any version of its group.
        self._served = {(r.group, r.kind): r for r in served}
        self._on_kind: list[Callable[[Resource], None]] = []
        self._on_gone: list[Callable[[Resource], None]] = []
        self._controller = Controller("kinds", self._reconcile, log=shell.env.log)
        shell.controllers.append(self._controller)
        if any(resource == DEFINITIONS for resource in self._served.values()):
            shell.informers.informer(DEFINITIONS, metadata_only=True).add_handler(self._changed)

    def all(self) -> list[Resource]:
        """What is served now."""
        return [*self._served.values()]

    def find(self, api_version: str, kind: str) -> Resource | None:
        """The resource of an owner reference, None if its kind is not served."""
        return self._served.get((api_version.rpartition("/")[0], kind))

    def follow(
        self, on_kind: Callable[[Resource], None], on_gone: Callable[[Resource], None]
    ) -> None:
        """Tell of every kind served now, and of those that come and go."""
        self._on_kind.append(on_kind)
        self._on_gone.append(on_gone)
        for resource in self.all():
            on_kind(resource)

    def _changed(self, event: str, old: Object | None, new: Object | None) -> None:
        self._controller.queue.add("kinds")

    async def _reconcile(self, _: str) -> float | None:
        found = {(r.group, r.kind): r for r in deletable(await discover(self._shell.client))}
        known, self._served = self._served, found
        for key, resource in known.items():
            if found.get(key) != resource:
                for tell in self._on_gone:
                    tell(resource)
        for key, resource in found.items():
            if known.get(key) != resource:
                for tell in self._on_kind:
                    tell(resource)
        return None
