"""Evaluation in shards: what each shard judges, what is loaded, and what a shard leaves when it is ended."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosin import steps
from eosin.config import dump_config
from eosin.errors import TransientError, UserError
from eosin.evaluation import plan as shards_module
from eosin.evaluation.judged_model import JudgedModel
from eosin.evaluation.plan import Evaluation, share_of_evaluations
from eosin.layout import RunLayout
from eosin.records import MetricRecord, Study, Variant, load_record
from eosin.storage import open_store
from tests.support.evaluation import export, make_config, make_run, patch_rows, write_patch_set

TASKS = ("first", "second", "third")
STEPS = (20, 40, 60)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Three teachers, each to be judged on three tasks of two data sets."""
    return make(tmp_path)


def make(folder: Path, tasks: tuple[str, ...] = TASKS) -> str:
    sets = [
        write_patch_set(folder / name, patch_rows(num_patients=6, per_class=2, label=name))
        for name in ("a", "b")
    ]
    config = make_config(
        [{"kind": "unsupervised", "name": name, "patch_set": sets[i % 2]} for i, name in enumerate(tasks)],
        baselines=[],
    )
    uri = make_run(folder, config)
    for step in STEPS:
        export(uri, config, step, seed=step)
    return uri


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the weights of each model are read."""
    counts: Counter[str] = Counter()
    real = shards_module.find_judged_model

    def counted(*args: Any) -> JudgedModel:
        found = real(*args)

        def load() -> Any:
            counts[found.name] += 1
            return found.load()

        return shards_module.replace(found, load=load)

    monkeypatch.setattr(shards_module, "find_judged_model", counted)
    return counts


def published(run: str) -> set[tuple[str, str]]:
    records = (
        load_record(MetricRecord, open_store(run), info.key)
        for info in open_store(run).list(RunLayout.METRICS)
        if info.key.endswith(".json")
    )  # fmt: skip
    return {(record.model, record.task) for record in records if record is not None and record.status == "ok"}


EVERYTHING = {(f"step-{step:08d}", task) for step in STEPS for task in TASKS}


@given(st.integers(0, 6), st.integers(1, 5), st.integers(1, 12))
def test_shares_make_up_the_whole_and_keep_models_together(
    num_models: int, num_tasks: int, num_shards: int
) -> None:
    every = [Evaluation("r", f"m{m}", f"t{t}") for m in range(num_models) for t in range(num_tasks)]
    shares = [share_of_evaluations(every, shard, num_shards) for shard in range(num_shards)]
    assert [each for share in shares for each in share] == every
    if num_models >= num_shards:
        models = [model for share in shares for model in {each.model for each in share}]
        assert len(models) == len(set(models)) == num_models
    elif every:
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("shard", "num_shards"), [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_cannot_be_is_refused(shard: int, num_shards: int) -> None:
    with pytest.raises(UserError, match="there is no shard"):
        share_of_evaluations([], shard, num_shards)


def test_two_shards_judge_everything_and_load_each_model_once(run: str, loads: Counter[str]) -> None:
    records = [record for shard in (0, 1) for record in steps.evaluate_shard(run, shard, 2)]
    assert {(record.model, record.task) for record in records} == published(run) == EVERYTHING
    assert set(loads) == {f"step-{step:08d}" for step in STEPS} and set(loads.values()) == {1}
    assert steps.evaluate_shard(run, 0, 1) == sorted(records, key=lambda r: (r.model, TASKS.index(r.task)))
    assert set(loads.values()) == {1}, "what is published is not judged again"


def test_a_dataset_is_opened_once_for_all_models(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from eosin.evaluation.tasks.unsupervised import UnsupervisedTask

    opened: Counter[str] = Counter()
    real = UnsupervisedTask.open

    def counted(self: UnsupervisedTask, run_uri: str) -> Any:
        opened[self.name] += 1
        return real(self, run_uri)

    monkeypatch.setattr(UnsupervisedTask, "open", counted)
    steps.evaluate_shard(run, 0, 1)
    assert opened == Counter(TASKS)


def test_ended_in_the_middle_it_goes_on_with_what_is_missing(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, done = shards_module.evaluate, []

    def killed(*args: Any, **kwargs: Any) -> MetricRecord:
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(real(*args, **kwargs))
        return done[-1]

    monkeypatch.setattr(shards_module, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        steps.evaluate_shard(run, 0, 1)
    assert len(published(run)) == 4
    monkeypatch.setattr(shards_module, "evaluate", real)
    steps.evaluate_shard(run, 0, 1)
    assert published(run) == EVERYTHING


def test_what_may_pass_holds_up_no_other_and_is_raised_at_the_end(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shards_module.evaluate

    def flaky(run_uri: str, model: str, task: str, **kwargs: Any) -> MetricRecord:
        if (model, task) == ("step-00000020", "second"):
            raise TransientError("the store is away")
        return real(run_uri, model, task, **kwargs)

    monkeypatch.setattr(shards_module, "evaluate", flaky)
    with pytest.raises(TransientError, match="the store is away"):
        steps.evaluate_shard(run, 0, 1)
    assert published(run) == EVERYTHING - {("step-00000020", "second")}


def test_nothing_to_judge_is_a_shard_with_nothing_to_do(tmp_path: Path) -> None:
    run = make(tmp_path, tasks=())
    told = steps.evaluation_shards(run, 2)
    assert [(each["shard"], each["num_shards"], each["teacher"]) for each in told] == [(0, 2, ""), (1, 2, "")]
    assert [steps.evaluate_shard(run, shard, 2) for shard in (0, 1)] == [[], []]
    with pytest.raises(UserError, match="0 shards do no work"):
        steps.evaluation_shards(run, 0)


def test_a_teacher_that_is_not_there_is_told_before_anything_is_judged(run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no teacher at"):
        steps.evaluation_shards(run, 2, f"file://{tmp_path}/none")
    teacher = f"{run}/teachers/step-00000040"
    told = steps.evaluation_shards(run, 1, teacher)
    records = steps.evaluate_shard(run, told[0]["shard"], 1, told[0]["teacher"])
    assert {record.model for record in records} == {teacher}


def test_shards_of_a_study_go_over_all_its_runs(tmp_path: Path) -> None:
    runs = {name: make(tmp_path / name, tasks=("first",)) for name in ("1", "2")}
    uri = f"file://{tmp_path}/study"
    variants = tuple(Variant(name=name, value=name, run=run, untrained="") for name, run in runs.items())
    store = open_store(uri)
    store.put(RunLayout.CONFIG, dump_config(make_config([])).encode())
    store.put(RunLayout.STUDY, Study(key="seed", variants=variants, heldout="").to_json())
    for shard in range(2):
        steps.evaluate_shard(uri, shard, 2)
    assert [len(published(run)) for run in runs.values()] == [3, 3]


def test_one_model_or_one_task_of_a_run_is_chosen(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[tuple[str, str]] = []
    told = lambda pairs, *_: judged.extend((each["model"], each["task"]) for each in pairs)  # noqa: E731
    monkeypatch.setattr(steps, "evaluate", told)
    newest = "step-00000060"
    steps.evaluate_chosen(run, newest, "", (0, 1))
    assert judged == [(newest, task) for task in TASKS]
    judged.clear()
    steps.evaluate_chosen(run, "", "second", (0, 1))
    assert {task for _, task in judged} == {"second"} and len(judged) == len(set(judged)) >= len(STEPS)
    judged.clear()
    steps.evaluate_chosen(run, newest, "third", (0, 1))
    assert judged == [(newest, "third")]
    for model, task, hint in [("", "secnd", "did you mean second?"), ("step-0000060", "", newest)]:
        with pytest.raises(UserError, match="has no") as caught:
            steps.evaluate_chosen(run, model, task, (0, 1))
        assert hint in caught.value.hint
