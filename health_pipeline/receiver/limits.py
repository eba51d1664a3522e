"""What one provider, and all callers together, may take of the receiver."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: So many seconds' worth of calls may come at once: providers send a morning's nights in a burst.
_BURST_SECONDS = 10.0


class TokenBucket:
    """Calls a second, with a burst. For one thread."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        if per_second <= 0:
            raise ValueError(f"a rate is above 0, not {per_second}")
        self._rate = per_second
        self._most = max(1.0, per_second * _BURST_SECONDS)
        self._tokens = self._most
        self._clock = clock
        self._filled_at = clock()

    def take(self) -> float:
        """Take one and return 0, or take none and return the seconds until there is one."""
        now = self._clock()
        self._tokens = min(self._most, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


class Bodies:
    """The bytes of bodies that are held at the same time. For one thread.

    Each body has `free` bytes of its own, so that large ones do not keep small ones out; what goes beyond
    comes out of `shared`.
    """

    def __init__(self, free: int, shared: int) -> None:
        self._free = free
        self._left = shared

    @contextmanager
    def body(self) -> Iterator[Callable[[int], bool]]:
        """A body's account: called with its size so far, it tells whether there is room for that."""
        taken = 0

        def holds(size: int) -> bool:
            nonlocal taken
            more = max(0, size - self._free) - taken
            if more > self._left:
                return False
            self._left -= more
            taken += more
            return True

        try:
            yield holds
        finally:
            self._left += taken
