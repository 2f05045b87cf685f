"""Tests that interpret programs leave none behind for those that come next in the same process."""

from __future__ import annotations

import gc as collector

from graphc.runtime import random
from graphc.runtime.dispatch import Entry


def forget_programs() -> None:
    """Operations are compiled, or interpreted, again: which of both follows the environment."""
    for x in collector.get_objects():
        if type(x) is Entry:
            x.run = x._first_run


def forget_devices() -> None:
    """Also the random generators of devices."""
    forget_programs()
    random._of_devices.clear()
