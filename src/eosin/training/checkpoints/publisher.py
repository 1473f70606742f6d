"""Publishing from a thread beside training, in order; and of teachers that were deleted since."""

import queue
import threading
import time
from collections.abc import Callable

from eosin.config import RunConfig
from eosin.errors import EosinError, PermanentError, TransientError
from eosin.layout import RunLayout, model_name, step_of
from eosin.models.backbone import Backbone
from eosin.models.export import export_teacher
from eosin.models.network import build_network
from eosin.observability import RunLog
from eosin.records import TrainingDone
from eosin.runs import has_teacher
from eosin.storage import NotFound, Store, join_uri
from eosin.training.checkpoints.checkpoint import ALONE, delete_old, load_part, save_checkpoint, save_share
from eosin.training.checkpoints.lease import Lease
from eosin.training.checkpoints.state import TrainingState

# One job in flight and one waiting: more would only hold more copies of the state.
_MAX_WAITING = 1
_RESCUE_WAIT_S = 5.0


class Publisher:
    """Publishing of one rank. Rank 0 publishes teachers and makes checkpoints whole; the others only write
    their shares. Jobs run one after another, so that a teacher is durable before any checkpoint of the same
    or a later step is: a restart never loses one. With a `lease`, which rank 0 has, nothing is made
    whole once another world has taken the run over.

    The first failure stops all later jobs and is raised by the next call from the training thread.
    """

    def __init__(
        self,
        store: Store,
        config: RunConfig,
        snapshot_id: str,
        log: RunLog,
        lease: Lease | None = None,
        world: str = ALONE,
    ) -> None:
        """`world`: the token of the processes that publish together."""
        self._store = store
        self._lease = lease
        self._world = world
        self._config = config
        self._digest = config.digest()
        self._snapshot_id = snapshot_id
        self._log = log
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(maxsize=_MAX_WAITING)
        self._error: BaseException | None = None
        self._newest: TrainingState | None = None
        self._durable_step = 0
        self._durable_s = time.monotonic()
        self._saving = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="eosin-publisher", daemon=True)
        self._thread.start()

    def offer(self, snapshot: TrainingState) -> None:
        """Remember the newest copy of the state, for `rescue`."""
        self._newest = snapshot

    def checkpoint_age_s(self) -> float:
        """Seconds since this process last made a checkpoint whole; before its first, since it began."""
        return time.monotonic() - self._durable_s

    def checkpoint(self, snapshot: TrainingState) -> None:
        """Publish this rank's share of a checkpoint; waits only while two publications are under way."""
        self._submit(lambda: self._save(snapshot))

    def export(self, step: int, backbone: Backbone) -> None:
        """Publish the teacher of `step`. `backbone` must be a copy that training does not touch."""
        self._submit(lambda: self._export(step, backbone))

    def wait(self) -> None:
        """Wait until all that was handed over is published; raises what went wrong."""
        self._jobs.join()
        self.raise_failure()

    def close(self) -> None:
        """Wait until everything is published; raises what went wrong."""
        self._jobs.put(None)
        self._thread.join()
        self.raise_failure()

    def finish(self, done: TrainingDone) -> None:
        """Publish the record that training has ended, after `close`."""
        self._check_lease()
        self._store.put(RunLayout.TRAINING_DONE, done.to_json())

    def raise_failure(self) -> None:
        """Raise what a publication failed of, if one did; costs nothing."""
        if self._error is not None:
            raise self._error

    def rescue(self, timeout_s: float) -> int:
        """Make the newest copy of the state durable within `timeout_s`; returns the newest durable step.

        For the moment a worker is told to go: called from any thread, with training stopped anywhere.
        """
        deadline_s = time.monotonic() + timeout_s
        while self._jobs.unfinished_tasks and time.monotonic() < deadline_s and self._error is None:
            time.sleep(0.02)
        newest = self._newest
        # With an export still waiting, a newer checkpoint would lose it for good.
        in_order = self._error is None and not self._jobs.unfinished_tasks
        if newest is not None and newest.step > self._durable_step and in_order:
            self._rescue(newest)
        return self._durable_step

    def _rescue(self, snapshot: TrainingState) -> None:
        """Others that hold a piece are told to go at the same moment; who died will not write its own."""
        try:
            self._save(snapshot, timeout_s=_RESCUE_WAIT_S)
        except TransientError as error:
            self._log.event(
                "warning", message=f"the copy of step {snapshot.step} is not whole: {error.message}"
            )

    def _submit(self, run: Callable[[], None]) -> None:
        self.raise_failure()
        self._jobs.put(run)

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:
                    job()
            except BaseException as error:
                self._error = error
            finally:
                self._jobs.task_done()

    def _save(self, snapshot: TrainingState, timeout_s: float | None = None) -> None:
        with self._saving:
            if snapshot.step <= self._durable_step:
                return
            if snapshot.index:
                save_share(self._store, snapshot, world=self._world)
                self._durable_step = snapshot.step
                return
            started_s = time.monotonic()
            self._check_lease()
            marker = save_checkpoint(
                self._store,
                snapshot,
                self._digest,
                world=self._world,
                before_marker=self._check_lease,
                timeout_s=timeout_s or self._config.train.elastic.process_group_timeout_s,
            )
            self._durable_step, self._durable_s = snapshot.step, time.monotonic()
            deleted = delete_old(self._store, self._config.train.keep_checkpoints)
        seconds = time.monotonic() - started_s
        self._log.event(
            "checkpoint", step=snapshot.step, mib=marker.size_bytes / 2**20, seconds=seconds,
            deleted_steps=deleted,
        )  # fmt: skip

    def _export(self, step: int, backbone: Backbone) -> None:
        self._check_lease()
        card = export_teacher(
            self._store,
            model_name(step),
            backbone,
            config=self._config,
            step=step,
            snapshot_id=self._snapshot_id,
        )
        self._log.event("export", step=step, model=card.name)


def export_missing(store: Store, config: RunConfig, done: TrainingDone, log: RunLog) -> list[str]:
    """Export again each teacher of a run that has ended and is not whole any more; their names.

    A teacher is made from the checkpoint of its step, with the same bits. One that has none is named in a
    warning, for others can be judged without it; without the last one there is nothing to show for the
    training: `PermanentError`.
    """
    made, lost = [], []
    for name in done.models:
        if has_teacher(store, name):
            continue
        try:
            _export(store, config, done, name)
        except (NotFound, PermanentError) as error:
            lost.append(name)
            log.event("warning", message=f"teacher {name} is missing and cannot be made again: {_why(error)}")
        else:
            made.append(name)
            log.event("export", step=step_of(name), model=name, reason="it was missing")
    if model_name(done.num_steps) in lost:
        record = join_uri(store.uri, RunLayout.TRAINING_DONE)
        raise PermanentError(
            f"teacher {model_name(done.num_steps)}, the last of {store.uri}, is missing and so is its"
            " checkpoint",
            hint=f"delete {record} and run it again: it trains on from the newest checkpoint that is left",
        )
    return made


def _export(store: Store, config: RunConfig, done: TrainingDone, name: str) -> None:
    """Raises `NotFound` or `PermanentError` where there is no whole checkpoint of that step."""
    step = step_of(name) or 0
    tensors = load_part(store, step, "teacher", config.digests())
    network = build_network(config)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise PermanentError(f"the checkpoint of step {step} does not fit the network") from error
    # A card without its weights would be taken for a whole export.
    store.delete([RunLayout.teacher_card(name)])
    export_teacher(store, name, network.backbone, config=config, step=step, snapshot_id=done.snapshot_id)


def _why(error: NotFound | EosinError) -> str:
    return f"{error.args[0]} is missing too" if isinstance(error, NotFound) else str(error)
