"""One cursor for every codec: truncation becomes one WireError that names the structure."""

from __future__ import annotations

from emulator.errors import WireError


class Reader:
    """Pulls big-endian integers and bytes off a buffer, raising WireError when it is too short."""

    __slots__ = ("_data", "_end", "_what", "position")

    def __init__(self, data: bytes | memoryview, what: str, start: int = 0) -> None:
        """``what`` names the structure in errors, e.g. ``"TCP header"``."""
        self._data = data
        self._end = len(data)
        self._what = what
        self.position = start

    @property
    def remaining(self) -> int:
        """Bytes not yet pulled."""
        return self._end - self.position

    def _take(self, count: int) -> int:
        start = self.position
        if start + count > self._end:
            raise WireError(
                f"truncated {self._what}: {count} bytes wanted at offset {start}, "
                f"{self._end - start} left"
            )
        self.position = start + count
        return start

    def pull_u8(self) -> int:
        return self._data[self._take(1)]

    def pull_u16(self) -> int:
        start = self._take(2)
        return int.from_bytes(self._data[start : start + 2], "big")

    def pull_u32(self) -> int:
        start = self._take(4)
        return int.from_bytes(self._data[start : start + 4], "big")

    def pull_bytes(self, count: int) -> bytes:
        start = self._take(count)
        return bytes(self._data[start : start + count])

    def pull_rest(self) -> bytes:
        return self.pull_bytes(self.remaining)


class Writer:
    """Collects big-endian integers and bytes."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts = bytearray()

    def push_u8(self, value: int) -> None:
        self._parts.append(value)

    def push_u16(self, value: int) -> None:
        self._parts += value.to_bytes(2, "big")

    def push_u32(self, value: int) -> None:
        self._parts += value.to_bytes(4, "big")

    def push_bytes(self, data: bytes | memoryview) -> None:
        self._parts += data

    def __len__(self) -> int:
        return len(self._parts)

    def getvalue(self) -> bytes:
        return bytes(self._parts)
