"""Resource quantities (``100m``, ``128Mi``): parsing and comparing, no arithmetic library."""

from __future__ import annotations

import re
from fractions import Fraction

from emulator.errors import UsageError

_QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(?:([eE][+-]?\d+)|([numkKMGTPE]i?)?)")
_SUFFIX = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
    "Pi": Fraction(2**50),
    "Ei": Fraction(2**60),
}

QUANTITY_ERROR = (
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)

# Digits of one quantity; the largest amount there is has 19.
MAX_TEXT = 128
# Beyond it every amount is more than all there is, or less than the smallest unit.
MAX_EXPONENT = 64


def parse(text: str | int | float) -> Fraction:
    """The exact value, capped at an absurd exponent; UsageError with the real message."""
    match = _QUANTITY.fullmatch(str(text)[: MAX_TEXT + 1])
    if match is not None and match.end() > MAX_TEXT:
        match = None
    if match is None or (match.group(3) or "") not in _SUFFIX:
        raise UsageError(QUANTITY_ERROR)
    number = Fraction(match.group(1))
    if match.group(2):
        exponent = int(match.group(2)[1:])
        return number * Fraction(10) ** max(-MAX_EXPONENT, min(exponent, MAX_EXPONENT))
    return number * _SUFFIX[match.group(3) or ""]
