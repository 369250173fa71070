"""File systems the commands see: a pod's in memory, a node's in a directory of the host.

Both take absolute paths and raise the OSErrors of a real file system.
"""

from __future__ import annotations

import errno
import os
import posixpath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

# Bytes all files of one pod may hold: a pod is a program here, its data are small.
MEMORY_FILES_LIMIT_BYTES = 8 * 1024 * 1024
# Symbolic links are not modelled, so a path is resolved by its text alone.


def normal(path: str) -> str:
    """The absolute form of a path; ``..`` stops at the root."""
    clean = posixpath.normpath("/" + path)
    return "/" + clean.lstrip("/")


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


class MemoryFiles:
    """A container's files: what its image and volumes bring, and what it writes.

    ``generated`` are files made anew at every read (/proc and the like); they cannot be written.
    A volume is a MemoryFiles of its own, mounted into each container that names it.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        files: Mapping[str, tuple[bytes, float]] | None = None,
        generated: Mapping[str, Callable[[], bytes]] | None = None,
        directories: Iterable[str] = (),
        limit: int = MEMORY_FILES_LIMIT_BYTES,
    ) -> None:
        """``clock`` gives Unix seconds; ``files`` maps path to (content, mtime)."""
        self._clock = clock
        self._files: dict[str, tuple[bytes, float]] = dict(files or {})
        self._generated = dict(generated or {})
        self._directories: dict[str, None] = dict.fromkeys(("/", *directories))
        self._mounts: dict[str, tuple[MemoryFiles, str, bool]] = {}
        self._limit = limit

    def mount(
        self, path: str, volume: MemoryFiles, *, sub_path: str = "", read_only: bool = False
    ) -> None:
        """Show ``volume`` (or what lies at its ``sub_path``) at ``path``, hiding what was there."""
        self._mounts[normal(path)] = (volume, normal(sub_path), read_only)

    def _find(self, path: str) -> tuple[MemoryFiles, str, bool]:
        """The file system, path in it and read-only flag behind a path."""
        name = normal(path)
        best = max(
            (each for each in self._mounts if name == each or name.startswith(each + "/")),
            key=len,
            default=None,
        )
        if best is None:
            return self, name, False
        volume, base, read_only = self._mounts[best]
        return volume, normal(f"{base}/{name[len(best) :]}"), read_only

    def read(self, path: str) -> bytes:
        """The file's content."""
        files, name, _ = self._find(path)
        if name in files._generated:
            return files._generated[name]()
        if name in files._files:
            return files._files[name][0]
        raise _error(errno.EISDIR if files._is_dir(name) else errno.ENOENT, path)

    def write(self, path: str, data: bytes, *, append: bool = False) -> None:
        """Replace or extend a file; its directory must exist."""
        if normal(path) == "/dev/null":
            return
        files, name, read_only = self._find(path)
        if files._is_dir(name):
            raise _error(errno.EISDIR, path)
        if name in files._generated:
            raise _error(errno.EACCES, path)
        if read_only:
            raise _error(errno.EROFS, path)
        if not files._is_dir(posixpath.dirname(name)):
            raise _error(errno.ENOENT, path)
        before = files._files.get(name, (b"", 0.0))[0]
        content = before + data if append else data
        used = sum(len(each) for each, _ in files._files.values()) - len(before)
        if used + len(content) > files._limit:
            raise _error(errno.ENOSPC, path)
        files._files[name] = (content, self._clock())

    def remove(self, path: str) -> None:
        """Unlink a file."""
        files, name, read_only = self._find(path)
        if files._is_dir(name):
            raise _error(errno.EISDIR, path)
        if name not in files._files:
            raise _error(errno.ENOENT, path)
        if read_only:
            raise _error(errno.EROFS, path)
        del files._files[name]

    def make_dir(self, path: str) -> None:
        """Make a directory; its parent must exist."""
        if self.exists(path):
            raise _error(errno.EEXIST, path)
        files, name, read_only = self._find(path)
        if not files._is_dir(posixpath.dirname(name)):
            raise _error(errno.ENOENT, path)
        if read_only:
            raise _error(errno.EROFS, path)
        files._directories[name] = None

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        files, name, _ = self._find(path)
        if not self.is_dir(path):
            raise _error(errno.ENOTDIR if self.exists(path) else errno.ENOENT, path)
        found = files._below(name)
        if files is self:
            prefix = name.rstrip("/") + "/"
            mounted = (each for each in self._mounts if each.startswith(prefix))
            found |= {each[len(prefix) :].partition("/")[0] for each in mounted}
        return sorted(found - {""})

    def _below(self, name: str) -> set[str]:
        prefix = name.rstrip("/") + "/"
        return {
            each[len(prefix) :].partition("/")[0]
            for table in (self._files, self._generated, self._directories)
            for each in table
            if each.startswith(prefix)
        }

    def _is_dir(self, name: str) -> bool:
        if name in self._directories:
            return True
        prefix = name.rstrip("/") + "/"
        return any(
            each.startswith(prefix)
            for table in (self._files, self._generated, self._directories, self._mounts)
            for each in table
        )

    def is_dir(self, path: str) -> bool:
        """True for a directory, made or implied by a file below it."""
        files, name, _ = self._find(path)
        return files._is_dir(name)

    def exists(self, path: str) -> bool:
        """True for a file or directory."""
        files, name, _ = self._find(path)
        return name in files._files or name in files._generated or files._is_dir(name)

    def mtime(self, path: str) -> float:
        """Unix seconds of the last change; now for generated files and directories."""
        files, name, _ = self._find(path)
        if name in files._files:
            return files._files[name][1]
        if self.exists(path):
            return self._clock()
        raise _error(errno.ENOENT, path)


class DiskFiles:
    """A node's files: a directory of the host taken as the root, with generated files above it."""

    def __init__(
        self,
        root: Path,
        *,
        generated: Mapping[str, Callable[[], bytes]] | None = None,
        on_write: Callable[[str, bytes], bool] | None = None,
    ) -> None:
        """``on_write`` takes what is written to a generated file; False refuses it."""
        self._root = root
        self._generated: Mapping[str, Callable[[], bytes]] = generated or {}
        self._on_write = on_write

    def _path(self, path: str) -> Path:
        target = self._root / normal(path).lstrip("/")
        # A link planted below the root must not lead out of it.
        if not target.resolve().is_relative_to(self._root.resolve()):
            raise _error(errno.EACCES, path)
        return target

    def read(self, path: str) -> bytes:
        """The file's content."""
        name = normal(path)
        if name in self._generated:
            return self._generated[name]()
        try:
            return self._path(path).read_bytes()
        except OSError as error:
            raise _error(error.errno or errno.EIO, path) from None

    def write(self, path: str, data: bytes, *, append: bool = False) -> None:
        """Replace or extend a file; its directory must exist."""
        name = normal(path)
        if name == "/dev/null":
            return
        if name in self._generated:
            if self._on_write is None:
                raise _error(errno.EACCES, path)
            if not self._on_write(name, data):
                raise _error(errno.EINVAL, path)
            return
        try:
            with self._path(path).open("ab" if append else "wb") as file:
                file.write(data)
        except OSError as error:
            raise _error(error.errno or errno.EIO, path) from None

    def remove(self, path: str) -> None:
        """Unlink a file."""
        try:
            self._path(path).unlink()
        except OSError as error:
            raise _error(error.errno or errno.EIO, path) from None

    def make_dir(self, path: str) -> None:
        """Make a directory; its parent must exist."""
        try:
            self._path(path).mkdir()
        except OSError as error:
            raise _error(error.errno or errno.EIO, path) from None

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        prefix = normal(path).rstrip("/") + "/"
        made = {
            name[len(prefix) :].partition("/")[0]
            for name in self._generated
            if name.startswith(prefix)
        }
        try:
            return sorted(made | {each.name for each in self._path(path).iterdir()})
        except OSError as error:
            if made:
                return sorted(made)
            raise _error(error.errno or errno.EIO, path) from None

    def is_dir(self, path: str) -> bool:
        """True for a directory."""
        prefix = normal(path).rstrip("/") + "/"
        return self._path(path).is_dir() or any(name.startswith(prefix) for name in self._generated)

    def exists(self, path: str) -> bool:
        """True for a file or directory."""
        return normal(path) in self._generated or self._path(path).exists() or self.is_dir(path)

    def mtime(self, path: str) -> float:
        """Unix seconds of the last change; 0 for generated files."""
        if normal(path) in self._generated:
            return 0.0
        try:
            return self._path(path).stat().st_mtime
        except OSError as error:
            raise _error(error.errno or errno.EIO, path) from None
