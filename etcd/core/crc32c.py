"""CRC-32C (Castagnoli), the checksum of HashKV (RFC 3720 appendix B.4)."""

from __future__ import annotations

import google_crc32c


def crc32c(data: bytes, start: int = 0) -> int:
    """Return the checksum of ``data`` continuing from ``start`` (0 at the beginning)."""
    value: int = google_crc32c.extend(start, data)
    return value
