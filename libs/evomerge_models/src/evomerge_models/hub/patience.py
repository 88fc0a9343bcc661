"""How long a hub that fails is tried again, and how long it may make us wait."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from evomerge_common.errors import Unavailable

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_WAIT = 60.0
"""Seconds; a hub that asks for more gets an error that says when to come back."""
_FARTHEST = 365 * 24 * 3600.0
"""Seconds; a hub that asks for more, perhaps in another unit, is told to ask for this."""
_FIRST_WAIT, _LAST_WAIT = 1.0, 8.0
_SLICE = 0.25
ENOUGH_BYTES = 1 << 20
"""What a try must bring to count as no failure."""


class Broken(Exception):
    """A request failed in a way that another try may mend.

    Attributes:
        after: seconds that the hub asks to wait; None: it does not say.

    """

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Patience:
    """The tries of one request.

    Args:
        what: the model, for errors.
        tries: failures in a row after which the hub counts as not available.
        tell: called with why there is a wait, before it.
        pause: called with seconds; raises what ends the wait early.

    """

    def __init__(self, what: str, tries: int, tell: Callable[[str], None], pause: Callable[[float], None]) -> None:
        self._what, self._tries, self._tell, self._pause = what, tries, tell, pause
        self._failures = 0
        self._brought = 0

    def brought(self, count: int) -> None:
        """Notes bytes that a try brought before it failed."""
        self._brought += count
        if self._brought >= ENOUGH_BYTES:
            self._failures = self._brought = 0

    def failed(self, problem: Broken) -> None:
        """Waits before the next try.

        Raises:
            Unavailable: that was the last try, or the hub asks for a longer wait than anybody sits through.

        """
        self._failures += 1
        if problem.after is not None and problem.after > LONGEST_WAIT:
            after = min(problem.after, _FARTHEST)
            when = datetime.now(UTC) + timedelta(seconds=after)
            raise Unavailable(
                f"{problem} for {self._what}, and the hub asks to come back in {after:.0f} s, at "
                f"{when:%Y-%m-%d %H:%M:%S} UTC; start it again then: what has come by now is kept"
            )
        if self._failures >= self._tries:
            raise Unavailable(
                f"{problem} for {self._what} ({self._failures} tries); check the network and HF_ENDPOINT, try again "
                "later, or give a local folder"
            )
        wait = min(_LAST_WAIT, _FIRST_WAIT * 2 ** (self._failures - 1)) * random.uniform(0.5, 1.0)
        asked = problem.after is not None
        wait = max(wait, problem.after or 0.0)
        self._tell(f"{problem}; {'the hub asks to wait' if asked else 'the next try comes in'} {math.ceil(wait)} s")
        self._pause(wait)


def pause(seconds: float, check: Callable[[], None] = lambda: None) -> None:
    """Sleeps, and calls `check` several times a second; it raises what ends the wait."""
    for _ in range(int(seconds / _SLICE)):
        check()
        time.sleep(_SLICE)
    time.sleep(seconds % _SLICE)
    check()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Reads the seconds that an answer asks to wait (Retry-After as a number or a date, or the hub's RateLimit).

    Args:
        headers: case does not matter.

    """
    from huggingface_hub.utils import parse_ratelimit_headers

    text = next((value for key, value in headers.items() if key.lower() == "retry-after"), "").strip()
    if text.isdecimal():
        return float(text)
    if text:
        try:
            when = parsedate_to_datetime(text)
        except ValueError:
            return None
        return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None
