"""What programs ask before they choose a device: there is no CUDA runtime, so the answer is no."""

from __future__ import annotations


def is_available() -> bool:
    """Whether there is a CUDA device: False."""
    return False


def device_count() -> int:
    """The number of CUDA devices: 0."""
    return 0


__all__ = ["device_count", "is_available"]
