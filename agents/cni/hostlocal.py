"""host-local's directory, byte for byte what the real plugin keeps.

``<dataDir>/<network>/<ip>`` holds ``<containerID>\\r\\n<ifname>``, ``last_reserved_ip.0`` the last
address given, ``lock`` is flocked around every use.  A real host-local binary may share it.
Source: containernetworking/plugins, plugins/ipam/host-local/backend/disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from agents.cni.errors import GENERIC, IO_FAILURE, CniError
from agents.cni.ipam import Range, RangeSet, allocate, check_requested, parse_ranges
from emulator.addr import format_ip, parse_ip
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_LAST_RESERVED = "last_reserved_ip."
_LINE_BREAK = "\r\n"


class Allocation(NamedTuple):
    """One address given out."""

    ip: int
    range: Range
    container_id: str
    ifname: str


class HostLocal:
    """The IPAM of one network on one node."""

    def __init__(self, data_dir: Path, network: str) -> None:
        self._dir = data_dir / network

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the directory's flock; creates the directory."""
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o755)
            handle = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise CniError(IO_FAILURE, f"{self._dir}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def add(
        self, ipam: Mapping[str, Any], container_id: str, ifname: str, requested: int | None = None
    ) -> Allocation:
        """Reserve an address; CniError when this container has one already or none is left."""
        ranges = parse_ranges(ipam)
        with self._locked():
            try:
                return self._allocate(ranges, container_id, ifname, requested)
            except CniError as error:
                raise CniError(
                    error.code, f"failed to allocate for range 0: {error.msg}", error.details
                ) from None

    def _allocate(
        self, ranges: RangeSet, container_id: str, ifname: str, requested: int | None
    ) -> Allocation:
        content = container_id.strip() + _LINE_BREAK + ifname

        def reserve(ip: int) -> bool:
            return self._reserve(ip, content)

        for ip in self._of(container_id, ifname):
            if any(part.holds(ip) for part in ranges):
                raise CniError(
                    GENERIC,
                    f"{format_ip(ip)} has been allocated to {container_id}, "
                    "duplicate allocation is not allowed",
                )
        if requested is None:
            ip, part = allocate(ranges, self._last_reserved(), reserve)
            return Allocation(ip, part, container_id, ifname)
        part = check_requested(ranges, requested)
        if not reserve(requested):
            text = ",".join(str(each) for each in ranges)
            raise CniError(
                GENERIC,
                f"requested IP address {format_ip(requested)} is not available in range set {text}",
            )
        return Allocation(requested, part, container_id, ifname)

    def delete(self, container_id: str, ifname: str) -> tuple[int, ...]:
        """Give back what the container holds and return it; nothing held is no error."""
        with self._locked():
            held = tuple(self._of(container_id, ifname))
            for ip in held:
                (self._dir / format_ip(ip)).unlink(missing_ok=True)
        return held

    def find(self, container_id: str, ifname: str) -> int | None:
        """The address the container holds, or None."""
        with self._locked():
            return next(self._of(container_id, ifname), None)

    def holders(self) -> dict[int, tuple[str, str]]:
        """Every reserved address with its container and interface, sorted by address."""
        found: dict[int, tuple[str, str]] = {}
        with self._locked():
            for ip, content in self._files():
                container_id, _, ifname = content.partition(_LINE_BREAK)
                found[ip] = (container_id.strip(), ifname.strip() or "eth0")
        return dict(sorted(found.items()))

    def _files(self) -> Iterator[tuple[int, str]]:
        for path in sorted(self._dir.iterdir()):
            try:
                ip = parse_ip(path.name)
            except UsageError:
                continue
            with contextlib.suppress(OSError):
                yield ip, path.read_bytes().decode("utf-8", "replace")

    def _of(self, container_id: str, ifname: str) -> Iterator[int]:
        new, old = container_id.strip() + _LINE_BREAK + ifname, container_id.strip()
        for ip, content in self._files():
            # Files of 2017's plugin hold the container ID alone.
            if content.strip() in (new, old):
                yield ip

    def _last_reserved(self) -> int | None:
        for name in (_LAST_RESERVED + "0", "last_reserved_ip"):
            with contextlib.suppress(OSError, UsageError):
                return parse_ip((self._dir / name).read_bytes().decode("utf-8", "replace").strip())
        return None

    def _reserve(self, ip: int, content: str) -> bool:
        path, last = self._dir / format_ip(ip), self._dir / (_LAST_RESERVED + "0")
        try:
            handle = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CREAT, 0o600)
        except FileExistsError:
            return False
        except OSError as error:
            raise CniError(IO_FAILURE, f"{path}: {error.strerror}") from None
        try:
            os.write(handle, content.encode())
            last.write_text(format_ip(ip))
        except OSError as error:
            path.unlink(missing_ok=True)
            raise CniError(IO_FAILURE, f"{error.filename or path}: {error.strerror}") from None
        finally:
            os.close(handle)
        return True
