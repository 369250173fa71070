"""Tables, matches, targets, connection tracking, NAT and the iptables commands of a namespace."""

from __future__ import annotations

from emulator.netstack.netfilter.connection import (
    Connection,
    Translation,
)
from emulator.netstack.netfilter.conntrack_command import run_conntrack
from emulator.netstack.netfilter.ipset_command import run_ipset
from emulator.netstack.netfilter.iptables import (
    run_iptables,
    run_iptables_restore,
    run_iptables_save,
)
from emulator.netstack.netfilter.listing import ERA_2017, MODERN, Style
from emulator.netstack.netfilter.netfilter import Netfilter
from emulator.netstack.netfilter.restore import RestoreError
from emulator.netstack.netfilter.result import CommandResult

__all__ = [
    "ERA_2017",
    "MODERN",
    "CommandResult",
    "Connection",
    "Netfilter",
    "RestoreError",
    "Style",
    "Translation",
    "run_conntrack",
    "run_ipset",
    "run_iptables",
    "run_iptables_restore",
    "run_iptables_save",
]
