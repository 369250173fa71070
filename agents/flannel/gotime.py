"""Durations as Go prints them, for log lines; pure."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Return ``22h59m59.9s`` or ``250ms`` as Go's Duration.String, to 0.1 s or 1 ms."""
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    if seconds < 1:
        return f"{sign}{round(seconds * 1000)}ms" if seconds >= 0.001 else "0s"
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest // 10}.{rest % 10}s" if rest % 10 else f"{rest // 10}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{text}"
    return f"{sign}{minutes}m{text}" if minutes else f"{sign}{text}"
