"""Where objects live: a narrow view of etcd with optimistic writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager


class Stored(NamedTuple):
    """A key as it is in etcd."""

    key: bytes
    value: bytes
    revision: int


class Change(NamedTuple):
    """One event of a watch; ``value`` is None for a deletion."""

    key: bytes
    value: bytes | None
    revision: int


class Written(NamedTuple):
    """The outcome of an optimistic write: the revision, or what was there instead."""

    revision: int
    current: Stored | None
    done: bool


class Store(Protocol):
    """What the API server asks of its database."""

    async def load(self, prefix: bytes) -> tuple[list[Stored], int]:
        """Everything below a prefix and the revision of that view."""

    async def create(self, key: bytes, value: bytes, ttl_s: int = 0) -> Written:
        """Write a key that must not exist."""

    async def replace(self, key: bytes, value: bytes, revision: int, ttl_s: int = 0) -> Written:
        """Write a key that must still be at ``revision``; without ``ttl_s`` it stays for ever."""

    async def remove(self, key: bytes, revision: int) -> Written:
        """Delete a key that must still be at ``revision``."""

    def watch(
        self, first: bytes, end: bytes, start_revision: int
    ) -> AbstractAsyncContextManager[AsyncIterator[tuple[list[Change], int]]]:
        """Batches of changes from key ``first`` up to ``end``, each with the revision reached."""
