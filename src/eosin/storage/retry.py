"""Bounded retries with jittered exponential backoff."""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from eosin.errors import TransientError, UserError

T = TypeVar("T")

_log = logging.getLogger(__name__)
_SILENCE_S = 3.0
_TELL_EVERY_S = 30.0
_told_s = float("-inf")


@dataclass(frozen=True)
class RetryPolicy:
    """At most `max_attempts` tries within `deadline_s`; before try n+1 a wait uniform in [0, base·2ⁿ].

    The wait is never longer than `cap_s` ("full jitter", so that many readers do not come back at once).
    """

    max_attempts: int = 8
    base_s: float = 0.2
    cap_s: float = 10.0
    deadline_s: float = 120.0

    @classmethod
    def from_env(cls) -> "RetryPolicy":
        """Defaults, with `EOSIN_RETRY_MAX_ATTEMPTS`, `_BASE_S`, `_CAP_S` and `_DEADLINE_S` on top."""
        return cls(
            max_attempts=max(1, int(_number("EOSIN_RETRY_MAX_ATTEMPTS", cls.max_attempts))),
            base_s=_number("EOSIN_RETRY_BASE_S", cls.base_s),
            cap_s=_number("EOSIN_RETRY_CAP_S", cls.cap_s),
            deadline_s=_number("EOSIN_RETRY_DEADLINE_S", cls.deadline_s),
        )

    def waits_s(self, now_s: Callable[[], float] = time.monotonic) -> Iterator[float]:
        """Seconds to wait before the second, third … try; ends where no further try is allowed."""
        end_s = now_s() + self.deadline_s
        for attempt in range(self.max_attempts - 1):
            wait_s = random.uniform(0, min(self.cap_s, self.base_s * 2**attempt))
            if now_s() + wait_s > end_s:
                return
            yield wait_s


def call(operation: Callable[[], T], policy: RetryPolicy) -> T:
    """`operation()`, tried again while it raises `TransientError`; then that error with the count."""
    waits_s, begun_s = policy.waits_s(), time.monotonic()
    attempts = 0
    while True:
        attempts += 1
        try:
            return operation()
        except TransientError as error:
            wait_s = next(waits_s, None)
            if wait_s is None:
                raise _spent(error, attempts) from error
            _tell(error, begun_s)
            time.sleep(wait_s)


def _tell(error: TransientError, begun_s: float) -> None:
    """Say why nothing moves, once in a while for all threads together."""
    global _told_s
    now_s = time.monotonic()
    if now_s - begun_s >= _SILENCE_S and now_s - _told_s >= _TELL_EVERY_S:
        _told_s = now_s
        _log.warning("trying again: %s", error.message)


def _spent(error: TransientError, attempts: int) -> TransientError:
    tries = "1 try" if attempts == 1 else f"{attempts} tries"
    return TransientError(f"{error.message} (after {tries})", hint=error.hint)


def _number(name: str, default: float) -> float:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{name}={text} is not a number of at least 0", hint=f"unset {name} or mend it")
    return value
