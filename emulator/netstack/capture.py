"""Captures: what crosses a device, byte for byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from emulator.netstack.devices.base import Device
    from emulator.netstack.kernel import Kernel

    # (kernel clock in seconds, frame, True if the device sends it)
    Sink = Callable[[float, bytes, bool], None]


class CaptureHandle:
    """One running capture; devices without Ethernet give bare IPv4 packets."""

    def __init__(
        self, kernel: Kernel, device: Device, sink: Sink, on_gone: Callable[[], None] | None
    ) -> None:
        self._kernel = kernel
        self._sink = sink
        self._on_gone = on_gone
        self._device: Device | None = device
        self.ethernet = device.ethernet
        device.taps = (*device.taps, self._tap)
        device.on_removed = (*device.on_removed, self._gone)
        kernel.tapped(1)

    def _tap(self, frame: bytes, outbound: bool) -> None:
        self._sink(self._kernel.clock(), frame, outbound)

    def _gone(self) -> None:
        if self._on_gone is not None:
            self._on_gone()

    def close(self) -> None:
        """Stop; twice does no harm."""
        device, self._device = self._device, None
        if device is not None:
            device.taps = tuple(tap for tap in device.taps if tap != self._tap)
            device.on_removed = tuple(tell for tell in device.on_removed if tell != self._gone)
            self._kernel.tapped(-1)
