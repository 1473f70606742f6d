"""Status and logs of a run, from its URI alone."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from shlex import quote
from typing import TYPE_CHECKING, Any

from eosin.config import RunConfig
from eosin.errors import EosinError, UserError
from eosin.layout import RunLayout
from eosin.observability import printable
from eosin.records import (
    KubeflowRun,
    MetricRecord,
    PatchSetManifest,
    StepFailure,
    Study,
    TrainingDone,
    load_record,
)
from eosin.runs import last_step, load_failures, load_pin, load_run, load_training_done
from eosin.storage import Store, join_uri, open_store
from eosin.words import counted, nearest_of

if TYPE_CHECKING:
    from eosin.cluster.live_state import LiveState


@dataclass(frozen=True)
class StepStatus:
    """How far one step of a run has come."""

    step: str
    state: str
    """done, partial or waiting."""
    detail: str


@dataclass(frozen=True)
class RunStatus:
    """How far a run has come, step by step."""

    run: str
    recipe: str
    config_digest: str
    steps: tuple[StepStatus, ...]
    is_study: bool = False
    failures: tuple[StepFailure, ...] = ()
    """Last errors of steps that have not succeeded since, the newest first."""
    kubeflow: KubeflowRun | None = None
    live: "LiveState | None" = None
    """What a cluster says of its training now; None: not asked, or it says nothing."""

    def __str__(self) -> str:
        marks = {"done": "✓", "partial": "…", "waiting": " "}
        about = (
            f"{self.recipe}, config {self.config_digest[:12]}" if self.config_digest else "not planned yet"
        )
        lines = [f"{self.run}  ({about})"]
        for failure in self.failures:
            attempt = f", attempt {failure.attempt}" if failure.attempt > 1 else ""
            lines.append(printable(f" ✗ {failure.step}: {failure.message}  ({failure.time}{attempt})"))
            lines += [printable(f"   → {failure.hint}")] if failure.hint else []
        if self.kubeflow is not None:
            place = self.kubeflow
            lines.append(f"   kubeflow   run {place.run_id} · {place.namespace} {place.workflow}".rstrip())
        lines += [f" {marks[step.state]} {step.step:<10} {step.detail}" for step in self.steps]
        lines.append(f"next: {self.next}")
        return "\n".join([*lines, f"   cluster    {self.live}"] if self.live else lines)

    @property
    def next(self) -> str:
        """The command that brings the run on, or shows what it came to."""
        waiting = next((step for step in self.steps if step.state != "done"), None)
        if not self.steps:
            return f"eosin logs {quote(self.run)}"
        if waiting is None:
            report = self.steps[-1].detail
            fetched = f"aws s3 cp {quote(report)} . && open {quote(PurePosixPath(report).name)}"
            return fetched if report.startswith("s3:") else f"open {quote(report)}"
        if self.is_study:
            return (
                f"eosin run --pipeline scaling_study --local --run {quote(self.run)} goes on with the study"
            )
        if waiting.step == "index":
            return f"eosin index --run {quote(self.run)}"
        return f"eosin {waiting.step} {quote(self.run)}"


@dataclass(frozen=True)
class LogLine:
    """One event of a run's log: `time`, `source`, `event` and what else it tells."""

    fields: dict[str, Any]

    @property
    def time(self) -> str:
        """ISO 8601, UTC; empty where it has none."""
        return str(self.fields.get("time", ""))

    def __str__(self) -> str:
        head = f"{self.time}  {self.fields.get('source', '')}  {self.fields.get('event', '')}"
        rest = {k: v for k, v in self.fields.items() if k not in ("time", "source", "event")}
        return printable(f"{head}  " + " ".join(f"{key}={value}" for key, value in rest.items()))


def run_status(run_uri: str) -> RunStatus:
    """The state of each step; of a study, over its runs; and why one failed.

    Raises `UserError` where none was begun there.
    """
    store = open_store(run_uri)
    failures, kubeflow = load_failures(store), load_record(KubeflowRun, store, RunLayout.KUBEFLOW_RUN)
    if (failures or kubeflow) and not store.exists(RunLayout.CONFIG):
        return RunStatus(run_uri, "", "", (), failures=failures, kubeflow=kubeflow)
    config = load_run(run_uri, store=store)
    study = load_record(Study, store, RunLayout.STUDY)
    if study is not None:
        of_study = _study_status(run_uri, config, study, store)
        return replace(of_study, failures=failures, kubeflow=kubeflow)
    steps = (
        _index(store),
        _decode(store),
        _train(store, load_training_done(store, config), config.train.num_steps),
        _evaluate(store),
        _report(store),
    )
    return RunStatus(run_uri, config.recipe, config.digest(), steps, failures=failures, kubeflow=kubeflow)


def whole_status(
    run_uri: str, live: bool | None = None, *, namespace: str = "", context: str = ""
) -> RunStatus:
    """As `run_status`, with the state of the run's JobSet.

    `live`: ask the cluster (True: what it cannot answer is raised), or not; None: if it answers.
    """
    from eosin.cluster.api import is_configured
    from eosin.cluster.live_state import live_state

    status = run_status(run_uri)
    # A run in a folder was never on a cluster.
    if live is False or not (live or (run_uri.startswith("s3://") and is_configured())):
        return status
    try:
        return replace(status, live=live_state(run_uri, namespace=namespace, context=context))
    except EosinError:
        if live:
            raise
        return status


def _study_status(run_uri: str, config: RunConfig, study: Study, store: Store) -> RunStatus:
    runs = [open_store(variant.run) for variant in study.variants]
    ended = [load_record(TrainingDone, run, RunLayout.TRAINING_DONE) for run in runs]
    trained = [_train(run, done, config.train.num_steps) for run, done in zip(runs, ended, strict=True)]
    judged = [_evaluate(run) for run in runs]
    steps = (
        _index(store),
        _decode(store),
        _together("train", "trained", study, trained),
        _together("evaluate", "judged", study, judged),
        _report(store),
    )
    return RunStatus(run_uri, f"study of {study.key}, {config.recipe}", config.digest(), steps, is_study=True)


def _together(step: str, word: str, study: Study, each: Sequence[StepStatus]) -> StepStatus:
    """One line for the runs of a study: how many are through, and how far the others are."""
    num_done = sum(one.state == "done" for one in each)
    going = [f"{variant.name}: {one.detail}" for variant, one in zip(study.variants, each, strict=True)
             if one.state == "partial"]  # fmt: skip
    states = {one.state for one in each}
    state = "done" if states == {"done"} else "waiting" if states == {"waiting"} else "partial"
    detail = f"{num_done} of {len(each)} runs {word}" + (f"; {'; '.join(going)}" if going else "")
    return StepStatus(step, state, detail)


def read_logs(run_uri: str, source: str = "", tail: int | None = None) -> list[LogLine]:
    """The log lines of a run (of the sources whose name starts with `source`), in order of time.

    Raises `UserError` naming those there are, where the run has no such source.
    """
    store = open_store(run_uri)
    load_run(run_uri, store=store)
    lines = list(_told_once(sorted(_lines(store, source, {}), key=lambda line: line.time), set()))
    if source and not lines:
        _require_source(store, source)
    return lines if tail is None else lines[max(0, len(lines) - tail) :]


def follow_logs(run_uri: str, source: str = "", *, poll_s: float = 2.0) -> Iterator[LogLine]:
    """As `read_logs`, then lines as they arrive, until the report is there."""
    store = open_store(run_uri)
    load_run(run_uri, store=store)
    seen: dict[str, tuple[str, int]] = {}
    told: set[int] = set()
    while True:
        finished = store.exists(RunLayout.SUMMARY_JSON)
        yield from _told_once(sorted(_lines(store, source, seen), key=lambda line: line.time), told)
        if finished:
            return
        time.sleep(poll_s)


def _require_source(store: Store, source: str) -> None:
    there = sorted({info.key.split("/")[1] for info in store.list(RunLayout.LOGS) if info.key.count("/") > 1})
    hint = nearest_of(source, there) if there else "the run has logged nothing yet"
    raise UserError(f"run {store.uri} has no log of {source!r}", hint=hint)


def _lines(store: Store, source: str, seen: dict[str, tuple[str, int]]) -> Iterator[LogLine]:
    """New lines of every part; `seen` maps a part to its etag and the number of lines already given."""
    for part in list(store.list(f"{RunLayout.LOGS}{source}")):
        etag, count = seen.get(part.key, ("", 0))
        if not part.key.endswith(".jsonl") or etag == part.etag:
            continue
        text = store.get(part.key).decode(errors="replace").splitlines()
        seen[part.key] = (part.etag, len(text))
        for line in text[count:]:
            yield LogLine(_fields(line))


def _told_once(lines: Iterable[LogLine], told: set[int]) -> Iterator[LogLine]:
    """Each event once: what a step logs is in its own log and in that of its pod, in the same words."""
    for line in lines:
        fields = line.fields
        if fields.get("event") == "line" and str(fields.get("source", "")).startswith("pods/"):
            fields = _fields(str(fields.get("text", "")))
        if "time" in fields and "source" in fields:
            key = hash(json.dumps(fields, sort_keys=True))
            if key in told:
                continue
            told.add(key)
        yield line


def _fields(line: str) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except ValueError:
        return {"event": line}
    return fields if isinstance(fields, dict) else {"event": line}


def _index(store: Store) -> StepStatus:
    try:
        pin = load_pin(store.uri, store=store)
    except UserError:
        return StepStatus("index", "waiting", "no snapshot pinned yet")
    return StepStatus("index", "done", f"snapshot {pin.snapshot_id} of {pin.index_uri}")


def _decode(store: Store) -> StepStatus:
    names = sorted({info.key.split("/")[1] for info in store.list(RunLayout.PATCH_SETS)})
    if not names:
        return StepStatus("decode", "waiting", "no patch set yet")
    found = [load_record(PatchSetManifest, store, RunLayout.patch_set_manifest(name)) for name in names]
    details = [f"{each.name}: {counted(each.num_patches, 'patch')}" for each in found if each is not None]
    state = "done" if len(details) == len(names) else "partial"
    return StepStatus("decode", state, ", ".join(details) or f"{', '.join(names)}: shards only")


def _train(store: Store, done: TrainingDone | None, num_steps: int) -> StepStatus:
    if done is None:
        last = last_step(store)
        if last is None:
            return StepStatus("train", "waiting", f"0/{num_steps} steps")
        rate = last.get("images_per_s")
        speed = f", {rate:.1f} images/s" if isinstance(rate, float) else ""
        return StepStatus(
            "train", "partial", f"{last.get('step')}/{num_steps} steps{speed}, as of {last['time']}"
        )
    loss = "" if done.final_loss is None else f", loss {done.final_loss:.4g}"
    return StepStatus(
        "train", "done", f"{counted(done.num_steps, 'step')}, {counted(len(done.models), 'teacher')}{loss}"
    )


def _evaluate(store: Store) -> StepStatus:
    states = [_record_state(store, info.key) for info in store.list(RunLayout.METRICS)]
    if not states:
        return StepStatus("evaluate", "waiting", "no record yet")
    ok = states.count("ok")
    state = "done" if ok == len(states) and store.exists(RunLayout.SUMMARY_JSON) else "partial"
    return StepStatus("evaluate", state, f"{counted(ok, 'record')} ok, {len(states) - ok} failed")


def _record_state(store: Store, key: str) -> str:
    try:
        record = load_record(MetricRecord, store, key)
    except EosinError:
        return "unreadable"
    return record.status if record is not None else "unreadable"


def _report(store: Store) -> StepStatus:
    if not store.exists(RunLayout.SUMMARY_JSON):
        return StepStatus("summarize", "waiting", "no report yet")
    return StepStatus("summarize", "done", join_uri(store.uri, RunLayout.SUMMARY_HTML))
