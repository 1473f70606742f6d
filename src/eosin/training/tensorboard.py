"""TensorBoard event files, written locally and published in parts of bounded size."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eosin.errors import MissingDependency
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.process import Closing

_PUBLISH_EVERY_S = 60.0
_PART_BYTES = 4 * 2**20
_SKIPPED = {"step", "num_steps", "eta_s"}


class TensorBoardWriter(Closing):
    """Scalars of the step event as TensorBoard event files under the run's `tensorboard/`.

    The file being written is published again every minute from a thread, and a new one is begun at
    4 MiB: a kill loses a minute of curves, and neither memory nor the local disk grows with the run.
    TensorBoard reads the files of all restarts as one run.
    """

    def __init__(self, log: RunLog, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependency("tensorboard", "tensorboard") from error
        self._log = log
        self._make_writer: Any = SummaryWriter
        self._folder = tempfile.TemporaryDirectory(prefix="eosin-tensorboard-")
        self._published_s = time.monotonic()
        self._publishing: threading.Thread | None = None
        self._open(purge_from=start + 1)

    def show(self, step: int, fields: Mapping[str, Any]) -> None:
        """Add every number of `fields` at `step`."""
        for name, value in fields.items():
            if name not in _SKIPPED and isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)
        if time.monotonic() - self._published_s >= _PUBLISH_EVERY_S:
            self.publish()
        if self._path().stat().st_size >= _PART_BYTES:
            self._begin_part()

    def publish(self) -> None:
        """Publish the file as it is, from a thread; skipped while the last one is still under way."""
        self._published_s = time.monotonic()
        if self._publishing is not None and self._publishing.is_alive():
            return
        self._writer.flush()
        self._publishing = threading.Thread(target=self._put, args=(self._path(),), daemon=True)
        self._publishing.start()

    def close(self) -> None:
        """Publish the rest and wait for it."""
        self._writer.close()
        self._wait()
        self._put(self._path())
        self._folder.cleanup()

    def _begin_part(self) -> None:
        self._writer.close()
        self._wait()
        self._put(self._path())
        self._path().unlink()
        self._open(purge_from=None)

    def _open(self, purge_from: int | None) -> None:
        self._writer = self._make_writer(self._folder.name, purge_step=purge_from)
        self._writer.flush()

    def _path(self) -> Path:
        return max(Path(self._folder.name).iterdir())

    def _put(self, path: Path) -> None:
        self._log.attach(RunLayout.tensorboard(path.name), path.read_bytes())

    def _wait(self) -> None:
        if self._publishing is not None:
            self._publishing.join()
