"""Snapshots in memory, kept by a thread beside training, one at a time."""

import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from eosin.config import RunConfig
from eosin.errors import EosinError, UserError
from eosin.observability import RunLog
from eosin.training.checkpoints.neighbour import Receiver
from eosin.training.checkpoints.shm import Piece, ShmFolder
from eosin.training.checkpoints.state import TrainingState, flatten

Push = Callable[[Piece, Path], None]
_CGROUP = Path("/sys/fs/cgroup")


class Memory:
    """One process's snapshots of the run, in shared memory of its node and, with `push`, of a neighbour.

    Failing to keep one is reported once and never stops training: the checkpoints in the bucket remain.
    """

    def __init__(
        self,
        folder: ShmFolder,
        template: Piece,
        log: RunLog,
        push: Push | None = None,
        receiver: Receiver | None = None,
    ) -> None:
        """`template`: the piece this process keeps, of no step yet. `receiver`: takes a neighbour's."""
        self.folder = folder
        self._receiver = receiver
        self._template = template
        self._log = log
        self._push = push
        self._warned = False
        self._waiting: queue.Queue[TrainingState | None] = queue.Queue(maxsize=1)
        self._busy = threading.Event()
        self._thread = threading.Thread(target=self._work, name="eosin-memory", daemon=True)
        self._thread.start()

    @property
    def wants(self) -> bool:
        """Whether a snapshot offered now would be kept. A piece of several is always wanted, since all
        processes must keep the same steps; a whole state may skip while the one before is written."""
        return self._template.num_pieces > 1 or not self._busy.is_set()

    def offer(self, snapshot: TrainingState) -> None:
        """Keep `snapshot`; waits while an earlier one is still waiting to be written."""
        self._busy.set()
        self._waiting.put(snapshot)

    def flush(self) -> None:
        """Wait until all that was offered is kept, and with a neighbour too."""
        while self._busy.is_set():
            time.sleep(0.01)

    def close(self, *, forget: bool = False) -> None:
        """Write what is waiting and end; with `forget` (training has ended) delete all of it."""
        self._waiting.put(None)
        self._thread.join()
        if self._receiver is not None:
            self._receiver.close()
        if forget:
            self.folder.remove()

    def _work(self) -> None:
        while (snapshot := self._waiting.get()) is not None:
            try:
                self._keep(snapshot)
            except (EosinError, OSError) as error:
                self._warn(error)
            finally:
                if self._waiting.empty():
                    self._busy.clear()

    def _keep(self, snapshot: TrainingState) -> None:
        piece = self._template.model_copy(update={"step": snapshot.step, "loss": snapshot.loss})
        piece = self.folder.write(piece, flatten(snapshot.parts))
        self.folder.prune(piece.kept)
        if self._push is not None:
            self._push(piece, self.folder.file(piece))

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            message = error.message if isinstance(error, EosinError) else str(error)
            self._log.event("warning", message=f"{message}; until that passes only checkpoints are kept")


def room_problem(folder: ShmFolder, piece: Piece, piece_bytes: int) -> str:
    """Why the pieces of a node do not fit into its shared memory, with the arithmetic; empty where they do.

    `piece_bytes`: of one process. Pieces of several come with a neighbour's copy each.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) * 2 if piece.num_pieces > 1 else 1
    needed = piece_bytes * processes * (piece.kept + 1)
    room = min(folder.room_bytes(), _cgroup_room_bytes() + folder.own_bytes())
    if needed <= room:
        return ""
    mib = 2**20
    return (
        f"snapshots in memory need {needed / mib:.0f} MiB in {folder.path.parent} ({piece_bytes / mib:.0f}"
        f" MiB × {processes * (piece.kept + 1)} copies) and there are {room / mib:.0f} MiB"
    )


def is_possible(config: RunConfig, folder: ShmFolder, piece: Piece, piece_bytes: int, log: RunLog) -> bool:
    """Whether to keep snapshots in memory. Raises `UserError` where they are demanded and do not fit."""
    problem = room_problem(folder, piece, piece_bytes)
    if not problem:
        return True
    if config.train.elastic.memory_snapshots == "on":
        raise UserError(problem, hint="raise cluster.shm_size and the pool's memory, or set "
                        "train.elastic.memory_snapshots=auto")  # fmt: skip
    log.event("warning", message=f"{problem}: a lost node costs what was done since the last checkpoint")
    return False


def _cgroup_room_bytes(root: Path = _CGROUP) -> float:
    """What the container may still take beside what is in use and cannot be dropped: shared memory counts
    towards its limit, cached files give way."""
    try:
        limit = (root / "memory.max").read_text().strip()
        lines = (line.split() for line in (root / "memory.stat").read_text().splitlines())
        used = sum(int(value) for name, value in lines if name in ("anon", "shmem"))
        return float("inf") if limit == "max" else int(limit) - used
    except (OSError, ValueError):
        return float("inf")
