"""Certificates and tokens as files."""

from __future__ import annotations

import csv
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pair:
    """Paths of a PEM certificate and its key."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class TokenUser:
    """One line of the token file: who bears the token and which groups they are in."""

    token: str
    name: str
    groups: tuple[str, ...]


def write_private(path: Path, data: bytes) -> None:
    """Write a file only this user may read, by a temporary one and a rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


def make_tokens(path: Path, users: Iterable[tuple[str, tuple[str, ...]]]) -> dict[str, TokenUser]:
    """Return user name → token, read from ``path`` or made there.

    The file is kube-apiserver's static token file: ``token,user,uid,"group1,group2"``.
    """
    if not path.exists():
        lines = [
            f'{secrets.token_hex(16)},{name},{name},"{",".join(groups)}"\n'
            for name, groups in users
        ]
        write_private(path, "".join(lines).encode())
    return read_tokens(path)


def read_tokens(path: Path) -> dict[str, TokenUser]:
    """Read a static token file; raises UsageError that names the bad line."""
    found: dict[str, TokenUser] = {}
    with path.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if len(row) < 3 or not row[0] or not row[1]:
                raise UsageError(f'{path}:{number}: expected token,user,uid,"group1,group2"')
            groups = tuple(filter(None, row[3].split(","))) if len(row) > 3 else ()
            found[row[1]] = TokenUser(row[0], row[1], groups)
    return found
