"""The flags with which a verb reaches an etcd that is not its own, named as etcdctl's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from etcd.core.access import EtcdAccess

if TYPE_CHECKING:
    import argparse


def add_access_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to be let in by --etcd-endpoints, as with etcdctl")
    group.add_argument("--user", default="", metavar="NAME[:PASSWORD]", help="an etcd user")
    group.add_argument("--password", default="", help="the user's password, if not in --user")
    group.add_argument("--cacert", default="", metavar="FILE", help="the authority of its server")
    group.add_argument("--cert", default="", metavar="FILE", help="our certificate for etcd")
    group.add_argument("--key", default="", metavar="FILE", help="the certificate's key")


def access_of(args: argparse.Namespace) -> EtcdAccess:
    """What the flags say; UsageError for flags that contradict each other."""
    return EtcdAccess.parse(args.user, args.password, args.cacert, args.cert, args.key)
