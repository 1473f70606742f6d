"""The HSV filter of decoded patches: enough pixels of stained tissue, by hue, saturation and value."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import numpy.typing as npt

from eosin.config.patches import HsvFilterConfig
from eosin.observability import RunLog

# Looked at, between two lines of the log: 1024, 2048, 4096…
_FIRST_COUNT = 1024


class HsvFilter:
    """Judges patches by `config`, and counts what it judged. Thread-safe; the verdict is a pure function."""

    def __init__(self, config: HsvFilterConfig, log: RunLog) -> None:
        self.config = config
        self.num_seen = 0
        self.num_rejected = 0
        self.num_kept_anyway = 0
        """Samples none of whose substitutes passed either: the best of them was taken."""
        self._log = log
        self._lock = threading.Lock()

    def passes(self, share: float) -> bool:
        """Whether a patch with this share of pixels in range serves; counted."""
        passed = share >= self.config.min_share
        with self._lock:
            self.num_seen += 1
            self.num_rejected += not passed
            due = self.num_seen >= _FIRST_COUNT and self.num_seen & (self.num_seen - 1) == 0
        if due:
            self.report()
        return passed

    def keep_anyway(self) -> None:
        """Count a sample none of whose substitutes passed."""
        with self._lock:
            self.num_kept_anyway += 1

    def report(self) -> None:
        """Log the counts so far; nothing where no patch was judged."""
        if self.num_seen:
            self._log.event("hsv-filter", seen=self.num_seen, rejected=self.num_rejected,
                            kept_anyway=self.num_kept_anyway)  # fmt: skip


def share_in_range(pixels: npt.NDArray[np.uint8], config: HsvFilterConfig) -> float:
    """Share of the pixels [h, w, 3] RGB whose hue, saturation and value all lie in range, in [0, 1]."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    ranges = (config.hue, config.saturation, config.value)
    inside = cv2.inRange(hsv, np.array([low for low, _ in ranges]), np.array([high for _, high in ranges]))
    return float(cv2.countNonZero(inside) / inside.size)
