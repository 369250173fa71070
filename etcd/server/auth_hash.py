"""Password hashes as etcd keeps them (bcrypt, ``$2a$``), and comparing with them off the loop."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from etcd.core.errors import PASSWORD_TOO_LONG, TOO_MANY_REQUESTS, EtcdError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor

# What bcrypt takes into account; Go's refuses to hash more, and compares only so much.
MAX_PASSWORD_BYTES = 72
# --bcrypt-cost: golang.org/x/crypto/bcrypt's MinCost, MaxCost and DefaultCost.
MIN_COST, MAX_COST, DEFAULT_COST = 4, 31, 10
# Up to here comparing takes no longer (4 ms) than a slice of other work, and needs no thread.
INLINE_COST = 6
# Comparisons that wait for the one thread: 3 s of them at the default cost.
MAX_CHECKS = 64
# Passwords remembered as right; beyond, all are compared once more.
MAX_REMEMBERED = 10_000


class PasswordHasher:
    """Hashes and compares; ``cost`` is the logarithm of the rounds (10: about 50 ms)."""

    def __init__(self, cost: int = DEFAULT_COST) -> None:
        # As etcd, which falls back to the default and warns.
        self._cost = cost if MIN_COST <= cost <= MAX_COST else DEFAULT_COST

    def hash(self, password: str) -> bytes:
        """Return a salted hash; EtcdError for a password longer than 72 bytes."""
        # Only a server with users needs bcrypt.
        import bcrypt

        data = password.encode()
        if len(data) > MAX_PASSWORD_BYTES:
            raise EtcdError(*PASSWORD_TOO_LONG)
        return bcrypt.hashpw(data, bcrypt.gensalt(self._cost, prefix=b"2a"))

    def matches(self, password: str, hashed: bytes) -> bool:
        """Whether a hash is this password's; False for what is no hash."""
        import bcrypt

        try:
            return bcrypt.checkpw(password.encode()[:MAX_PASSWORD_BYTES], hashed)
        except ValueError:
            return False


def _cost_of(hashed: bytes) -> int:
    """Return the cost in a hash (``$2a$10$…``), 0 for what is no hash."""
    cost = hashed[4:6]
    return int(cost) if cost.isdigit() else 0


class PasswordChecks:
    """Compares passwords in one thread, so that guessing them holds nobody else up.

    A password that was right is recognized by a digest afterwards, and one that is being compared
    is not compared twice: the many clients of one user cost one bcrypt.  The digest's key never
    leaves this process.
    """

    def __init__(self, hasher: PasswordHasher, loop: asyncio.AbstractEventLoop) -> None:
        self._hasher = hasher
        self._loop = loop
        self._key = os.urandom(32)
        # hash -> digest of the password that matched it
        self._right: dict[bytes, bytes] = {}
        # (hash, digest) -> who waits
        self._asked: dict[tuple[bytes, bytes], list[Callable[[bool], None]]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def check(self, password: str, hashed: bytes, then: Callable[[bool], None]) -> None:
        """Call ``then`` with whether they match, now or later.

        Raises EtcdError when too many passwords wait already.
        """
        # What only a server with passwords needs is not loaded by every start.
        import hmac

        digest = hmac.digest(self._key, password.encode(), "sha256")
        if hmac.compare_digest(self._right.get(hashed, b""), digest):
            then(True)
        elif _cost_of(hashed) <= INLINE_COST:
            then(self._note(hashed, digest, self._hasher.matches(password, hashed)))
        elif (hashed, digest) in self._asked:
            self._asked[hashed, digest].append(then)
        elif len(self._asked) >= MAX_CHECKS:
            raise EtcdError(*TOO_MANY_REQUESTS)
        else:
            self._asked[hashed, digest] = [then]
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor

                self._pool = ThreadPoolExecutor(1, thread_name_prefix="etcd.bcrypt")
            checking = self._loop.run_in_executor(
                self._pool, self._hasher.matches, password, hashed
            )
            checking.add_done_callback(lambda done: self._on_checked(hashed, digest, done))

    def _note(self, hashed: bytes, digest: bytes, right: bool) -> bool:
        if right:
            if len(self._right) >= MAX_REMEMBERED:
                self._right.clear()
            self._right[hashed] = digest
        return right

    def _on_checked(self, hashed: bytes, digest: bytes, done: asyncio.Future[bool]) -> None:
        waiting = self._asked.pop((hashed, digest))
        if not done.cancelled():
            right = self._note(hashed, digest, done.result())
            for then in waiting:
                then(right)

    def close(self) -> None:
        """Forget what waits; nobody is told."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
