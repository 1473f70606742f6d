"""A least-recently-used cache bounded by bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

K = TypeVar("K", bound=Hashable)
Array = npt.NDArray[np.generic]
A = TypeVar("A", bound=Array)


class ArrayCache(Generic[K, A]):
    """Arrays by key, at most `max_bytes` of them. Thread-safe. What it returns must not be written to."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._arrays: OrderedDict[K, A] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> A | None:
        """The array of `key`, which counts as used now; None where it is not held."""
        with self._lock:
            found = self._arrays.get(key)
            if found is not None:
                self._arrays.move_to_end(key)
            return found

    def put(self, key: K, array: A) -> None:
        """Keep `array`, dropping the longest unused; one larger than the whole cache is not kept."""
        with self._lock:
            if key in self._arrays or array.nbytes > self.max_bytes:
                return
            self._arrays[key] = array
            self.num_bytes += array.nbytes
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._arrays.popitem(last=False)[1].nbytes
