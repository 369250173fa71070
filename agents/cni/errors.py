"""How a plugin fails: the code and text of the CNI specification."""

from __future__ import annotations

from emulator.errors import PodwireError

# Codes of SPEC.md 1.1.0, section "Error"; 100 and above belong to the plugin, 999 is libcni's
# "generic".
UNKNOWN_CONTAINER = 3
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
GENERIC = 999


class CniError(PodwireError):
    """A plugin failed; ``str()`` is the text the kubelet shows in FailedCreatePodSandBox."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(f"{msg}: {details}" if details else msg)
        self.code = code
        self.msg = msg
        self.details = details

    def to_json(self, cni_version: str) -> dict[str, object]:
        """The error object a plugin prints on stdout."""
        result: dict[str, object] = {
            "cniVersion": cni_version,
            "code": self.code,
            "msg": self.msg,
        }
        if self.details:
            result["details"] = self.details
        return result
