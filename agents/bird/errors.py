"""NOTIFICATION codes, and the one error that carries what we owe a peer.

Sources: RFC 4271 §4.5 and §6, RFC 4486, RFC 7313 §5, RFC 9687; texts are BIRD's (proto/bgp/bgp.c).
"""

from __future__ import annotations

from typing import Final

from emulator.errors import PeerError

HEADER_ERROR: Final = 1
OPEN_ERROR: Final = 2
UPDATE_ERROR: Final = 3
HOLD_TIMER_EXPIRED: Final = 4
FSM_ERROR: Final = 5
CEASE: Final = 6
ROUTE_REFRESH_ERROR: Final = 7
SEND_HOLD_TIMER_EXPIRED: Final = 8

CEASE_MAX_PREFIXES: Final = 1
CEASE_ADMIN_SHUTDOWN: Final = 2
CEASE_DECONFIGURED: Final = 3
CEASE_ADMIN_RESET: Final = 4
CEASE_REJECTED: Final = 5
CEASE_CONFIG_CHANGE: Final = 6
CEASE_COLLISION: Final = 7
CEASE_OUT_OF_RESOURCES: Final = 8
CEASE_HARD_RESET: Final = 9
CEASE_BFD_DOWN: Final = 10

_TEXTS: Final = {
    (1, 0): "Invalid message",
    (1, 1): "Connection not synchronized",
    (1, 2): "Bad message length",
    (1, 3): "Bad message type",
    (2, 0): "Invalid OPEN message",
    (2, 1): "Unsupported version number",
    (2, 2): "Bad peer AS",
    (2, 3): "Bad BGP identifier",
    (2, 4): "Unsupported optional parameter",
    (2, 5): "Authentication failure",
    (2, 6): "Unacceptable hold time",
    (2, 7): "Required capability missing",
    (2, 8): "No supported AFI/SAFI",
    (3, 0): "Invalid UPDATE message",
    (3, 1): "Malformed attribute list",
    (3, 2): "Unrecognized well-known attribute",
    (3, 3): "Missing mandatory attribute",
    (3, 4): "Invalid attribute flags",
    (3, 5): "Invalid attribute length",
    (3, 6): "Invalid ORIGIN attribute",
    (3, 7): "AS routing loop",
    (3, 8): "Invalid NEXT_HOP attribute",
    (3, 9): "Optional attribute error",
    (3, 10): "Invalid network field",
    (3, 11): "Malformed AS_PATH",
    (4, 0): "Hold timer expired",
    (5, 0): "Finite state machine error",
    (5, 1): "Unexpected message in OpenSent state",
    (5, 2): "Unexpected message in OpenConfirm state",
    (5, 3): "Unexpected message in Established state",
    (6, 0): "Cease",
    (6, 1): "Maximum number of prefixes reached",
    (6, 2): "Administrative shutdown",
    (6, 3): "Peer de-configured",
    (6, 4): "Administrative reset",
    (6, 5): "Connection rejected",
    (6, 6): "Other configuration change",
    (6, 7): "Connection collision resolution",
    (6, 8): "Out of Resources",
    (6, 9): "Hard reset",
    (6, 10): "BFD session down",
    (7, 0): "Invalid ROUTE-REFRESH message",
    (7, 1): "Invalid ROUTE-REFRESH message length",
    (8, 0): "Send hold timer expired",
}


def error_text(code: int, subcode: int) -> str:
    """What BIRD calls a NOTIFICATION; unknown ones are ``Unknown error C.S``."""
    found = _TEXTS.get((code, subcode)) or _TEXTS.get((code, 0))
    return found or f"Unknown error {code}.{subcode}"


class BgpPeerError(PeerError):
    """The peer broke the protocol; ``code``, ``subcode`` and ``data`` make the NOTIFICATION."""

    def __init__(self, code: int, subcode: int, data: bytes = b"") -> None:
        super().__init__(error_text(code, subcode))
        self.code = code
        self.subcode = subcode
        self.data = data
