"""Slash-separated paths as Go's path package treats them (path.Clean, path.Join)."""

from __future__ import annotations


def clean(path: str) -> str:
    """Return the shortest absolute path of the same meaning: no empty parts, "." or ".."."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if parts:
                parts.pop()
        elif part and part != ".":
            parts.append(part)
    return "/" + "/".join(parts)


def parts_of(path: str) -> list[str]:
    """Return the names on the way to a clean path, none for the root."""
    return path[1:].split("/") if path != "/" else []


def hidden_from(watched: str, key: str) -> bool:
    """Whether a change of ``key`` is hidden from a watcher of ``watched``.

    It is when a name below the watched path begins with "_" (watcher_hub.go, isHidden).
    """
    if len(watched) > len(key):
        # Deleting a directory also tells the watchers of what was in it.
        return False
    return "/_" in clean("/" + key[len(watched) :])
