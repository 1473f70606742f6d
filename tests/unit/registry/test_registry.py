"""The pointer of a model moves only to what has earned it, one conditional put at a time."""

import threading
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from eosin.cli.app import invoke
from eosin.errors import PermanentError, UserError
from eosin.layout import TEACHER_CARD, RegistryLayout, RunLayout, model_name
from eosin.observability import RunLog
from eosin.records import MetricRecord, MetricValue, RegisteredModel, RegistryEntry, TeacherCard, load_record
from eosin.records.details import ClassifierDetails, Details
from eosin.registry import entries
from eosin.registry.entries import find_entry, roll_back
from eosin.registry.promote import Promotion, Rule, promote
from eosin.storage import Store, open_store
from tests.support import summary
from tests.support.summary import TASKS, fake_run, record

NAME = "vits16"
STEP = 300
NUM_CLASSES = 3


class World:
    """A registry, and runs whose teachers differ in how often they are right."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.registry = f"file://{root}/registry"

    def run(self, name: str, right: float | None = None) -> Store:
        """A finished run with weights of its own; `right` is the share its newest teacher gets right."""
        store = open_store(fake_run(self.root / name))
        write_weights(store, name.encode())
        if right is not None:
            self.judge(store, model_name(STEP), right)
        return store

    def judge(self, store: Store, model: str, right: float, *, num_samples: int = 400) -> None:
        for task in TASKS[1:]:
            put_record(store, labelled_record(model, task["name"], right, num_samples=num_samples))

    def promote(self, run: Store, **rule: object) -> Promotion:
        return promote(self.registry, NAME, run.uri, rule=Rule(**rule), log=RunLog("test"))  # type: ignore[arg-type]

    def entry(self) -> RegistryEntry:
        return find_entry(self.registry, NAME)


def card_of(store: Store, model: str) -> TeacherCard:
    """Of a teacher of the run at `store`, or, by URI, of another run's."""
    where, key = (open_store(model), TEACHER_CARD) if "/" in model else (store, RunLayout.teacher_card(model))
    card = load_record(TeacherCard, where, key)
    assert card is not None
    return card


def write_weights(store: Store, weights: bytes) -> None:
    card = card_of(store, model_name(STEP)).model_copy(update={"weights_sha256": sha256(weights).hexdigest()})
    store.put(RunLayout.teacher_weights(card.name), weights)
    store.put(RunLayout.teacher_card(card.name), card.to_json())


def put_record(store: Store, each: MetricRecord) -> None:
    """As evaluation publishes it: with the weights that the model has now."""
    judged = each.model_copy(update={"weights_sha256": card_of(store, each.model).weights_sha256})
    summary.put_record(store, judged)


def labelled_record(model: str, task: str, right: float, *, num_samples: int = 400) -> MetricRecord:
    """Right on a share `right` of the samples, the better of two models on all that the other is."""
    truth = [i % NUM_CLASSES for i in range(num_samples)]
    place = np.random.default_rng(3).permutation(num_samples) / num_samples
    predicted = [t if p < right else (t + 1) % NUM_CLASSES for t, p in zip(truth, place, strict=True)]
    share = float(np.mean([t == p for t, p in zip(truth, predicted, strict=True)]))
    made = record(model, None, next(each for each in TASKS if each["name"] == task), 0.5)
    details = ClassifierDetails(truth=truth, predicted=[predicted])
    metrics = {"balanced_accuracy": MetricValue.of([share]), "top1": MetricValue.of([share])}
    return made.model_copy(update={"details": details, "metrics": metrics})


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def current(world: World) -> Store:
    """The run of the first version."""
    run = world.run("first")
    assert world.promote(run).status == "promoted"
    return run


def challenger(world: World, current: Store, right: float, was: float) -> Store:
    """A run that holds records of its own teacher and of the current one."""
    run = world.run("second", right)
    world.judge(run, teacher_of(current), was)
    return run


def teacher_of(run: Store) -> str:
    return f"{run.uri}/teachers/{model_name(STEP)}"


def test_the_first_model_is_promoted_without_a_contest(world: World, current: Store) -> None:
    entry = world.entry()
    assert (entry.current, entry.current_model.teacher) == (1, teacher_of(current))
    assert entry.current_model.snapshot_id == "0123456789abcdef"
    assert [move.action for move in entry.history] == ["promote"]


def test_promoted_again_nothing_changes(world: World, current: Store) -> None:
    before = world.entry()
    assert world.promote(current).status == "unchanged"
    assert world.entry() == before


def test_a_better_one_takes_its_place_and_the_history_is_kept(world: World, current: Store) -> None:
    result = world.promote(challenger(world, current, 0.9, 0.6))
    assert (result.status, result.version) == ("promoted", 2)
    entry = world.entry()
    assert [version.version for version in entry.versions] == [1, 2]
    assert entry.versions[0].teacher == teacher_of(current)
    assert entry.history[-1].why == result.why and len(result.why) == 2


@pytest.mark.parametrize(
    ("right", "was", "rule", "reason"),
    [
        (0.5, 0.8, {}, "worse by"),
        (0.7, 0.7, {}, "no better"),
        (0.805, 0.8, {}, "may be chance"),
        (0.9, 0.6, {"margin": 0.5}, "less than the margin of 0.5"),
        (0.805, 0.8, {"metrics": ("textures-knn/top1",)}, "exchange of the results of 400 images"),
    ],
)
def test_refused_with_the_reason(
    world: World, current: Store, right: float, was: float, rule: dict[str, object], reason: str
) -> None:
    result = world.promote(challenger(world, current, right, was), **rule)
    assert result.status == "refused" and result.version == 1
    assert result.why and all(reason in why for why in result.why)
    assert world.entry().current == 1 and len(world.entry().history) == 1


def test_every_named_metric_must_be_won(world: World, current: Store) -> None:
    run = challenger(world, current, 0.9, 0.6)
    put_record(run, labelled_record(model_name(STEP), "textures-linear", 0.4))
    refused = world.promote(run)
    assert refused.status == "refused"
    assert [why.split("/")[0] for why in refused.why] == ["textures-linear"]
    assert world.promote(run, metrics=("textures-knn/balanced_accuracy",)).status == "promoted"


def test_accuracy_is_tested_on_the_predictions_that_are_kept(world: World, current: Store) -> None:
    result = world.promote(challenger(world, current, 0.9, 0.6), metrics=("textures-knn/top1",))
    assert result.status == "promoted" and "exchange of the results of 400 images" in result.why[0]


def judged_by_runs(store: Store, model: str, values: list[float], over: str = "", **details: object) -> None:
    """A record of a metric that keeps a value a run and no predictions."""
    made = record(model, None, TASKS[2], 0.5)
    told = Details.model_validate({"interval_over": over, **details})
    put_record(store, made.model_copy(update={"metrics": {"dice": MetricValue.of(values)}, "details": told}))


@pytest.mark.parametrize(
    ("over", "margin", "status", "reason"),
    [
        (
            "1 patients, too few for an interval (6 are needed)",
            0.05,
            "refused",
            "on 1 patients: 6 are needed",
        ),
        ("5 folds of 5 patients", 0.05, "refused", "on 5 patients: 6 are needed"),
        ("30 patients", 0.0, "refused", "says nothing of other patients: give a margin"),
        ("30 patients", 0.05, "promoted", "exchange of 5 and 5 runs"),
    ],
)
def test_runs_that_agree_are_not_patients_that_agree(
    world: World, current: Store, over: str, margin: float, status: str, reason: str
) -> None:
    run = world.run("second")
    judged_by_runs(run, model_name(STEP), [0.81, 0.82, 0.83, 0.82, 0.81], over)
    judged_by_runs(run, teacher_of(current), [0.7, 0.71, 0.72, 0.7, 0.71], over)
    result = world.promote(run, metrics=("textures-linear/dice",), margin=margin)
    assert (result.status, reason in result.why[0]) == (status, True), result.why
    alone = world.promote(run, metrics=("textures-linear/dice",), margin=0.5)
    assert alone.status != "promoted"


def test_records_of_before_a_change_of_the_task_are_not_compared(world: World, current: Store) -> None:
    run = challenger(world, current, 0.9, 0.6)
    old = labelled_record(teacher_of(current), "textures-knn", 0.6)
    told = old.details.model_copy(update={"hyperparameters": {"k": 5}})
    put_record(run, old.model_copy(update={"details": told}))
    result = world.promote(run)
    assert result.status == "refused" and "other data or protocols" in result.why[0]
    put_record(run, old.model_copy(update={"dataset": "s3://elsewhere/textures"}))
    result = world.promote(run)
    assert result.status == "refused" and "was judged on s3://elsewhere/textures" in result.why[0]


@pytest.mark.parametrize(
    ("new", "old", "status", "reason"),
    [
        (
            [0.81, 0.82, 0.83, 0.82, 0.81],
            [0.7, 0.71, 0.72, 0.7, 0.71],
            "promoted",
            "exchange of 5 and 5 runs",
        ),
        ([0.81, 0.62, 0.83, 0.72, 0.61], [0.7, 0.71, 0.72, 0.7, 0.68], "refused", "may be chance"),
        ([0.9, 0.91], [0.5, 0.51], "refused", "may be chance"),  # two runs a side can never be enough
        ([0.9], [0.5], "refused", "give a margin"),
    ],
)
def test_a_metric_with_a_value_a_run_is_tested_over_runs(
    world: World, current: Store, new: list[float], old: list[float], status: str, reason: str
) -> None:
    run = world.run("second")
    judged_by_runs(run, model_name(STEP), new)
    judged_by_runs(run, teacher_of(current), old)
    result = world.promote(run, metrics=("textures-linear/dice",))
    assert (result.status, reason in result.why[0]) == (status, True), result.why


def test_the_margin_alone_decides_where_one_value_leaves_nothing_to_test(
    world: World, current: Store
) -> None:
    run = world.run("second")
    judged_by_runs(run, model_name(STEP), [0.9])
    judged_by_runs(run, teacher_of(current), [0.5])
    rule = {"metrics": ("textures-linear/dice",)}
    assert world.promote(run, **rule, margin=0.41).status == "refused"
    result = world.promote(run, **rule, margin=0.3)
    assert result.status == "promoted" and "has no test: the margin of 0.3 decides" in result.why[0]


def test_lower_is_better_where_the_metric_says_so(world: World, current: Store) -> None:
    run = challenger(world, current, 0.9, 0.6)
    put_record(run, record(teacher_of(current), None, TASKS[0], 0.1))
    rule = {"metrics": ("heldout/odcorr",), "alpha": 1.0}
    put_record(run, record(model_name(STEP), STEP, TASKS[0], 0.05))
    assert "worse by" in world.promote(run, **rule).why[0]
    put_record(run, record(model_name(STEP), STEP, TASKS[0], 0.9))
    assert world.promote(run, **rule).status == "promoted"


def test_a_current_model_that_was_not_judged_is_not_beaten(world: World, current: Store) -> None:
    result = world.promote(world.run("second", 0.9))
    assert result.status == "refused"
    assert f"--model {teacher_of(current)}" in result.why[0]


def test_a_teacher_that_was_overwritten_since_it_was_judged_is_seen(world: World, current: Store) -> None:
    run = challenger(world, current, 0.9, 0.6)
    run.put(RunLayout.teacher_weights(model_name(STEP)), b"of another training")
    with pytest.raises(UserError, match=r"model.safetensors is not the file that model.json beside it names"):
        world.promote(run)
    write_weights(run, b"of another training")
    result = world.promote(run)
    assert result.status == "refused" and "was judged by other weights than its own" in result.why[0]
    world.judge(run, model_name(STEP), 0.9)
    write_weights(current, b"over what was promoted")
    world.judge(run, teacher_of(current), 0.6)
    result = world.promote(run)
    assert result.status == "refused" and f"{teacher_of(current)} was judged by other" in result.why[0]
    write_weights(current, b"first")
    world.judge(run, teacher_of(current), 0.6)
    assert world.promote(run).status == "promoted"


def test_a_record_that_names_no_weights_promotes_nothing(world: World, current: Store) -> None:
    run = challenger(world, current, 0.9, 0.6)
    summary.put_record(run, labelled_record(model_name(STEP), "textures-knn", 0.9))
    result = world.promote(run)
    assert (
        result.status == "refused" and "unknown ones" in result.why[0] and "eosin evaluate" in result.why[0]
    )


def test_figures_on_other_data_are_not_compared(world: World, current: Store) -> None:
    run = challenger(world, current, 0.9, 0.6)
    other = labelled_record(teacher_of(current), "textures-knn", 0.6)
    put_record(run, other.model_copy(update={"dataset_digest": "e" * 64}))
    result = world.promote(run)
    assert result.status == "refused" and "other data" in result.why[0]


def test_other_samples_are_no_paired_test(world: World, current: Store) -> None:
    run = world.run("second", 0.9)
    world.judge(run, teacher_of(current), 0.6, num_samples=300)
    result = world.promote(run, margin=0.1)
    assert result.status == "refused" and all("judged on other samples" in why for why in result.why)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"metrics": ("textures/balanced_accuracy",)}, "is not TASK/METRIC"),
        ({"metrics": ("textures-knn",)}, "is not TASK/METRIC"),
        ({"metrics": ("textures-knn/acuracy",)}, "has no metric"),
        ({"margin": -0.1}, "would promote what is worse"),
        ({"alpha": 0.0}, "no level of significance"),
    ],
)
def test_a_rule_that_makes_no_sense_is_a_users_error(
    world: World, current: Store, rule: dict[str, object], message: str
) -> None:
    run = challenger(world, current, 0.9, 0.6)
    with pytest.raises(UserError, match=message):
        world.promote(run, **rule)


def test_a_run_without_the_teacher_is_a_users_error(world: World) -> None:
    run = world.run("first")
    with pytest.raises(UserError, match="has no teacher step-00000007"):
        promote(world.registry, NAME, run.uri, model="step-00000007", log=RunLog("test"))
    run.delete([RunLayout.TRAINING_DONE])
    with pytest.raises(UserError, match="has not ended training"):
        world.promote(run)


def test_rollback_and_forth_keeps_every_move(world: World, current: Store) -> None:
    run = challenger(world, current, 0.9, 0.6)
    world.promote(run)
    assert roll_back(world.registry, NAME, why="bad on scanner X").current == 1
    entry = world.entry()
    assert entry.history[-1].why == ("bad on scanner X",) and len(entry.versions) == 2
    assert world.promote(run).version == 2, "the version it had"
    assert [move.action for move in world.entry().history] == ["promote", "promote", "rollback", "promote"]
    assert roll_back(world.registry, NAME, to=2).history == world.entry().history
    assert roll_back(world.registry, NAME).current == 1
    with pytest.raises(UserError, match="no version before 1"):
        roll_back(world.registry, NAME)
    with pytest.raises(UserError, match="no version 9"):
        roll_back(world.registry, NAME, to=9)


def test_a_promotion_between_reading_and_writing_is_not_lost(
    world: World, current: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = challenger(world, current, 0.9, 0.6), world.run("third", 0.8)
    world.judge(quick, teacher_of(current), 0.6)
    world.judge(slow, teacher_of(quick), 0.8)
    real, raced = RegistryEntry.from_json, []

    def read_then_lose(data: bytes, *, source: str) -> RegistryEntry:
        entry = real(data, source=source)
        if not raced:
            raced.append(True)
            assert world.promote(quick).status == "promoted"
        return entry

    monkeypatch.setattr(RegistryEntry, "from_json", read_then_lose)
    assert world.promote(slow).version == 3
    teachers = [version.teacher for version in world.entry().versions]
    assert teachers == [teacher_of(run) for run in (current, quick, slow)]
    assert "0.9 against 0.8" in world.entry().history[-1].why[0], "judged against the one that was faster"


def test_promotions_all_at_once_on_s3_lose_no_move(bucket_uri: str) -> None:
    model = RegisteredModel(
        version=0, run="s3://b/r", model="m", teacher="s3://b/r/teachers/m", weights_sha256="",
        index_uri="s3://b/i", snapshot_id="s",
    )  # fmt: skip
    done: list[str] = []

    def register(sha256: str) -> None:
        def change(entry: RegistryEntry | None) -> RegistryEntry:
            return entries.added(entry, NAME, model.model_copy(update={"weights_sha256": sha256}), ())

        entries.change_entry(bucket_uri, NAME, change)
        done.append(sha256)

    threads = [threading.Thread(target=register, args=(f"{number:064d}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry = find_entry(bucket_uri, NAME)
    assert sorted(version.weights_sha256 for version in entry.versions) == sorted(done)
    assert len(done) == 4 and entry.current == 4
    assert [move.version for move in entry.history] == [1, 2, 3, 4]


def test_a_damaged_entry_is_never_replaced(world: World, current: Store) -> None:
    store, key = open_store(world.registry), RegistryLayout.entry(NAME)
    damaged = store.get(key).replace(b'"current": 1', b'"current": 5')
    store.put(key, damaged)
    with pytest.raises(PermanentError, match="current version 5"):
        world.promote(current)
    assert store.get(key) == damaged


@pytest.mark.parametrize("name", ["", "a/b", "../x", "Big", "x" * 64])
def test_a_name_that_is_no_key_is_a_users_error(world: World, name: str) -> None:
    with pytest.raises(UserError, match="cannot be the name"):
        entries.read_entry(world.registry, name)


def test_the_command_shows_promotes_and_rolls_back(
    world: World, current: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run = challenger(world, current, 0.9, 0.6)
    assert invoke(["registry", "promote", world.registry, NAME, run.uri, "--margin", "0.01"]) == 0
    assert invoke(["registry", "rollback", world.registry, NAME, "--why", "slow"]) == 0
    assert invoke(["registry", "show", world.registry]) == 0
    shown = capsys.readouterr().out
    assert "promoted, version 2 is the current one" in shown and "slow" in shown
    assert f"{NAME}: version 1, {teacher_of(current)}" in shown
    assert invoke(["registry", "show", world.registry, "vitb"]) == 2
    assert f"there are: {NAME}" in capsys.readouterr().err


def test_the_component_keeps_its_verdict_as_an_artifact(world: World, current: Store, tmp_path: Path) -> None:
    from eosin_components.tasks import promote as component
    from kfp import dsl

    run = challenger(world, current, 0.5, 0.6)
    verdict = dsl.Markdown(uri=str(tmp_path / "verdict.md"))
    status = component.python_func(
        run=run.uri, registry=world.registry, name=NAME, judge_by=[], margin=0.0, alpha=0.05, report="there",
        metrics=dsl.Metrics(), verdict=verdict,
    )  # fmt: skip
    assert status == "refused"
    assert "worse by 0.1" in (tmp_path / "verdict.md").read_text()


@pytest.mark.parametrize(
    ("patients", "reason"),
    [(1, "on 1 patients: 6 are needed"), (5, "on 5 patients: 6 are needed"), (8, "promoted")],
)
def test_few_patients_promote_nothing(world: World, current: Store, patients: int, reason: str) -> None:
    run = world.run("second")
    store = open_store(run.uri)
    for model, right in ((model_name(STEP), 0.9), (teacher_of(current), 0.6)):
        made = labelled_record(model, "textures-knn", right)
        names = tuple(f"p{i % patients}" for i in range(400))
        put_record(
            store, made.model_copy(update={"details": made.details.model_copy(update={"patients": names})})
        )
    result = world.promote(run, metrics=("textures-knn/balanced_accuracy",))
    assert reason in (result.status, *result.why) or reason in result.why[0]


def test_mean_and_test_must_point_the_same_way(world: World, current: Store) -> None:
    """The mean over runs says better, what was kept of the same images says worse."""
    run = world.run("second")
    store = open_store(run.uri)
    for model, right, mean in ((model_name(STEP), 0.6, 0.9), (teacher_of(current), 0.9, 0.6)):
        made = labelled_record(model, "textures-knn", right)
        put_record(store, made.model_copy(update={"metrics": {"balanced_accuracy": MetricValue.of([mean])}}))
    result = world.promote(run, metrics=("textures-knn/balanced_accuracy",))
    assert result.status == "refused"
    assert "they disagree" in result.why[0]
