"""podwire kubeconfig: the path of the cluster's kubeconfig."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.cli.running import add_name, directory_of

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_name(parser)


def run(args: argparse.Namespace) -> int:
    print(directory_of(args) / "kubeconfig")
    return 0
