"""Simple tokens: random letters that stand for a user while they are used.

Source: etcd server/auth/simple_token.go.  A token lives in memory only: after a restart its holder
is told "invalid auth token" and authenticates again, as every etcd client does.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Protocol

from etcd.core.auth import AuthInfo

if TYPE_CHECKING:
    from collections.abc import Callable

# --auth-token-ttl: a token not used for so long is forgotten.
DEFAULT_TTL_S = 300.0
LETTERS = string.ascii_letters
PREFIX_LETTERS = 16
# etcd has no limit, and warns at every 10,000; beyond this the longest unused are forgotten, which
# costs their holders one more Authenticate.
MAX_TOKENS = 100_000


class TokenProvider(Protocol):
    """Makes tokens and knows them again."""

    def assign(self, username: str, revision: int, index: int, *, now: float) -> str:
        """Return a new token for a user whose password has been checked."""

    def info(self, token: str, revision: int, *, now: float) -> AuthInfo | None:
        """Return whose token it is, None if it is not one or no more."""

    def invalidate(self, username: str) -> None:
        """Forget a user's tokens."""

    def clear(self) -> None:
        """Forget all tokens."""


class SimpleTokens:
    """Tokens ``<16 letters>.<index>``; ``letter`` draws one of LETTERS, unpredictably."""

    def __init__(self, letter: Callable[[], str], *, ttl_s: float = DEFAULT_TTL_S) -> None:
        self._letter = letter
        self._ttl_s = ttl_s
        # token -> (user, expiry), the longest unused first.
        self._tokens: dict[str, tuple[str, float]] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def assign(self, username: str, revision: int, index: int, *, now: float) -> str:
        """See TokenProvider; the token always stands for the newest auth revision."""
        self._expire(now)
        prefix = "".join(self._letter() for _ in range(PREFIX_LETTERS))
        token = f"{prefix}.{index}"
        self._tokens[token] = (username, now + self._ttl_s)
        return token

    def info(self, token: str, revision: int, *, now: float) -> AuthInfo | None:
        """See TokenProvider; using a token makes its time begin again."""
        known = self._tokens.pop(token, None)
        if known is None or known[1] <= now:
            return None
        self._tokens[token] = (known[0], now + self._ttl_s)
        return AuthInfo(known[0], revision)

    def _expire(self, now: float) -> None:
        for token, (_, expires_at) in list(self._tokens.items()):
            if expires_at > now and len(self._tokens) < MAX_TOKENS:
                return
            del self._tokens[token]

    def invalidate(self, username: str) -> None:
        """See TokenProvider."""
        kept = {token: entry for token, entry in self._tokens.items() if entry[0] != username}
        self._tokens = kept

    def clear(self) -> None:
        """See TokenProvider."""
        self._tokens.clear()
