"""What a client of the API server can be told: a Status, or that nobody answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulator.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Mapping


class ApiError(PeerError):
    """The API server answered with a failure Status.

    ``status`` is the HTTP code, ``reason`` the machine word (``NotFound``, ``AlreadyExists``,
    ``Conflict``, ``Expired``, ``Invalid``…), ``details`` the Status' details (may be empty),
    ``retry_after_s`` what the server asked for, None where it did not.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.details: Mapping[str, Any] = details or {}
        self.retry_after_s = retry_after_s

    @property
    def is_not_found(self) -> bool:
        """The object (or its namespace, or its kind) is not there."""
        return self.status == 404

    @property
    def is_already_exists(self) -> bool:
        """A create hit an object of the same name."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def is_conflict(self) -> bool:
        """The object changed since it was read: read again, decide again."""
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def is_namespace_terminating(self) -> bool:
        """A create in a namespace that is being deleted: nothing to try again."""
        causes = self.details.get("causes") or ()
        return any(cause.get("reason") == "NamespaceTerminating" for cause in causes)

    @property
    def is_from_the_future(self) -> bool:
        """The resourceVersion asked for is newer than the server's data (it was restored)."""
        causes = self.details.get("causes") or ()
        return any(cause.get("reason") == "ResourceVersionTooLarge" for cause in causes)

    @property
    def is_expired(self) -> bool:
        """The resourceVersion or continue token is compacted away: list again."""
        return self.status == 410 or self.reason in ("Expired", "Gone")


class ApiUnreachableError(PeerError):
    """No answer: the connection could not be made, broke, or timed out.

    ``sent`` is False when the request certainly never reached the server.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent
