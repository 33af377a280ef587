"""Importing much at once."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
