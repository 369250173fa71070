"""How the Calico datastore fails (pure); texts are libcalico-go's.

Source: projectcalico/calico libcalico-go/lib/errors/errors.go.
"""

from __future__ import annotations

from typing import NamedTuple

from emulator.errors import PodwireError, UsageError


class DatastoreError(PodwireError):
    """An operation on the datastore failed; ``identifier`` is the key or name it was about."""

    def __init__(self, text: str, identifier: str = "") -> None:
        super().__init__(text)
        self.identifier = identifier


class DoesNotExistError(DatastoreError):
    """Read, update or delete of what is not there."""

    def __init__(self, identifier: str, cause: str = "key not found") -> None:
        super().__init__(f"resource does not exist: {identifier} with error: {cause}", identifier)
        self.cause = cause


class AlreadyExistsError(DatastoreError):
    """Create of what is there already."""

    def __init__(self, identifier: str, cause: str = "") -> None:
        super().__init__(f"resource already exists: {identifier}", identifier)
        self.cause = cause


class UpdateConflictError(DatastoreError):
    """Somebody else wrote first; read again and retry."""

    def __init__(self, identifier: str, cause: str = "") -> None:
        super().__init__(f"update conflict: {identifier}", identifier)
        self.cause = cause


class ParsingError(DatastoreError):
    """A stored value that is not what its key promises."""

    def __init__(self, key: str, value: str, cause: str) -> None:
        super().__init__(f"failed to parse datastore entry key={key}; value={value}: {cause}", key)


class ErroredField(NamedTuple):
    """One field that failed validation; ``value`` None is not printed."""

    name: str
    reason: str = ""
    value: object = None

    def __str__(self) -> str:
        text = self.name if self.value is None else f"{self.name} = '{_go_text(self.value)}'"
        return f"{text} ({self.reason})" if self.reason else text


class ValidationError(UsageError):
    """A resource that breaks its kind's rules."""

    def __init__(self, *fields: ErroredField) -> None:
        if len(fields) == 1:
            text = f"error with field {fields[0]}"
        else:
            text = "error with the following fields:\n" + "".join(f"-  {each}\n" for each in fields)
        super().__init__(text)
        self.fields = fields


def _go_text(value: object) -> str:
    """A value as Go's %v prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(_go_text(each) for each in value) + "]"
    return str(value)


class CniError(PodwireError):
    """The CNI plugin failed; ``str()`` is what the kubelet shows in FailedCreatePodSandBox."""
