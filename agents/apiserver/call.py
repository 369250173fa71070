"""One request to a resource, after routing and authentication."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

    from agents.apiserver.config import UserInfo
    from emulator.apimachinery.resources import ResourceType


@dataclass(frozen=True, slots=True)
class Call:
    """``namespace`` is "" for cluster-wide requests, ``name`` "" for collections."""

    request: web.BaseRequest
    user: UserInfo
    resource: ResourceType
    namespace: str
    name: str
    subresource: str

    @property
    def query(self) -> Any:
        """The query parameters (a multidict)."""
        return self.request.query

    @property
    def accept(self) -> str:
        """The Accept header."""
        return self.request.headers.get("Accept", "")

    @property
    def field_manager(self) -> str:
        """``fieldManager``, "" where the client names none."""
        return str(self.query.get("fieldManager") or "")

    @property
    def user_agent(self) -> str:
        """The program asking: the User-Agent up to its version."""
        return self.request.headers.get("User-Agent", "").partition("/")[0] or "unknown"
