"""Leases in etcd: what flannel's registry does, over the v3 client; shell.

flannel, pkg/subnet/etcd/registry.go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents.flannel.config import ConfigError
from agents.flannel.lease import Lease, LeaseAttrs, LeaseKey, format_key, format_value, parse_key
from agents.flannel.lease import parse_value as parse_lease_value
from emulator.errors import WireError
from etcd.client import Put, mod_revision, version

if TYPE_CHECKING:
    import logging

    from agents.flannel.config import Profile
    from emulator.addr import Prefix
    from emulator.runtime.clock import Clock
    from etcd.client import EtcdClient, KeyValue
    from etcd.client.model import Compare


class ConfigMissingError(ConfigError):
    """Nobody has written the network configuration yet."""


class LeaseRegistry:
    """Reads and writes the keys under a prefix."""

    def __init__(
        self,
        client: EtcdClient,
        prefix: str,
        *,
        profile: Profile,
        ttl_s: int,
        clock: Clock,
        log: logging.Logger,
    ) -> None:
        self._client = client
        self._prefix = prefix.rstrip("/")
        self._profile = profile
        self._ttl_s = ttl_s
        self._clock = clock
        self._log = log

    @property
    def subnets_prefix(self) -> bytes:
        """What every lease's key begins with."""
        return f"{self._prefix}/subnets/".encode()

    def _key(self, subnet: Prefix) -> bytes:
        return self.subnets_prefix + format_key(subnet).encode()

    async def network_config(self) -> bytes:
        """The document at ``<prefix>/config``; ConfigMissingError with flannel's hint."""
        found = await self._client.get(f"{self._prefix}/config".encode())
        if not found.kvs:
            raise ConfigMissingError(
                "flannel config not found in etcd store."
                " Did you create your config using etcdv3 API?"
            )
        return bytes(found.kvs[0].value)

    async def leases(self) -> tuple[list[Lease], int]:
        """Every lease, and the revision of this view."""
        found = await self._client.get(self.subnets_prefix, prefix=True)
        leases = [lease for kv in found.kvs if (lease := self.read(kv)) is not None]
        return leases, found.revision

    async def lease(self, subnet: Prefix) -> Lease | None:
        """The lease of one subnet, None if nobody has it."""
        found = await self._client.get(self._key(subnet))
        return self.read(found.kvs[0]) if found.kvs else None

    def read_key(self, key: bytes) -> LeaseKey | None:
        """The subnet a key under the prefix stands for, None if it is not a lease's."""
        return parse_key(key[len(self.subnets_prefix) :].decode(errors="replace"))

    def read(self, kv: KeyValue) -> Lease | None:
        """A lease from its key and value; what cannot be read is logged and skipped."""
        key = self.read_key(kv.key)
        if key is None:
            self._log.debug("skipping key %r: not a subnet", kv.key)
            return None
        try:
            attrs = parse_lease_value(kv.value)
        except WireError as error:
            self._log.error("skipping lease %s: %s", format_key(key.subnet, key.ipv6), error)
            return None
        return Lease(key.subnet, attrs, kv.lease, kv.mod_revision, None, key.ipv6)

    async def create(self, subnet: Prefix, attrs: LeaseAttrs) -> Lease | None:
        """Create a lease if its key does not exist; None if another node was faster."""
        return await self._put(subnet, attrs, version(self._key(subnet)) == 0)

    async def extend(self, lease: Lease, attrs: LeaseAttrs) -> Lease | None:
        """Write a held lease again for another TTL; None if the key has changed since it was read.

        A reservation stays one.
        """
        unchanged = mod_revision(self._key(lease.subnet)) == lease.mod_revision
        return await self._put(lease.subnet, attrs, unchanged, forever=lease.is_reservation)

    async def _put(
        self, subnet: Prefix, attrs: LeaseAttrs, condition: Compare, *, forever: bool = False
    ) -> Lease | None:
        value = format_value(attrs, self._profile)
        number, expires_at = 0, None
        if not forever:
            now = self._clock.monotonic()
            granted = await self._client.lease_grant(self._ttl_s)
            number, expires_at = granted.id, now + granted.ttl_s
        done = await self._client.txn(
            compare=[condition], success=[Put(self._key(subnet), value, lease=number)]
        )
        if done.succeeded:
            return Lease(subnet, attrs, number, done.revision, expires_at)
        if number:
            await self._client.lease_revoke(number)
        return None

    async def delete(self, lease: Lease) -> None:
        """Delete a lease's key, whatever it holds now."""
        key = self.subnets_prefix + format_key(lease.subnet, lease.ipv6).encode()
        await self._client.delete(key)
