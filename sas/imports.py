"""What is done before PyTorch is imported."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

BUSY = 0.5
"""Load average (threads that want a core, mean of the last minute) from which PyTorch's give theirs back while they wait."""


def share_cores() -> None:
    """Where other programs want cores, let PyTorch's CPU threads that wait for each other give theirs back almost at once.

    GNU's OpenMP, which PyTorch brings on Linux, has them spin instead: with one of two cores taken a photograph then takes 50 times as long
    (docs/performance.md). Changes no result. Leaves an idle machine as it is, where spinning is faster, what is set of OMP_WAIT_POLICY and
    GOMP_SPINCOUNT, and Windows. Has no effect once PyTorch is imported.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ) or not hasattr(os, "getloadavg"):
        return
    try:
        load = os.getloadavg()[0]
    except OSError:  # not to be had in some containers
        return
    if load >= BUSY:
        os.environ["GOMP_SPINCOUNT"] = "1000"


@contextmanager
def quick_imports() -> Iterator[None]:
    """Python's search for unreachable cycles rests inside.

    Importing PyTorch and diffusers makes 400,000 objects that stay, and looking through them again and again takes long (docs/performance.md).
    """
    resting = not gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not resting:
            gc.enable()
