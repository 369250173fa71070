"""Who is who in a cluster: certificates, tokens and kubeconfigs in one directory.

Whoever starts first (the supervisor, or a control plane in its own terminal) makes what is
missing; everyone else reads.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from emulator.cluster.kubeconfig import render_kubeconfig
from emulator.cluster.pki import Pair, TokenUser, make_tokens, read_tokens, write_private
from emulator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ADMIN: Final = "kubernetes-admin"
CONTROLLERS: Final = "system:kube-controller-manager"
SCHEDULER: Final = "system:kube-scheduler"
NODE: Final = "system:node"
# Borne by the API server toward kubelets.
KUBELET_CLIENT: Final = "kube-apiserver-kubelet-client"
_GROUPS: Final = (
    (ADMIN, ("system:masters",)),
    (CONTROLLERS, ()),
    (SCHEDULER, ()),
    (NODE, ("system:nodes",)),
    (KUBELET_CLIENT, ("system:masters",)),
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What one directory holds."""

    directory: Path
    users: dict[str, TokenUser]

    @classmethod
    def make(
        cls,
        directory: Path,
        *,
        cluster: str,
        server: str,
        api_names: Iterable[str],
        kubelet_hosts: Iterable[str],
    ) -> Credentials:
        """Make what is missing: CA, serving certificates, tokens, kubeconfigs.

        ``api_names`` and ``kubelet_hosts`` are the names and addresses clients dial.
        """
        from emulator.cluster.authority import Authority

        authority = Authority(directory, datetime.datetime.now(datetime.UTC))
        authority.issue("apiserver", "kube-apiserver", names=dict.fromkeys(api_names))
        authority.issue("kubelet", NODE, names=dict.fromkeys(kubelet_hosts))
        admin = authority.issue("admin", ADMIN, groups=["system:masters"])
        made = cls(directory, make_tokens(directory / "tokens.csv", _GROUPS))
        for user, client in ((ADMIN, admin), (NODE, None)):
            text = render_kubeconfig(
                cluster=cluster,
                server=server,
                ca=made.ca,
                client=client,
                token=made.token(user),
            )
            write_private(made.kubeconfig(user), text.encode())
        return made

    @classmethod
    def read(cls, directory: Path) -> Credentials:
        """Read what another process made; UsageError if nothing is there."""
        try:
            return cls(directory, read_tokens(directory / "tokens.csv"))
        except FileNotFoundError:
            raise UsageError(
                f"{directory}: no credentials; start the control plane first, with the same "
                "directory"
            ) from None

    def token(self, user: str) -> str:
        """The bearer token of a user; UsageError if the file does not know them."""
        if user not in self.users:
            raise UsageError(f"{self.directory / 'tokens.csv'}: no token of user {user!r}")
        return self.users[user].token

    def kubeconfig(self, user: str) -> Path:
        return self.directory / f"{user.replace(':', '-')}.kubeconfig"

    @property
    def ca(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def apiserver(self) -> Pair:
        return Pair(self.directory / "apiserver.crt", self.directory / "apiserver.key")

    @property
    def kubelet(self) -> Pair:
        return Pair(self.directory / "kubelet.crt", self.directory / "kubelet.key")


def api_server_names(*, addresses: Iterable[str]) -> list[str]:
    """Every name an API server is dialled by, with the given addresses."""
    return [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        *addresses,
    ]
