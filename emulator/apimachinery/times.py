"""Timestamps and ages as Kubernetes writes them."""

from __future__ import annotations

import datetime
from typing import Any


def rfc3339(epoch_s: float) -> str:
    """``metav1.Time``: whole seconds, ``Z``."""
    moment = datetime.datetime.fromtimestamp(int(epoch_s), datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_rfc3339(text: Any) -> float | None:
    """Epoch seconds of a timestamp, None for anything that is not one."""
    if not isinstance(text, str) or not text:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.timestamp()


def human_duration(seconds: float) -> str:
    """``duration.HumanDuration`` (apimachinery/pkg/util/duration/duration.go)."""
    s = int(seconds)
    if s < -1:
        return "<invalid>"
    if s < 0:
        return "0s"
    minutes, hours = s // 60, s // 3600
    days = hours // 24
    if s < 120:
        return f"{s}s"
    if minutes < 10:
        return f"{minutes}m{s % 60}s" if s % 60 else f"{minutes}m"
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if hours < 24 * 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    if days < 365 * 2:
        return f"{days}d"
    if days < 365 * 8:
        rest = (days % 365) % 365
        return f"{days // 365}y{rest}d" if rest else f"{days // 365}y"
    return f"{days // 365}y"


def age(timestamp: Any, now: float) -> str:
    """``5m``, ``<unknown>`` where there is no timestamp."""
    at = parse_rfc3339(timestamp)
    return "<unknown>" if at is None else human_duration(now - at)
