"""Waiting until an object that was told to go is gone."""

from __future__ import annotations

from collections.abc import Callable

from eosin.cluster.api import Manifest
from eosin.errors import TransientError

_POLL_S = 2.0


def wait_until_gone(
    what: str,
    existing: Manifest,
    read: Callable[[], Manifest | None],
    *,
    timeout_s: float,
    hint: str,
    sleep: Callable[[float], None],
) -> None:
    """Return once `read` finds nothing, or another object by the name of `existing`.

    `read` gives what bears that name now. Raises `TransientError` about `what` after `timeout_s`.
    """
    uid = existing["metadata"].get("uid", "")
    for _ in range(int(timeout_s / _POLL_S)):
        left = read()
        if left is None or left["metadata"].get("uid", "") != uid:
            return
        sleep(_POLL_S)
    raise TransientError(f"{what} is still being deleted after {timeout_s:g} s", hint=hint)
