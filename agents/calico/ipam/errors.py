"""How IPAM fails beside the datastore's own errors (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents.calico.errors import DatastoreError

if TYPE_CHECKING:
    from agents.calico.ipam.view import Assignments
    from agents.calico.net import Cidr

MAX_RETRIES_TEXT = "Max retries hit - excessive concurrent IPAM requests"


class IpamError(DatastoreError):
    """A request that cannot be served."""


class BlockLimitError(IpamError):
    """The host owns as many blocks as it may; ``assignments`` is what it got before."""

    def __init__(self, assignments: Assignments) -> None:
        super().__init__("cannot allocate new block due to per host block limit")
        self.assignments = assignments


class ClaimConflictError(IpamError):
    """A block belongs to another host."""

    def __init__(self, cidr: Cidr) -> None:
        super().__init__(f"{cidr} already claimed by another host", str(cidr))


class BlockNotEmptyError(IpamError):
    """A block still holds addresses."""

    def __init__(self, cidr: Cidr) -> None:
        super().__init__(f"block '{cidr}' is not empty", str(cidr))
