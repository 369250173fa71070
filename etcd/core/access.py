"""What a client shows an etcd and whom it believes: etcdctl's --user, --cacert, --cert, --key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from emulator.errors import UsageError


@dataclass(frozen=True, slots=True)
class EtcdAccess:
    """How to be let in; empty fields say nothing.

    ``user`` and ``password`` name an etcd user; the files are PEM: ``cacert`` the authority of the
    server's certificate (empty: the system's), ``cert`` and ``key`` the client's own certificate.
    """

    user: str = ""
    password: str = field(default="", repr=False)
    cacert: str = ""
    cert: str = ""
    key: str = ""

    @classmethod
    def parse(
        cls, user: str = "", password: str = "", cacert: str = "", cert: str = "", key: str = ""
    ) -> EtcdAccess:
        """Take the flags as etcdctl does: ``user`` may be ``NAME:PASSWORD``.

        Raises UsageError for flags that contradict each other.
        """
        name, colon, inline = user.partition(":")
        if colon and password:
            raise UsageError("--user: holds a password although --password is given, too")
        if bool(cert) != bool(key):
            raise UsageError("--cert and --key: give both or none")
        if (colon or password) and not name:
            raise UsageError("--user: the user's name is empty")
        if name and not colon and not password:
            raise UsageError(f"--user: no password for {name!r}; write NAME:PASSWORD")
        return cls(name, inline if colon else password, cacert, cert, key)

    def shown(self) -> dict[str, str]:
        """Return what is no secret by the names of etcdctl's flags, without what is empty."""
        fields = {"user": self.user, "cacert": self.cacert, "cert": self.cert, "key": self.key}
        return {name: value for name, value in fields.items() if value}


# Nobody, over plain text or with the system's authorities.
NO_ACCESS: Final = EtcdAccess()
