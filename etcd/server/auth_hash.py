"""Password hashes as etcd keeps them: bcrypt, ``$2a$``."""

from __future__ import annotations

from etcd.core.errors import PASSWORD_TOO_LONG, EtcdError

# What bcrypt takes into account; Go's refuses to hash more, and compares only so much.
MAX_PASSWORD_BYTES = 72
# --bcrypt-cost: golang.org/x/crypto/bcrypt's MinCost, MaxCost and DefaultCost.
MIN_COST, MAX_COST, DEFAULT_COST = 4, 31, 10


class PasswordHasher:
    """Hashes and checks; ``cost`` is the logarithm of the rounds (10: about 50 ms)."""

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
