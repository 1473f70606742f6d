"""Evaluation step: one model judged on one task, published as a metric record."""

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

from eosin.config import RunConfig
from eosin.config.presets import PRESETS
from eosin.errors import EosinError, PermanentError, TransientError, UserError, describe
from eosin.evaluation.datasets.dataset import Dataset, tcga_patient
from eosin.evaluation.judged_model import LAST, JudgedModel, find_model, missing_model
from eosin.evaluation.pictures import Example
from eosin.evaluation.task import Task, TaskContext, TaskProtocol
from eosin.evaluation.transform import TRANSFORM, TRANSFORM_VERSION
from eosin.index.snapshot import open_snapshot
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.patches.sampling.eligible import find_eligible
from eosin.records import MetricRecord, load_record
from eosin.records.details import Details, ExamplePicture
from eosin.runs import load_pin, load_run
from eosin.storage import Store, open_store
from eosin.words import first_of, nearest_of

_MAX_NAMED = 10
_EVA_IMG_PX = 224


def leaked_patients(run_uri: str, dataset: Dataset) -> tuple[str, ...]:
    """Patients of `dataset` whose slides the run at `run_uri` trains on, by name, sorted.

    A TCGA file name says whose it is where no patient is given. Empty where the dataset or the index
    names no patients, or there is no such run: then nothing can be said.
    """
    patients = {sample.patient or tcga_patient(sample.source) for sample in dataset.samples} - {""}
    if not patients:
        return ()
    try:
        config = load_run(run_uri)
    except UserError:  # a teacher that was copied away from its run
        return ()
    try:
        pin = load_pin(run_uri)
        snapshot = open_snapshot(pin.index_uri, pin.snapshot_id)
        try:
            trained = find_eligible(snapshot, config.patches, "train").rows
        except UserError:  # nothing could be held out, so training takes every slide
            trained = find_eligible(snapshot, config.patches, "all").rows
    except UserError:  # no index, or no slide in it that serves: nothing was trained on
        return ()
    rows = (snapshot.rows[int(number)] for number in trained)
    return tuple(sorted(patients & {row.patient or tcga_patient(row.slide) for row in rows}))


def leakage_note(patients: tuple[str, ...]) -> str:
    """What the record and the report say of it."""
    return (
        f"patients of this dataset among the pretraining slides, so its figures may flatter: "
        f"{len(patients)}, {first_of(patients, _MAX_NAMED)}"
    )


_NOT_PROTOCOL = {"name", "dataset", "slides", "metadata", "overrides", "allow_subset", "max_tokens_gib"}


def open_by_task(task: Task, run_uri: str) -> Dataset:
    """The dataset of `task`, opened anew."""
    return task.open(run_uri)


def evaluate(
    run_uri: str,
    model: str,
    task: str,
    *,
    log: RunLog,
    judged: JudgedModel | None = None,
    open_dataset: Callable[[Task, str], Dataset] = open_by_task,
) -> MetricRecord:
    """Judge `model` on the task called `task` and publish the record; nothing is done twice.

    Where an `ok` record of the same model, data and protocol is there already, it is returned. What
    goes wrong with the data or the model becomes a record with status `failed` and the reason, which is
    returned too, so that the other tasks go on; `TransientError` is recorded and raised, to be tried
    again. `judged` is `model` where it has been found already, `open_dataset` opens the dataset of a task.
    Raises `UserError` for a model or task the run does not have.
    """
    store = open_store(run_uri)
    config = load_run(run_uri, store=store)
    wanted = _find_task(run_uri, config, task)
    judged = judged or find_judged_model(run_uri, config, model, store)
    # A task that embeds several times reads the weights once.
    judged = replace(judged, load=cache(judged.load)).reading(wanted.read_out)
    started_s = time.monotonic()
    evaluation = _Evaluation(wanted, TaskContext(run_uri, config, judged, store, log), open_dataset)
    try:
        there = evaluation.existing()
        if there is not None:
            log.event("unchanged", model=model, task=task, detail="an ok record of the same inputs is there")
            return there
        record = evaluation.judge()
    except Exception as error:
        record = _publish(store, judged, evaluation.failure(error), started_s)
        log.event("evaluation-failed", model=model, task=task, reason=record.reason)
        if isinstance(error, TransientError):
            raise
        return record
    record = _publish(store, judged, record, started_s)
    figures = {name: value.mean for name, value in record.metrics.items()}
    log.event("evaluated", model=model, task=task, seconds=round(record.wall_s, 2), **figures)
    return record


def preset_of(task: Task) -> str:
    """The preset that `task` is, but for its name and where data lie; empty where it is none or changed."""
    own = task.model_dump(mode="json", exclude=_NOT_PROTOCOL)
    for name, preset in PRESETS.items():
        if preset["kind"] != task.kind or preset["layout"] is None:
            continue
        usual = type(task).model_validate({"name": task.name, "dataset": "-", **preset})
        if usual.model_dump(mode="json", exclude=_NOT_PROTOCOL) == own:
            return name
    return ""


def find_judged_model(run_uri: str, config: RunConfig, name: str, store: Store) -> JudgedModel:
    """A baseline that the configuration names and nobody can find fails when it is judged, as a record."""
    try:
        return find_model(run_uri, config, name, store)
    except UserError as error:
        if name not in config.evaluate.baselines:
            raise
        return missing_model(name, error)


def _find_task(run_uri: str, config: RunConfig, name: str) -> Task:
    tasks = {task.name: task for task in config.evaluate.tasks}
    if name in tasks:
        task = tasks[name]
        assert isinstance(task, Task)
        return task
    raise UserError(f"run {run_uri} has no task {name}", hint=nearest_of(name, tasks))


def _publish(store: Store, model: JudgedModel, record: MetricRecord, started_s: float) -> MetricRecord:
    record = record.model_copy(update={"wall_s": time.monotonic() - started_s})
    store.put(RunLayout.metric(model.key, record.task), record.to_json())
    return record


@dataclass
class _Evaluation:
    task: Task
    context: TaskContext
    open_dataset: Callable[[Task, str], Dataset]
    dataset: Dataset | None = None
    inputs_digest: str = ""

    @property
    def protocol(self) -> TaskProtocol:
        """The task's own; by another read-out than usual it is nobody's published one."""
        protocol, read_out = self.task.protocol(), self.task.read_out
        if read_out == LAST:
            return protocol
        return replace(
            protocol, name=protocol.name.removesuffix("-eva"),
            changes=(*protocol.changes, f"read_out {read_out} (usual: {LAST})"),
            hyperparameters={**protocol.hyperparameters, "read_out": read_out},
        )  # fmt: skip

    def existing(self) -> MetricRecord | None:
        """The `ok` record of these very inputs, where it is there. Opens the dataset, not the model."""
        context = self.context
        self.dataset = self.open_dataset(self.task, context.run_uri)
        self.inputs_digest = self._inputs_digest(self.dataset)
        key = RunLayout.metric(context.model.key, self.task.name)
        try:
            record = load_record(MetricRecord, context.store, key)
        except PermanentError:
            return None
        if record is None or record.status != "ok":
            return None
        # A record of before weights were named in it cannot promote a teacher.
        told, wanted = record.inputs_digest, record.weights_sha256
        same = (told, wanted) == (self.inputs_digest, context.model.weights_sha256)
        return record if same else None

    def judge(self) -> MetricRecord:
        """Run the task on the dataset that `existing` opened."""
        assert self.dataset is not None
        result = self.task.run(self.dataset, self.context)
        shown = self._publish_examples((*result.examples, *self.task.examples(self.dataset, self.context)))
        details = self._completed(result.details, self.dataset, shown)
        return self._record(
            status="ok", metrics=result.metrics, num_patches=result.num_items, details=details
        )

    def _publish_examples(self, examples: Iterable[Example]) -> tuple[ExamplePicture, ...]:
        """Pictures, published before the record names them."""
        shown = []
        for each in examples:
            key = RunLayout.example(self.context.model.key, self.task.name, each.kind)
            self.context.store.put(key, each.jpeg)
            shown.append(ExamplePicture(kind=each.kind, key=key, caption=each.caption))
        return tuple(shown)

    def _completed(self, details: Details, dataset: Dataset, shown: tuple[ExamplePicture, ...]) -> Details:
        """With what every record tells: notes of the dataset, leakage, protocol, pictures."""
        # Of a teacher on a labelled dataset; of other models it is not known what they saw.
        trained_by, protocol = self.context.model.trained_by, self.protocol
        leaked = leaked_patients(trained_by, dataset) if trained_by and self.task.has_labels else ()
        notes = (*dataset.notes, *details.notes, *([leakage_note(leaked)] if leaked else []))
        return details.model_copy(
            update={
                "notes": notes,
                "leaked_patients": leaked,
                "hyperparameters": dict(protocol.hyperparameters),
                "protocol_changes": protocol.changes,
                "preset": self._preset(dataset, details),
                "examples": shown,
            }
        )

    def _preset(self, dataset: Dataset, details: Details) -> str:
        """The preset that was followed: on every published image, at the size that eva shows images in."""
        name = preset_of(self.task) if dataset.is_whole and not details.num_dropped else ""
        return name if name and self.context.model.load()[1].img_px == _EVA_IMG_PX else ""

    def failure(self, error: Exception) -> MetricRecord:
        """The record of an evaluation that `error` ended."""
        if not isinstance(error, EosinError):
            error = PermanentError(
                f"{type(error).__name__}: {error}", hint="this is a defect of eosin: report it"
            )
        reason = " → ".join(line.strip() for line in describe(error).splitlines() if line.strip())
        return self._record(status="failed", reason=reason, details=Details.model_validate(self.context.told))

    def _inputs_digest(self, dataset: Dataset) -> str:
        protocol = self.protocol
        inputs = [
            self.context.model.digest,
            dataset.digest,
            self.task.model_dump(mode="json"),
            (protocol.name, protocol.version),
            TRANSFORM,
            TRANSFORM_VERSION,
            self.context.config.seed,
        ]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def _record(self, **fields: object) -> MetricRecord:
        protocol, model = self.protocol, self.context.model
        return MetricRecord.model_validate(
            {
                "model": model.name,
                "step": model.step,
                "task": self.task.name,
                "kind": self.task.kind,
                "inputs_digest": self.inputs_digest,
                "model_digest": model.digest,
                "weights_sha256": model.weights_sha256,
                "dataset": self.task.dataset_uri(self.context.run_uri),
                "dataset_digest": self.dataset.digest if self.dataset else "",
                "protocol": protocol.name,
                "protocol_version": protocol.version,
                "eosin_version": importlib.metadata.version("eosin"),
                **fields,
            }
        )
