"""Whether processes that said they are ready answer now: stopped or stuck ones do not."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from emulator.errors import PodwireError
from emulator.runtime.control import ControlClient

if TYPE_CHECKING:
    from collections.abc import Iterable

# An answer takes milliseconds, on a machine with more processes than cores a second.
ANSWER_TIMEOUT_S: Final = 2.0


async def note_silent(roles: Iterable[dict[str, Any]]) -> None:
    """Ask all ready roles at once; who does not answer gets ``responding`` and ``ready`` False.

    A role is a map of the supervisor's status: a node is asked at its ``control`` socket, the
    control plane at its ``server``, etcd at its first of ``endpoints``.
    """
    ready = [role for role in roles if role.get("ready")]
    answers = await asyncio.gather(*map(_answers, ready))
    for role, answered in zip(ready, answers, strict=True):
        role["responding"] = answered
        role["ready"] = answered


async def _answers(role: dict[str, Any]) -> bool:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            if "control" in role:
                async with ControlClient(role["control"]) as client:
                    await client.call("status")
            elif "server" in role:
                await _get(f"{role['server']}/livez")
            else:
                await _get(f"{role['endpoints'][0]}/health")
    except (PodwireError, OSError):
        return False
    return True


async def _get(url: str) -> None:
    """Return when the server has answered, whatever it says."""
    parts = urlsplit(url)
    context = None
    if parts.scheme == "https":
        # Nothing secret is sent and nothing believed.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    try:
        writer.write(f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        if not await reader.readline():
            raise ConnectionResetError
    finally:
        writer.close()
