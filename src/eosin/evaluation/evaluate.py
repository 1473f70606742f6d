"""One evaluation, start to record: the only thing this package publishes besides embeddings."""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import json
import time
from dataclasses import dataclass, replace
from functools import cache

from eosin.config import RunConfig
from eosin.config.evaluate import (
    CentreTask,
    KnnTask,
    LinearProbeTask,
    RobustnessTask,
    SegmentationTask,
    SlideTask,
    TaskConfig,
    UnsupervisedTask,
)
from eosin.errors import EosinError, PermanentError, TransientError, UserError, describe
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.datasets.leakage import leakage_note, leaked_patients
from eosin.evaluation.datasets.mask_folder import MaskedDataset
from eosin.evaluation.datasets.open_task import dataset_uri, open_task
from eosin.evaluation.embeddings.changes import CHANGES
from eosin.evaluation.embeddings.embed import Embeddings, embed
from eosin.evaluation.protocol import protocol_of, task_identity
from eosin.evaluation.subject import Subject, find_subject, lost_subject
from eosin.evaluation.tasks.outcome import Outcome
from eosin.evaluation.transform import TRANSFORM, TRANSFORM_VERSION
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import MetricRecord, load_record
from eosin.runs import load_run
from eosin.storage import Store, open_store


def evaluate(run_uri: str, model: str, task: str, *, log: RunLog) -> MetricRecord:
    """Judge `model` on the task called `task` and publish the record; nothing is done twice.

    Where an `ok` record of the same model, data and protocol is there already, it is returned. What
    goes wrong with the data or the model becomes a record with status `failed` and the reason, which is
    returned too, so that the other tasks go on; `TransientError` is recorded and raised, to be tried
    again. Raises `UserError` for a model or task the run does not have.
    """
    store = open_store(run_uri)
    config = load_run(run_uri, store=store)
    wanted = _find_task(run_uri, config, task)
    subject = _find_model(run_uri, config, model, store)
    # A task that embeds several times reads the weights once.
    subject = replace(subject, load=cache(subject.load))
    started_s = time.monotonic()
    evaluation = _Evaluation(run_uri, store, config, wanted, subject, log)
    try:
        there = evaluation.existing()
        if there is not None:
            log.event("unchanged", model=model, task=task, detail="an ok record of the same inputs is there")
            return there
        record = evaluation.judge()
    except Exception as error:
        record = _publish(store, subject, evaluation.failure(error), started_s)
        log.event("evaluation-failed", model=model, task=task, reason=record.reason)
        if isinstance(error, TransientError):
            raise
        return record
    record = _publish(store, subject, record, started_s)
    figures = {name: value.mean for name, value in record.metrics.items()}
    log.event("evaluated", model=model, task=task, seconds=round(record.wall_s, 2), **figures)
    return record


def _find_model(run_uri: str, config: RunConfig, name: str, store: Store) -> Subject:
    """A baseline that the configuration names and nobody can find fails when it is judged, as a record."""
    try:
        return find_subject(run_uri, config, name, store)
    except UserError as error:
        if name not in config.evaluate.baselines:
            raise
        return lost_subject(name, error)


def _find_task(run_uri: str, config: RunConfig, name: str) -> TaskConfig:
    tasks = {task.name: task for task in config.evaluate.tasks}
    if name in tasks:
        return tasks[name]
    near = difflib.get_close_matches(name, tasks, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(tasks) or 'none'}"
    raise UserError(f"run {run_uri} has no task {name}", hint=hint)


def _publish(store: Store, subject: Subject, record: MetricRecord, started_s: float) -> MetricRecord:
    record = record.model_copy(update={"wall_s": time.monotonic() - started_s})
    store.put(RunLayout.metric(subject.key, record.task), record.to_json())
    return record


@dataclass
class _Evaluation:
    run_uri: str
    store: Store
    config: RunConfig
    task: TaskConfig
    subject: Subject
    log: RunLog
    dataset: Dataset | None = None
    inputs_digest: str = ""

    def existing(self) -> MetricRecord | None:
        """The `ok` record of these very inputs, where it is there. Opens the dataset, not the model."""
        self.dataset = open_task(self.task, self.run_uri)
        self.inputs_digest = self._inputs_digest(self.dataset)
        key = RunLayout.metric(self.subject.key, self.task.name)
        try:
            record = load_record(MetricRecord, self.store, key)
        except PermanentError:
            return None
        final = record is not None and record.status == "ok" and record.inputs_digest == self.inputs_digest
        return record if final else None

    def judge(self) -> MetricRecord:
        """Run the task on the dataset that `existing` opened."""
        assert self.dataset is not None
        if isinstance(self.task, SegmentationTask):
            outcome, num_patches = self._segment(self.task)
        elif isinstance(self.task, SlideTask):
            outcome, num_patches = self._slides(self.task)
        else:
            outcome, num_patches = self._run_embedded(self.dataset)
        leaked = self._leaked(self.dataset)
        protocol = protocol_of(self.task)
        details = {
            **outcome.details,
            "notes": [
                *self.dataset.notes,
                *outcome.details.get("notes", []),
                *([leakage_note(leaked)] if leaked else []),
            ],
            "leaked_patients": list(leaked),
        }
        if protocol.hyperparameters is not None:
            details |= {
                "hyperparameters": protocol.hyperparameters,
                "protocol_changes": list(protocol.changes),
            }
        return self._record(status="ok", metrics=outcome.metrics, num_patches=num_patches, details=details)

    def _run_embedded(self, dataset: Dataset) -> tuple[Outcome, int]:
        """The outcome of a task on embeddings, with what was left out, and how many images there were."""
        embeddings = self._embed()
        outcome = self._run_task(dataset, embeddings)
        dropped = {
            "num_dropped": embeddings.num_dropped,
            "dropped": list(embeddings.dropped),
            "transform": f"{TRANSFORM} v{TRANSFORM_VERSION}",
        }
        shown = self._examples(dataset, embeddings)
        details = {**outcome.details, **dropped, **({"examples": shown} if shown else {})}
        return replace(outcome, details=details), len(embeddings.rows)

    def _examples(self, dataset: Dataset, embeddings: Embeddings) -> list[dict[str, str]]:
        """Pictures of a few patches, published before the record names them."""
        if not isinstance(self.task, UnsupervisedTask | KnnTask):
            return []
        from eosin.evaluation.tasks.show import examples_of

        shown = []
        for each in examples_of(self.task, dataset, embeddings, self.subject):
            key = RunLayout.example(self.subject.key, self.task.name, each.kind)
            self.store.put(key, each.jpeg)
            shown.append({"kind": each.kind, "key": key, "caption": each.caption})
        return shown

    def _segment(self, task: SegmentationTask) -> tuple[Outcome, int]:
        """As `_run_embedded`, on patch tokens; the picture is there before the record names it."""
        from eosin.evaluation.tasks.segmentation import run_segmentation

        assert isinstance(self.dataset, MaskedDataset)
        evaluate, seed = self.config.evaluate, self.config.seed
        outcome = run_segmentation(
            task, self.dataset, self.subject, batch_size=evaluate.batch_size, seed=seed, log=self.log
        )
        if not outcome.picture:
            return outcome, outcome.num_tiles
        key = RunLayout.picture(self.subject.key, task.name)
        self.store.put(key, outcome.picture)
        return replace(outcome, details={**outcome.details, "picture": key}), outcome.num_tiles

    def _slides(self, task: SlideTask) -> tuple[Outcome, int]:
        from eosin.evaluation.datasets.slide_dataset import SlideDataset
        from eosin.evaluation.tasks.slides import run_slides

        assert isinstance(self.dataset, SlideDataset)
        return run_slides(
            self.run_uri, self.config, task, self.dataset, self.subject, store=self.store, log=self.log
        )

    def failure(self, error: Exception) -> MetricRecord:
        if not isinstance(error, EosinError):
            error = PermanentError(
                f"{type(error).__name__}: {error}", hint="this is a defect of eosin: report it"
            )
        reason = " → ".join(line.strip() for line in describe(error).splitlines() if line.strip())
        return self._record(status="failed", reason=reason)

    def _embed(self, change: str = "") -> Embeddings:
        assert self.dataset is not None
        batch_size = self.config.evaluate.batch_size
        return embed(
            self.subject, self.dataset, store=self.store, batch_size=batch_size, log=self.log, change=change
        )

    def _leaked(self, dataset: Dataset) -> tuple[str, ...]:
        """Of a teacher on a labelled dataset; of other models it is not known what they saw."""
        if not self.subject.trained_by or isinstance(self.task, UnsupervisedTask | RobustnessTask):
            return ()
        return leaked_patients(self.subject.trained_by, dataset)

    def _inputs_digest(self, dataset: Dataset) -> str:
        protocol = protocol_of(self.task)
        inputs = [
            self.subject.digest,
            dataset.digest,
            task_identity(self.task),
            (protocol.name, protocol.version),
            TRANSFORM,
            TRANSFORM_VERSION,
            self.config.seed,
        ]
        return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()

    def _run_task(self, dataset: Dataset, embeddings: Embeddings) -> Outcome:
        if isinstance(self.task, KnnTask):
            from eosin.evaluation.tasks.knn import run_knn

            return run_knn(self.task, dataset, embeddings)
        if isinstance(self.task, LinearProbeTask):
            from eosin.evaluation.tasks.linear_probe import run_linear_probe

            return run_linear_probe(self.task, dataset, embeddings, seed=self.config.seed)
        if isinstance(self.task, CentreTask):
            from eosin.evaluation.tasks.centres import run_centres

            return run_centres(self.task, dataset, embeddings)
        if isinstance(self.task, RobustnessTask):
            from eosin.evaluation.tasks.robustness import run_robustness

            return run_robustness(dataset, embeddings, {name: self._embed(name) for name in CHANGES})
        from eosin.evaluation.tasks.unsupervised import run_unsupervised

        return run_unsupervised(dataset, embeddings)

    def _record(self, **fields: object) -> MetricRecord:
        protocol = protocol_of(self.task)
        return MetricRecord.model_validate(
            {
                "model": self.subject.name,
                "step": self.subject.step,
                "task": self.task.name,
                "kind": self.task.kind,
                "inputs_digest": self.inputs_digest,
                "model_digest": self.subject.digest,
                "dataset": dataset_uri(self.task, self.run_uri),
                "dataset_digest": self.dataset.digest if self.dataset else "",
                "protocol": protocol.name,
                "protocol_version": protocol.version,
                "eosin_version": importlib.metadata.version("eosin"),
                **fields,
            }
        )
