"""A real driver, through pycuda."""

from __future__ import annotations

from graphc.runtime.cuda.driver import unavailable


class PycudaDriver:
    """The driver of a machine with a GPU."""

    simulated = False

    def __init__(self) -> None:
        raise unavailable("there is no NVIDIA driver on this machine (libcuda.so.1 was not found)", "install the driver of your GPU")
