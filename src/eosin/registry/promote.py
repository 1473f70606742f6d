"""Promotion: a run's teacher becomes the current model of a name, where the comparison finds it better."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Literal

from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.layout import TEACHER_CARD, RunLayout, record_key
from eosin.metrics.group_counts import MIN_GROUPS
from eosin.metrics.significance import Significance, significance
from eosin.observability import RunLog
from eosin.records import MetricRecord, RegisteredModel, RegistryEntry, TeacherCard, TrainingDone, load_record
from eosin.records.details import ClassifierDetails, Details, JudgedDetails
from eosin.registry.entries import added, change_entry, moved
from eosin.runs import load_pin, load_run
from eosin.storage import ByteRange, NotFound, Store, join_uri, open_store

_CHUNK_BYTES = 64 << 20
_BALANCED = "balanced_accuracy"


@dataclass(frozen=True)
class Rule:
    """What a candidate must do to take the place of the current model."""

    metrics: tuple[str, ...] = ()
    """TASK/METRIC each, all of which it must win; none: balanced accuracy of every task that has it."""
    margin: float = 0.0
    """By how much, in the unit of the metric; for a metric that cannot be tested it must be above 0."""
    alpha: float = 0.05
    """Two-sided level of the test; 1: no test. A metric of one value cannot be tested: see `margin`."""
    min_groups: int = MIN_GROUPS
    """Patients (or images, where none are known) that a figure must be over; with alpha 1 any number."""

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise UserError(f"a margin of {self.margin} would promote what is worse", hint="give 0 or more")
        if not 0 < self.alpha <= 1:
            raise UserError(f"alpha {self.alpha} is no level of significance", hint="0.05; 1 for no test")


@dataclass(frozen=True)
class Contender:
    """A model to compare: the names a run may hold its records under, and the weights they must be of."""

    names: tuple[str, ...]
    weights_sha256: str


@dataclass(frozen=True)
class Judgement:
    """One figure of the candidate against the current model's. `why` is one line for a person."""

    task: str
    metric: str
    passed: bool
    why: str
    candidate: float | None = None
    current: float | None = None
    p_value: float | None = None


def compare(
    store: Store, config: RunConfig, candidate: Contender, current: Contender, rule: Rule
) -> tuple[Judgement, ...]:
    """Judge the model `candidate` of the run at `store` against the current one.

    Each named metric is a test of its own and all must pass, so the level needs no correction for
    their number. Raises `UserError` where the rule names what the run does not have.
    """
    places = {task.name: str(getattr(task, "dataset", "")) for task in config.evaluate.tasks}
    return tuple(
        _judge(store, task, places[task], metric, candidate, current, rule)
        for task, metric in named_metrics(config, rule.metrics)
    )


def named_metrics(config: RunConfig, names: Sequence[str]) -> list[tuple[str, str]]:
    """(task, metric) of each `TASK/METRIC`. Raises `UserError` for a task the run does not have."""
    labelled = [task.name for task in config.evaluate.tasks if _BALANCED in task.headline]
    names = names or [f"{name}/{_BALANCED}" for name in labelled]
    if not names:
        raise UserError(
            "no metric to compare on: the run has no labelled task", hint="name one: --metric TASK/METRIC"
        )
    tasks = [task.name for task in config.evaluate.tasks]
    pairs = []
    for name in names:
        task, slash, metric = name.partition("/")
        if not slash or task not in tasks:
            raise UserError(
                f"metric {name!r} is not TASK/METRIC", hint=f"tasks of the run: {', '.join(tasks) or 'none'}"
            )
        pairs.append((task, metric))
    return pairs


def _judge(
    store: Store, task: str, dataset: str, metric: str, candidate: Contender, current: Contender, rule: Rule
) -> Judgement:
    new, old = _record(store, candidate.names, task), _record(store, current.names, task)
    missing = _missing(store, task, dataset, candidate, new) or _missing(store, task, dataset, current, old)
    if missing or new is None or old is None:
        return Judgement(task, metric, False, f"{task}: {missing}")
    if _basis(new) != _basis(old):
        return Judgement(task, metric, False, f"{task}: the two were judged on other data or protocols")
    if _samples(new.details) != _samples(old.details):
        return Judgement(
            task, metric, False,
            f"{task}: the two were judged on other samples: {old.details.num_dropped} were left out with the "
            f"current model, {new.details.num_dropped} with the candidate",
        )  # fmt: skip
    if metric not in new.metrics or metric not in old.metrics:
        raise UserError(f"task {task} has no metric {metric!r}", hint=f"it has {', '.join(new.metrics)}")
    better = new.metrics[metric].mean - old.metrics[metric].mean
    sign = 1 if new.metrics[metric].higher_is_better else -1
    test = significance(old, new, metric)
    passed, why = _verdict(sign * better, test, rule, sign=sign, judged_over=new.details.judged_over)
    means = new.metrics[metric].mean, old.metrics[metric].mean
    text = f"{task}/{metric}: {means[0]:.4g} against {means[1]:.4g}, {why}"
    return Judgement(task, metric, passed, text, *means, test.p_value if test else None)


def _verdict(
    better: float,
    test: Significance | None,
    rule: Rule,
    *,
    sign: int = 1,
    judged_over: tuple[int, str] | None = None,
) -> tuple[bool, str]:
    """Whether an improvement by `better` passes, and a clause that says which rule decided.

    In order: the mean over all runs, the margin, enough patients, one sign of mean and test, the level.
    `sign` is -1 where lower is better; `judged_over` patients or images both figures are.
    """
    if not better > 0:
        return False, "no better" if better == 0 else f"worse by {-better:.4g}"
    by = f"better by {better:.4g}"
    if better < rule.margin:
        return False, f"{by}, less than the margin of {rule.margin:g}"
    if rule.alpha == 1:
        return True, f"{by}, not tested"
    if judged_over and judged_over[0] < rule.min_groups:
        return False, f"{by}, on {judged_over[0]} {judged_over[1]}: {rule.min_groups} are needed"
    if test is None:
        enough = rule.margin > 0
        missing = f"the margin of {rule.margin:g} decides" if enough else "give a margin that excludes chance"
        return enough, f"{by}; one value has no test: {missing}"
    if sign * test.difference <= 0:
        return False, f"{by} in the mean of the runs, but not over the same {test.unit}: they disagree"
    if test.p_value is None or 0 < test.num_groups < rule.min_groups:
        return False, f"{by}, on {test.num_groups} {test.unit}: {rule.min_groups} are needed"
    if judged_over and not test.num_groups and not rule.margin:
        return False, f"{by}; a test over runs says nothing of other {judged_over[1]}: give a margin"
    p_value = f"p = {test.p_value:.3g}, {test.how}"
    if test.p_value > rule.alpha:
        return False, f"{by}, which may be chance ({p_value}, not below {rule.alpha:g})"
    return True, f"{by} ({p_value})"


def _basis(record: MetricRecord) -> tuple[object, ...]:
    details = record.details
    how = details.protocol_changes, details.hyperparameters
    return record.dataset_digest, record.protocol, record.protocol_version, how


def _samples(details: Details) -> object:
    """Which samples were judged, as far as the record tells."""
    if not isinstance(details, JudgedDetails):
        return details.num_dropped
    kept = (details.truth, details.patients) if isinstance(details, ClassifierDetails) else ()
    return details.judged_on, details.num_judged, details.group_confusions.keys(), kept


def _missing(store: Store, task: str, dataset: str, contender: Contender, record: MetricRecord | None) -> str:
    """Why `record` gives no figure of `contender`; empty where it does."""
    model = contender.names[0]
    again = f"eosin evaluate {quote(store.uri)} --model {quote(model)} --task {quote(task)}"
    if record is None:
        return f"{model} is not judged on it: {again}"
    if "/" in dataset and record.dataset and record.dataset != dataset:
        return f"{model} was judged on {record.dataset}, the task says {dataset} now: {again}"
    if record.status != "ok":
        return f"{model} could not be judged on it: {record.reason}"
    if record.weights_sha256 != contender.weights_sha256:
        judged = f"those of SHA-256 {record.weights_sha256[:12]}" if record.weights_sha256 else "unknown ones"
        return (
            f"{model} was judged by other weights than its own of SHA-256 {contender.weights_sha256[:12]}: "
            f"{judged}; put its own back where they were overwritten, then {again}"
        )
    return ""


def _record(store: Store, names: Sequence[str], task: str) -> MetricRecord | None:
    """The record of the model under the first of its names that has one."""
    for name in names:
        key = RunLayout.metric(record_key(name), task)
        record = load_record(MetricRecord, store, key)
        if record is not None:
            return record
    return None


_NO_VERSION = 0


@dataclass(frozen=True)
class Promotion:
    """What came of it. `version` is the current one now; `why` is for a person, a line a reason."""

    name: str
    status: Literal["promoted", "refused", "unchanged"]
    version: int
    teacher: str
    why: tuple[str, ...]
    judgements: tuple[Judgement, ...] = ()

    def __str__(self) -> str:
        head = f"{self.name}: {self.status}, version {self.version} is the current one"
        return "\n".join([head, f"  candidate {self.teacher}", *(f"  {why}" for why in self.why)])


def promote(
    registry_uri: str, name: str, run_uri: str, *, model: str = "", rule: Rule | None = None, log: RunLog
) -> Promotion:
    """Make the teacher `model` of a run (empty: its newest) the current model `name`.

    Where there is none yet it becomes the first; otherwise it must beat the current one by `rule`, on
    records that the run holds of both, with their very weights. Where another promotion is faster, it must
    beat that one. Repeated after success it changes nothing. Raises `UserError` where the run has no such
    teacher, or other weights than its card names.
    """
    store = open_store(run_uri)
    config = load_run(run_uri, store=store)
    promoter = _Promoter(store, config, name, _candidate(store, model), rule or Rule())
    standing = change_entry(registry_uri, name, promoter.change)
    assert standing is not None and promoter.result is not None
    result = promoter.result
    log.event(
        "promotion", name=name, status=result.status, version=result.version, teacher=result.teacher,
        why="; ".join(result.why),
    )  # fmt: skip
    return result


@dataclass
class _Promoter:
    store: Store
    config: RunConfig
    name: str
    candidate: RegisteredModel
    rule: Rule
    result: Promotion | None = None
    """Of the last call of `change`."""

    def change(self, entry: RegistryEntry | None) -> RegistryEntry | None:
        """The entry with the candidate as its current model; None where it stays as it is."""
        if entry is None:
            first = ("the first model of this name",)
            changed = added(None, self.name, self.candidate, first)
            self.result = self._result("promoted", changed.current, first)
            return changed
        current = entry.current_model
        if current.weights_sha256 == self.candidate.weights_sha256:
            same = (f"it is version {entry.current}, the current one",)
            self.result = self._result("unchanged", entry.current, same)
            return None
        new = Contender((self.candidate.model,), self.candidate.weights_sha256)
        judgements = compare(self.store, self.config, new, self._contender(current), self.rule)
        why = tuple(each.why for each in judgements)
        if not all(each.passed for each in judgements):
            failed = tuple(each.why for each in judgements if not each.passed)
            self.result = self._result("refused", entry.current, failed, judgements)
            return None
        ours = self.candidate.weights_sha256
        known = next((old.version for old in entry.versions if old.weights_sha256 == ours), None)
        if known is None:
            changed = added(entry, self.name, self.candidate, why)
        else:
            changed = moved(entry, "promote", known, why)
        self.result = self._result("promoted", changed.current, why, judgements)
        return changed

    def _contender(self, current: RegisteredModel) -> Contender:
        """The run may hold records of the current model as a stranger's, or as its own."""
        own = (current.model,) if current.run == self.candidate.run else ()
        return Contender((current.teacher, *own), current.weights_sha256)

    def _result(
        self,
        status: Literal["promoted", "refused", "unchanged"],
        version: int,
        why: tuple[str, ...],
        judgements: tuple[Judgement, ...] = (),
    ) -> Promotion:
        return Promotion(self.name, status, version, self.candidate.teacher, why, judgements)


def _candidate(store: Store, model: str) -> RegisteredModel:
    model = model or _newest(store)
    card = load_record(TeacherCard, store, RunLayout.teacher_card(model))
    if card is None:
        raise UserError(
            f"run {store.uri} has no teacher {model}",
            hint=f"`eosin status {quote(store.uri)}` shows how far it is",
        )
    _require_weights(store, card, model)
    pin = load_pin(store.uri, store=store)
    return RegisteredModel(
        version=_NO_VERSION,
        run=store.uri,
        model=model,
        teacher=join_uri(store.uri, RunLayout.teacher(model)).rstrip("/"),
        weights_sha256=card.weights_sha256,
        index_uri=pin.index_uri,
        snapshot_id=card.snapshot_id or pin.snapshot_id,
    )


def _require_weights(store: Store, card: TeacherCard, model: str) -> None:
    """Raises `UserError` where the teacher's weights are not the bytes that its card names."""
    key, digest = RunLayout.teacher_weights(model), hashlib.sha256()
    with contextlib.suppress(NotFound):
        info = store.head(key)
        for start in range(0, info.size_bytes, _CHUNK_BYTES):
            digest.update(store.get_ranges([ByteRange(key, start, _CHUNK_BYTES, info.etag)])[0])
    if digest.hexdigest() != card.weights_sha256:
        uri = join_uri(store.uri, key)
        raise UserError(
            f"{uri} is not the file that {TEACHER_CARD} beside it names: SHA-256 differs",
            hint="it was overwritten or removed: put it back, or delete the folder and train the run again",
        )


def _newest(store: Store) -> str:
    done = load_record(TrainingDone, store, RunLayout.TRAINING_DONE)
    if done is None:
        raise UserError(
            f"run {store.uri} has not ended training",
            hint="name the teacher to promote: --model step-00000100",
        )
    return done.models[-1]
