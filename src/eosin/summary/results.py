"""Results of metric records in one list: also of those that failed, are missing or disagree."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from eosin.layout import RANDOM_INIT, step_of
from eosin.records import MetricRecord
from eosin.records.base import RecordPart
from eosin.words import first_of

if TYPE_CHECKING:
    from eosin.summary.published import Published

Status = Literal["ok", "failed", "missing", "disagreeing"]


class Result(RecordPart):
    """One figure of one model on one task; without figures, one line that says why."""

    model: str
    """Name of the model."""
    step: int | None
    """Training step; 0 for random-init; None for a foreign baseline."""
    task: str
    """Name of the task."""
    kind: str
    """Of the task."""
    metric: str | None
    """Name of the metric; None where there is no figure."""
    mean: float | None
    """Over runs."""
    std: float | None
    """Over runs."""
    num_runs: int
    """Runs of a probe or decoder."""
    status: Status
    """Whether the figure may be relied on."""
    higher_is_better: bool | None = None
    """Which way is better."""
    interval: tuple[float, float] | None = None
    """At 95 %, over patients or images, where one was computed."""
    reason: str = ""
    """Why there is no figure, or what it disagrees with."""
    dataset_digest: str = ""
    """Of the data it was judged on."""
    protocol: str = ""
    """Name, version and every departure from it; figures compare where this and the data are equal."""
    preset: str = ""
    """The preset that was followed unchanged on the whole of its dataset; empty: none."""


_MAX_NAMED = 6


@dataclass(frozen=True)
class Gap:
    """Every one of `models` on every one of `tasks`."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    status: str
    reason: str


def find_gaps(evaluations: Iterable[tuple[str, str, str, str]]) -> list[Gap]:
    """(model, task, status, reason) of each, gathered where status and reason are the same.

    A dataset that is not there fails every model alike, and a model that is not judged lacks every task:
    one line each, not one a pair.
    """
    models: dict[tuple[str, str, str], list[str]] = {}
    for model, task, status, reason in dict.fromkeys(evaluations):
        models.setdefault((task, status, reason), []).append(model)
    tasks: dict[tuple[tuple[str, ...], str, str], list[str]] = {}
    for (task, status, reason), names in models.items():
        tasks.setdefault((tuple(names), status, reason), []).append(task)
    return [Gap(names, tuple(found), status, reason) for (names, status, reason), found in tasks.items()]


def listed(names: tuple[str, ...], unit: str) -> str:
    """The first names, and how many more there are; `unit` in the plural."""
    return first_of(names, _MAX_NAMED) + (f" {unit}" if len(names) > _MAX_NAMED else "")


# The figures that head a task's table, best known first; others follow by name.
METRIC_ORDER = (
    "balanced_accuracy", "top1", "f1_macro", "calibration_error", "dice", "rankme", "odcorr",
    "odcorr_samples",
)  # fmt: skip


def collect_results(published: "Published") -> list[Result]:
    """Every result, in the order of models (random-init, baselines, teachers by step), tasks, metrics."""
    tasks = [task.name for task in published.config.evaluate.tasks]
    records: dict[tuple[str, str], list[tuple[str, MetricRecord]]] = defaultdict(list)
    for key, record in published.records:
        records[record.model, record.task].append((key, record))
    wrong = _of_other_data([record for _, record in published.records])
    expected = [(model, task) for model in expected_models(published) for task in tasks]
    results: list[Result] = []
    for pair in sorted({*records, *expected}, key=lambda pair: _order(pair, tasks)):
        found = records.get(pair, [])
        keys = ", ".join(key for key, _ in found)
        disagreement = f"two records claim this task: {keys}" if len(found) > 1 else wrong.get(pair, "")
        results += [result for _, record in found for result in _of_record(record, disagreement)]
        results += [] if found else [_missing(published, *pair)]
    return results


def expected_models(published: "Published") -> list[str]:
    """The models that the configuration wants judged."""
    evaluate = published.config.evaluate
    done = published.training
    teachers = list(done.models) if done else [card.name for card in published.teachers]
    return [*evaluate.baselines, *(teachers[-1:] if evaluate.checkpoints == "last" else teachers)]


def model_order(model: str, step: int | None) -> tuple[int, int, str]:
    """random-init, then foreign baselines by name, then teachers by step."""
    if model == RANDOM_INIT:
        return 0, 0, model
    return (1, 0, model) if step is None else (2, step, model)


def _order(pair: tuple[str, str], tasks: Sequence[str]) -> tuple[object, ...]:
    model, task = pair
    place = tasks.index(task) if task in tasks else len(tasks)
    return *model_order(model, step_of(model)), place, task


def results_of_all(records: Sequence[MetricRecord]) -> list[Result]:
    """Of records whose models have different names; those on other data than most are said to disagree."""
    wrong = _of_other_data(records)
    return [result for each in records for result in _of_record(each, wrong.get((each.model, each.task), ""))]


def _of_record(record: MetricRecord, disagreement: str) -> list[Result]:
    if record.status == "failed" or not record.metrics:
        return [_empty(record.model, record.step, record.task, record.kind, "failed", record.reason)]
    found = {name: (low, high) for name, low, high in intervals(record)}
    return [
        Result(
            model=record.model, step=record.step, task=record.task, kind=record.kind, metric=name,
            mean=value.mean, std=value.std, num_runs=value.num_runs,
            status="disagreeing" if disagreement else "ok", higher_is_better=value.higher_is_better,
            interval=found.get(name), reason=disagreement,
            dataset_digest=record.dataset_digest, protocol=_protocol(record), preset=record.details.preset,
        )
        for name, value in sorted(record.metrics.items(), key=lambda item: metric_order(item[0]))
    ]  # fmt: skip


def intervals(record: MetricRecord) -> list[tuple[str, float, float]]:
    """(metric, low, high) of each 95 % interval that a record tells."""
    found = sorted(record.details.intervals.items(), key=lambda item: metric_order(item[0]))
    return [(metric, low, high) for metric, (low, high) in found]


def metric_order(name: str) -> tuple[int, str]:
    """Key to sort metrics by: those of the headline first, the rest by name."""
    return (METRIC_ORDER.index(name) if name in METRIC_ORDER else len(METRIC_ORDER)), name


def _missing(published: "Published", model: str, task: str) -> Result:
    kind = {each.name: each.kind for each in published.config.evaluate.tasks}[task]
    return _empty(model, step_of(model), task, kind, "missing", "no record: it has not been evaluated")


def _empty(model: str, step: int | None, task: str, kind: str, status: Status, reason: str) -> Result:
    return Result(model=model, step=step, task=task, kind=kind, metric=None, mean=None, std=None,
                  num_runs=0, status=status, reason=reason)  # fmt: skip


def _of_other_data(records: Sequence[MetricRecord]) -> dict[tuple[str, str], str]:
    """Records judged on other data, or by another protocol, than most of their task: not comparable."""
    wrong: dict[tuple[str, str], str] = {}
    for task in {record.task for record in records}:
        done = [record for record in records if record.task == task and record.status == "ok"]
        if not done:
            continue
        newest = max(done, key=lambda record: record.step or 0)
        counts = Counter(_basis(record) for record in done)
        usual = max(counts, key=lambda basis: (counts[basis], basis == _basis(newest)))
        for record in done:
            if _basis(record) != usual:
                wrong[record.model, task] = _difference(record, usual)
    return wrong


_Basis = tuple[str, str, int, str]


def _basis(record: MetricRecord) -> _Basis:
    changes = "; ".join(record.details.protocol_changes)
    return record.dataset_digest, record.protocol, record.protocol_version, changes


def _protocol(record: MetricRecord) -> str:
    _, name, protocol_version, changes = _basis(record)
    return f"{name} v{protocol_version}{_with(changes)}" if name else ""


def _difference(record: MetricRecord, usual: _Basis) -> str:
    if record.dataset_digest != usual[0]:
        return f"judged on other data ({record.dataset_digest[:8]}) than the others ({usual[0][:8]})"
    own = _basis(record)
    return (
        f"judged by protocol {own[1]} v{own[2]}{_with(own[3])}, "
        f"the others by {usual[1]} v{usual[2]}{_with(usual[3])}"
    )


def _with(changes: str) -> str:
    return f" with {changes}" if changes else ""
