"""Which protocols other than BGP were enabled or disabled by hand (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from agents.bird.config import BfdConfig, DeviceConfig, DirectConfig, KernelConfig, StaticConfig

if TYPE_CHECKING:
    from agents.bird.config import SpeakerConfig

P = TypeVar("P", StaticConfig, DeviceConfig, KernelConfig, DirectConfig, BfdConfig)


@dataclass(slots=True)
class Switches:
    """Protocols other than BGP that were enabled or disabled by hand, by name."""

    off: dict[str, bool] = field(default_factory=dict)

    def apply(self, config: SpeakerConfig) -> SpeakerConfig:
        """A configuration with what was switched."""
        if not self.off:
            return config
        static = tuple(self._switch(each) for each in config.static)
        config = replace(config, static=static, device=self._switch(config.device))
        if config.kernel is not None:
            config = replace(config, kernel=self._switch(config.kernel))
        if config.direct is not None:
            config = replace(config, direct=self._switch(config.direct))
        if config.bfd is not None:
            config = replace(config, bfd=self._switch(config.bfd))
        return config

    def _switch(self, part: P) -> P:
        return replace(part, disabled=self.off.get(part.name, part.disabled))
