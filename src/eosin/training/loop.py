"""The training loop: step, report, snapshot, export, checkpoint, until the last step."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from eosin.config import RunConfig
from eosin.errors import PermanentError
from eosin.layout import model_name
from eosin.models.device import to_device
from eosin.models.network import build_network
from eosin.observability import RunLog
from eosin.patches.augment import MultiCrop
from eosin.patches.request import PatchBatch, PatchRequest, PatchSource
from eosin.storage import Store
from eosin.training.checkpoints.checkpoint import take_newest
from eosin.training.checkpoints.memory import Memory
from eosin.training.checkpoints.publisher import Publisher
from eosin.training.checkpoints.state import Parts, copy_state, hand_out, set_step, take_share, teacher_copy
from eosin.training.distillation import first_frozen, require_same_teacher
from eosin.training.elastic.reports import Heartbeat, SnapshotAnswers
from eosin.training.engine.load_balance import LoadBalancer
from eosin.training.engine.microbatch import Microbatch, MicrobatchMaker, batch_indices
from eosin.training.engine.step import Launched, Learner, NonFinite, StepResult
from eosin.training.progress import Progress
from eosin.training.warm_start import first_networks
from eosin.training.world import World
from eosin.words import first_of

_SHOWN_PATCHES = 4
SlideName = Callable[[int], str]


@dataclass(frozen=True)
class ReachedStep:
    """How far training came: steps taken and the last loss, the same on every rank."""

    step: int
    loss: float | None


@dataclass(frozen=True)
class _Ready:
    """A step whose crops are there, or asked for."""

    step: int
    batch: PatchBatch
    microbatches: dict[int, Microbatch]
    waited_s: float
    """How long there was nothing to do but wait for its patches."""


class Trainer:
    """One rank's part of a run."""

    def __init__(self, config: RunConfig, world: World, log: RunLog) -> None:
        self.config = config
        self.world = world
        self.log = log
        self.memory: Memory | None = None
        """Where this rank's snapshots are kept beside the checkpoints."""
        student, teacher = first_networks(config, world, log)
        frozen = first_frozen(config, [student, *filter(None, [teacher])], world, log)
        self._distilled = bytes(frozen.digest.tolist()) if frozen is not None else b""
        self.learner = Learner(config, student, world, teacher, frozen)
        self.balancer = LoadBalancer(
            config.train.elastic, world, log, in_step=self.learner.strategy.is_sharded
        )
        self.learner.strategy.stopwatch = self.balancer.stopwatch
        self._heartbeat = Heartbeat()
        self._answers = SnapshotAnswers()
        backbone = self.learner.student.backbone
        self._maker = MicrobatchMaker(
            config,
            patch_size=backbone.patch_size,
            depth=backbone.depth,
            device=world.device,
        )
        self._planned_models = frozenset(planned_models(config))
        self._crops = MultiCrop(
            config.augment, seed=config.seed, patch_px=config.patches.patch_px, device=world.device,
            gram=config.train.gram,
        )  # fmt: skip

    def resume(self, store: Store) -> ReachedStep:
        """Take the newest whole checkpoint, if there is one, on every rank."""
        reached = ReachedStep(*take_newest(self.learner, store, self.config.digests(), self.log))
        self._require_same_teacher()
        return reached

    def take_over(
        self, step: int, loss: float | None, holders: Sequence[int], held: Mapping[int, Parts]
    ) -> ReachedStep:
        """Take the state after `step` steps on every rank: piece i of it is with rank `holders[i]`, in its
        `held[i]`. Raises `PermanentError` where a piece does not fit the network."""
        reached = ReachedStep(hand_out(self.learner, step, held, holders), loss)
        self._require_same_teacher()
        return reached

    def _require_same_teacher(self) -> None:
        if self.config.train.distill is not None:
            require_same_teacher(self.learner.frozen, self._distilled, self.config.train.distill.teacher)

    def run(
        self,
        source: PatchSource,
        start: ReachedStep,
        publisher: Publisher | None,
        slide_name: SlideName,
        *,
        until: int | None = None,
    ) -> ReachedStep:
        """Train from `start` to step `until` (None: the last one)."""
        set_step(self.learner, start.step)
        end = self.config.train.num_steps if until is None else until
        outcome = start
        age_s = publisher.checkpoint_age_s if publisher is not None else None
        with closing(
            Progress(self.config, self.world, self.log, start.step, self.learner, age_s)
        ) as progress:
            for interval in self.balancer.intervals(start.step, end):
                self.balancer.balance()
                for ready, result in self._steps(source, interval, slide_name):
                    progress.waited(ready.waited_s)
                    outcome = ReachedStep(ready.step + 1, result.loss)
                    progress.step(outcome.step, result)
                    self.balancer.stepped(ready.waited_s)
                    self._save(publisher, outcome, result)
                    self._heartbeat.beat()
        self._heartbeat.stop()
        return outcome

    def _steps(
        self, source: PatchSource, interval: range, slide_name: SlideName
    ) -> Generator[tuple[_Ready, StepResult]]:
        """Take the steps of `interval`, in which microbatches stay where they are.

        A step's crops are made while the device still works at the step before, where it works by itself.
        """
        indices = batch_indices(self.world.own_microbatches, self.config.train.microbatch_size)
        batches = source.batches((step, indices) for step in interval)
        following: _Ready | None = None
        for step in interval:
            ready = following or self._ready(step, batches)
            wants_snapshot = self._answers.is_asked()
            launched = self.learner.launch(step, ready.microbatches, wants_snapshot=wants_snapshot)
            following = None
            if step + 1 < interval.stop and not launched.numbers.arrived():
                following = self._ready(step + 1, batches, launched)
            try:
                result = self.learner.settle(launched)
            except NonFinite as error:
                raise self._explain(error, ready.batch, slide_name) from error
            yield ready, result

    def _ready(self, step: int, batches: Iterator[PatchBatch], launched: Launched | None = None) -> _Ready:
        """The patches of `step` and their crops; `launched`: what the device is busy with meanwhile."""
        waiting_s = time.monotonic()
        batch = next(batches)
        waited_s = time.monotonic() - waiting_s
        if launched is not None and not launched.numbers.arrived():
            waited_s = 0.0
        with self.balancer.working():
            return _Ready(step, batch, self._microbatches(step, batch), waited_s)

    def _microbatches(self, step: int, batch: PatchBatch) -> dict[int, Microbatch]:
        """Crops microbatch by microbatch, so that their bits do not depend on who owns which."""
        size = self.config.train.microbatch_size
        microbatches = {}
        for place, microbatch in enumerate(self.world.own_microbatches):
            rows = slice(place * size, (place + 1) * size)
            pixels = to_device(torch.as_tensor(batch.pixels[rows]), self.world.device)
            crops = self._crops(pixels, step, [request.index for request in batch.requests[rows]])
            microbatches[microbatch] = self._maker.make(
                step, microbatch, crops.global_crops, crops.local_crops, crops.clean_crops
            )
        return microbatches

    def _save(self, publisher: Publisher | None, outcome: ReachedStep, result: StepResult) -> None:
        """Hand out what is due after this step: a teacher, and a copy of the state to whom it concerns."""
        train, step = self.config.train, outcome.step
        last = step == train.num_steps
        if publisher is not None:
            publisher.raise_failure()
            if model_name(step) in self._planned_models:
                self._export(publisher, step)
        planned = result.wants_snapshot and not last
        in_memory = planned and self._is_kept_in_memory()
        # A planned change of the world must lose no step: what no memory keeps goes to the bucket.
        checkpoint = last or step % train.checkpoint_every_steps == 0 or (planned and not in_memory)
        if checkpoint and publisher is not None:
            publisher.checkpoint(take_share(self.learner, step, result.loss))
        if checkpoint or planned or step % train.snapshot_every_steps == 0:
            self._copy_state(publisher, outcome, to_bucket=checkpoint, always=planned)
        if planned:
            self._answer(publisher if checkpoint else None)

    def _copy_state(
        self, publisher: Publisher | None, outcome: ReachedStep, *, to_bucket: bool, always: bool
    ) -> None:
        """Copy the state to memory and for `rescue`, unless nobody wants it; `always`: also where an earlier
        copy is still being written."""
        # The end of training is for the bucket alone.
        memory = self.memory if outcome.step < self.config.train.num_steps else None
        if memory is not None and not (always or memory.wants):
            memory = None
        # For when this rank is told to go: of replicas one copy is enough.
        needed = self.learner.strategy.is_sharded or self.world.rank == 0
        rescuer = publisher if needed and not to_bucket else None
        if rescuer is None and memory is None:
            return
        state = copy_state(self.learner, outcome.step, outcome.loss)
        if memory is not None:
            memory.offer(state)
        if rescuer is not None:
            rescuer.offer(state)

    def _is_kept_in_memory(self) -> bool:
        """Whether the memory of the nodes keeps the whole state. A collective."""
        told = self.world.gather_json(self.memory is not None)
        return all(told) if self.learner.strategy.is_sharded else any(told)

    def _answer(self, publisher: Publisher | None) -> None:
        """Tell the agents that the snapshot they asked for is kept, with every rank. A collective."""
        if self.memory is not None:
            self.memory.flush()
        if publisher is not None:
            publisher.wait()
        self.world.gather_json("kept")
        self._answers.answer()

    def _export(self, publisher: Publisher, step: int) -> None:
        """Gather the teacher in the host memory of rank 0, which publishes it."""
        backbone = build_network(self.config, meta=True).backbone
        if self.world.rank == 0:
            backbone = backbone.to_empty(device="cpu")
        teacher = teacher_copy(self.learner, backbone)
        if teacher is not None:
            publisher.export(step, teacher)

    def _explain(self, error: NonFinite, batch: PatchBatch, slide_name: SlideName) -> PermanentError:
        size = self.config.train.microbatch_size
        own = [microbatch for microbatch in error.microbatches if microbatch in self.world.own_microbatches]
        first = self.world.own_microbatches.start
        requests = [
            request
            for microbatch in own
            for request in batch.requests[(microbatch - first) * size : (microbatch - first + 1) * size]
        ]
        where = f" in microbatches {list(error.microbatches)}" if error.microbatches else ""
        return PermanentError(
            f"step {error.step}: {error.what} is not finite{where}; nothing was updated"
            + _name_patches(requests, slide_name),
            hint="what is published already is sound; lower train.optimizer.lr or look at these patches",
        )


def planned_models(config: RunConfig) -> tuple[str, ...]:
    """Names of the teachers a whole run exports, by step."""
    train = config.train
    ends = [each.until_step for each in train.planned_phases() if each.until_step == each.num_steps]
    steps = {*range(train.export_every_steps, train.num_steps, train.export_every_steps), *ends}
    return tuple(model_name(step) for step in sorted(steps))


def _name_patches(requests: list[PatchRequest], slide_name: SlideName) -> str:
    if not requests:
        return ""
    named = [f"{slide_name(r.slide)} at ({r.x_px}, {r.y_px}), {r.mpp:g} mpp" for r in requests]
    return f"; patches: {first_of(named, _SHOWN_PATCHES, '; ')}"
