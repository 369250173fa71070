"""Errors as the API server answers them (apimachinery/pkg/api/errors/errors.go)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulator.errors import PodwireError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emulator.apimachinery.fielderrors import FieldError
    from emulator.apimachinery.objects import Obj


class StatusError(PodwireError):
    """A failed request: HTTP code, machine reason, and the text a person reads."""

    def __init__(
        self, code: int, reason: str, message: str, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def to_status(self) -> Obj:
        """The ``v1 Status`` body, keys in the order of the Go struct."""
        return status_object(
            "Failure",
            code=self.code,
            reason=self.reason,
            message=self.message,
            details=self.details,
        )


def status_object(
    status: str,
    *,
    code: int = 0,
    reason: str = "",
    message: str = "",
    details: dict[str, Any] | None = None,
) -> Obj:
    """A ``v1 Status``; empty members are left out as ``omitempty`` does."""
    out: Obj = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": status}
    if message:
        out["message"] = message
    if reason:
        out["reason"] = reason
    if details is not None:
        out["details"] = details
    if code:
        out["code"] = code
    return out


def qualified(resource: str, group: str) -> str:
    """``deployments.apps``, or ``pods`` in the core group."""
    return f"{resource}.{group}" if group else resource


def _details(name: str, group: str, kind: str, **more: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if name:
        out["name"] = name
    if group:
        out["group"] = group
    if kind:
        out["kind"] = kind
    out.update(more)
    return out


def not_found(resource: str, group: str, name: str) -> StatusError:
    """404 of an object."""
    text = f'{qualified(resource, group)} "{name}" not found'
    return StatusError(404, "NotFound", text, _details(name, group, resource))


def no_such_path() -> StatusError:
    """404 of a path nothing is served at."""
    return StatusError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(resource: str, group: str, name: str) -> StatusError:
    """409 of a create."""
    text = f'{qualified(resource, group)} "{name}" already exists'
    return StatusError(409, "AlreadyExists", text, _details(name, group, resource))


def conflict(resource: str, group: str, name: str, why: str) -> StatusError:
    """409 of an update."""
    text = f'Operation cannot be fulfilled on {qualified(resource, group)} "{name}": {why}'
    return StatusError(409, "Conflict", text, _details(name, group, resource))


MODIFIED = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


def invalid(kind: str, group: str, name: str, errors: Sequence[FieldError]) -> StatusError:
    """422 with one cause per field error."""
    texts = list(dict.fromkeys(str(error) for error in errors))
    joined = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    causes = [{"reason": e.kind.value[0], "message": e.body(), "field": e.field} for e in errors]
    return StatusError(
        422,
        "Invalid",
        f'{qualified(kind, group)} "{name}" is invalid: {joined}',
        _details(name, group, kind, causes=causes),
    )


def bad_request(message: str) -> StatusError:
    """400."""
    return StatusError(400, "BadRequest", message)


def other_name(sent: str, asked: str) -> StatusError:
    """400 of a body whose name is not the path's."""
    return bad_request(
        f"the name of the object ({sent}) does not match the name on the URL ({asked})"
    )


def other_namespace() -> StatusError:
    """400 of a body whose namespace is not the path's."""
    return bad_request(
        "the namespace of the provided object does not match the namespace sent on the request"
    )


def forbidden(resource: str, group: str, name: str, why: str) -> StatusError:
    """403; of a collection where ``name`` is empty."""
    what = f'{qualified(resource, group)} "{name}"' if name else qualified(resource, group)
    text = f"{what} is forbidden: {why}"
    return StatusError(403, "Forbidden", text, _details(name, group, resource))


def unauthorized() -> StatusError:
    """401, the same text whatever was wrong with the credentials."""
    return StatusError(401, "Unauthorized", "Unauthorized")


def method_not_allowed() -> StatusError:
    """405."""
    return StatusError(
        405,
        "MethodNotAllowed",
        "the server does not allow this method on the requested resource",
        {},
    )


def not_acceptable(accepted: Sequence[str]) -> StatusError:
    """406."""
    text = f"only the following media types are accepted: {', '.join(accepted)}"
    return StatusError(406, "NotAcceptable", text)


def unsupported_media_type(got: str, accepted: Sequence[str]) -> StatusError:
    """415 of a body."""
    text = (
        "the body of the request was in an unknown format - accepted media types include: "
        f"{', '.join(accepted)}"
    )
    return StatusError(415, "UnsupportedMediaType", text)


def too_large(limit: int) -> StatusError:
    """413 of a body."""
    return StatusError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit}")


def expired(message: str) -> StatusError:
    """410: the history asked for is gone; list again."""
    return StatusError(410, "Expired", message)


def too_large_revision(asked: int, current: int) -> StatusError:
    """504 of a list at a revision this server has not reached."""
    return StatusError(
        504,
        "Timeout",
        f"Too large resource version: {asked}, current: {current}",
        {
            "causes": [
                {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
            ],
            "retryAfterSeconds": 1,
        },
    )


def internal(message: str) -> StatusError:
    """500."""
    return StatusError(
        500,
        "InternalError",
        f"Internal error occurred: {message}",
        {"causes": [{"message": message}]},
    )


def unavailable(message: str) -> StatusError:
    """503."""
    return StatusError(503, "ServiceUnavailable", message)
