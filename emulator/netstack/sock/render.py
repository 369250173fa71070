"""``ss`` and ``netstat`` of a snapshot, byte for byte as iproute2 6.1 and net-tools 2.10 print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.addr import format_ip
from emulator.netstack.sock.tcp_state import State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from emulator.netstack.sock.table import SocketInfo
    from emulator.netstack.sock.tcp import Endpoint

_SS_STATES: Final = {
    State.ESTABLISHED: "ESTAB",
    State.SYN_SENT: "SYN-SENT",
    State.SYN_RECEIVED: "SYN-RECV",
    State.FIN_WAIT_1: "FIN-WAIT-1",
    State.FIN_WAIT_2: "FIN-WAIT-2",
    State.TIME_WAIT: "TIME-WAIT",
    State.CLOSED: "UNCONN",
    State.CLOSE_WAIT: "CLOSE-WAIT",
    State.LAST_ACK: "LAST-ACK",
    State.LISTEN: "LISTEN",
    State.CLOSING: "CLOSING",
}
NETSTAT_STATES: Final = {
    State.ESTABLISHED: "ESTABLISHED",
    State.SYN_SENT: "SYN_SENT",
    State.SYN_RECEIVED: "SYN_RECV",
    State.FIN_WAIT_1: "FIN_WAIT1",
    State.FIN_WAIT_2: "FIN_WAIT2",
    State.TIME_WAIT: "TIME_WAIT",
    State.CLOSED: "",
    State.CLOSE_WAIT: "CLOSE_WAIT",
    State.LAST_ACK: "LAST_ACK",
    State.LISTEN: "LISTEN",
    State.CLOSING: "CLOSING",
}


def _port(endpoint: Endpoint) -> str:
    return str(endpoint.port) if endpoint.port else "*"


def place(endpoint: Endpoint) -> str:
    """``10.2.1.5:80``, as netstat prints one end."""
    return f"{format_ip(endpoint.ip)}:{_port(endpoint)}"


def render_ss(sockets: Iterable[SocketInfo], *, netid: bool = False) -> str:
    """``ss -tan`` (``ss -tuan`` with ``netid``) of sockets already chosen and ordered."""
    rows = [("Netid", "State", "Recv-Q", "Send-Q", "Local Address", "Port", "Peer Address", "Port")]
    for proto, tcp in sockets:
        rows.append(
            (
                *(proto, _SS_STATES[tcp.state], str(tcp.receive_queue), str(tcp.send_queue)),
                *(format_ip(tcp.local.ip), _port(tcp.local)),
                *(format_ip(tcp.remote.ip), _port(tcp.remote)),
            )
        )
    width = [max(len(row[column]) for row in rows) for column in range(8)]
    lines = []
    for number, row in enumerate(rows):
        left = [row[column].ljust(width[column]) for column in range(0 if netid else 1, 4)]
        local = f"{row[4].rjust(width[4])}:{row[5].ljust(width[5])}"
        peer = f"{row[6].rjust(width[6])}:{row[7].ljust(width[7])}"
        process = "" if number else "Process"
        lines.append(" ".join((*left, local, peer)) + process.ljust(7))
    return "".join(line + "\n" for line in lines)
