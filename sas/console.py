"""Manners on a terminal: readers that leave, and bars where somebody looks."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Inside, a reader of the output that has seen enough, as `head` has, ends the work without a word; exit status 1."""
    try:
        yield
        if sys.stdout is not None:  # as it is where the program was started without an output
            sys.stdout.flush()
    except BrokenPipeError:
        if not nobody_reads():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at its end
        sys.exit(1)


def nobody_reads() -> bool:
    """Whether the output is a pipe whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # Windows has no poll, and not every output is a file
        return False


def no_bar() -> bool | None:
    """What tqdm is to take as `disable` for work that may last: a bar on terminals alone, and in the first process of several."""
    return None if os.environ.get("LOCAL_RANK", "0") == "0" else True
