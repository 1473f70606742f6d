"""A study: runs that differ in one key, judged on the same data, in one report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from eosin import study
from eosin.config import RunConfig
from eosin.errors import UserError
from eosin.layout import RANDOM_INIT, RunLayout, model_name, record_key
from eosin.observability import RunLog
from eosin.records import IndexPin, MetricRecord, MetricValue, Study
from eosin.runs import load_pin, load_run, pin_index
from eosin.storage import open_store
from eosin.summary.study_report import report_study
from tests.support.summary import slide_rows, write_index

TASKS = [{"kind": "unsupervised", "name": "heldout"}, {"kind": "robustness", "name": "robust"},
         {"kind": "knn", "name": "knn", "dataset": "s3://b/labelled"}]  # fmt: skip


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"file://{tmp_path}/studies/s"


def config(**sections: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"slides": {"uri": "s3://b/slides"}, "evaluate": {"tasks": TASKS}, **sections}
    )


@pytest.mark.parametrize(
    ("vary", "sections", "names"),
    [
        ("slides", {}, ["0.01", "0.1", "0.3", "1"]),
        ("patches", {}, ["10", "100", "1000", "10000", "all"]),
        ("magnifications", {"patches": {"mpp": [0.25, 0.5]}}, ["0.25", "0.5", "0.25-0.5"]),
        ("init", {"model": {"init": "timm:vit_x.dino"}}, ["random", "timm-vit_x.dino"]),
        ("method", {}, ["dino", "dinov2"]),
    ],
)
def test_each_axis_has_its_usual_values(
    uri: str, vary: str, sections: dict[str, Any], names: list[str]
) -> None:
    made = study.plan_study(uri, config(**sections), vary)
    assert [variant.name for variant in made.variants] == names
    assert all(load_run(variant.run).index.uri == load_run(uri).index.uri for variant in made.variants)


def test_runs_differ_in_the_key_alone_and_share_the_held_out_patches(uri: str) -> None:
    made = study.plan_study(uri, config(), "slides", [0.5, 1.0])
    first, second = (load_run(variant.run) for variant in made.variants)
    assert first.patches.slide_fraction == 0.5 and second.patches.slide_fraction == 1.0
    assert first.patches.model_copy(update={"slide_fraction": 1.0}) == second.patches
    sets = [task.patch_set for task in first.evaluate.tasks if hasattr(task, "patch_set")]
    assert sets == [f"{uri}/patches/heldout"] * 2 == [made.heldout] * 2


def test_numbers_mean_the_same_after_their_way_through_kubeflow(uri: str) -> None:
    before = study.plan_study(uri, config(), "patches.num_distinct", [10, 1000, "all"])
    assert study.plan_study(uri, config(), "patches.num_distinct", [10.0, 1000.0, "all"]) == before
    assert load_run(before.variants[2].run).patches.num_distinct is None


def test_a_baseline_is_judged_once_where_it_is_the_same_model(uri: str) -> None:
    same = study.plan_study(uri, config(), "slides", [0.5, 1.0])
    assert [load_run(v.run).evaluate.baselines for v in same.variants] == [(RANDOM_INIT,), ()]
    other = study.plan_study(
        f"{uri}2", config(), "model.arch", ["vit_tiny_patch16_224", "vit_small_patch16_224"]
    )
    assert [load_run(v.run).evaluate.baselines for v in other.variants] == [(RANDOM_INIT,)] * 2
    inits = study.plan_study(
        f"{uri}3", config(), "init", ["random", "timm:vit_x", "s3://b/t/model.safetensors"]
    )
    assert [load_run(v.run).evaluate.baselines for v in inits.variants] == [
        (RANDOM_INIT,), ("timm:vit_x",), ("s3://b/t",),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("vary", "values", "words"),
    [
        ("slidez", [], "cannot vary 'slidez'"),
        ("init", [], "needs two values"),
        ("slides", [0.5], "needs two values"),
        ("slides", [0.5, 0.5], "are alike: 0.5"),
        ("slides", [0.5, 2], "slide_fraction"),
        ("patches.slide_fractoin", [0.5, 1], "did you mean patches.slide_fraction"),
        ("train.num_steps", ["many", "few"], "num_steps"),
    ],
)
def test_refused_before_any_run_is_published(uri: str, vary: str, values: list[Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        study.plan_study(uri, config(), vary, values)
    assert not list(open_store(uri).list(RunLayout.VARIANTS)) and not open_store(uri).exists(RunLayout.STUDY)


def test_a_study_goes_on_only_as_it_was_begun(uri: str) -> None:
    made = study.plan_study(uri, config(), "slides", [0.5, 1.0])
    study.plan_study(uri, config(), "slides", [0.5, 1.0])
    open_store(made.variants[0].run).put(RunLayout.checkpoint_marker(3), b"{}")
    with pytest.raises(UserError, match=r"was begun with patches\.slide_fraction: 0\.5, 1"):
        study.plan_study(uri, config(), "slides", [0.5, 0.7])


def test_a_study_without_anything_trained_is_planned_again(uri: str) -> None:
    study.plan_study(uri, config(), "slides", [0.5, 1.0])
    made = study.plan_study(uri, config(), "slides", [0.25, 1.0])
    assert study.load_study(uri) == made
    folders = {info.key.split("/")[1] for info in open_store(uri).list(RunLayout.VARIANTS)}
    assert folders == {"0.25", "1"} == {variant.name for variant in made.variants}


def test_a_study_that_cannot_be_leaves_nothing_behind(uri: str) -> None:
    with pytest.raises(UserError, match="alike"):
        study.plan_study(uri, config(), "slides", [0.5, 0.5])
    assert not list(open_store(uri).list())


def test_every_run_reads_the_snapshot_of_the_study(uri: str) -> None:
    made = study.plan_study(uri, config(), "slides", [0.5, 1.0])
    pin = pin_index(uri, IndexPin(index_uri="s3://b/i", snapshot_id="1"))
    assert study.pin_variants(uri) == study.pin_variants(uri) == [v.run for v in made.variants]
    assert [load_pin(v.run) for v in made.variants] == [pin, pin]


def test_a_run_that_has_pinned_another_snapshot_is_refused(uri: str) -> None:
    made = study.plan_study(uri, config(), "slides", [0.5, 1.0])
    pin_index(uri, IndexPin(index_uri="s3://b/i", snapshot_id="1"))
    pin_index(made.variants[1].run, IndexPin(index_uri="s3://b/i", snapshot_id="2"))
    with pytest.raises(UserError, match="another snapshot"):
        study.pin_variants(uri)


def judged(made: Study, place: int, model: str, step: int | None, values: Sequence[float]) -> None:
    record = MetricRecord(
        model=model, step=step, task="knn", kind="knn", status="ok" if values else "failed",
        reason="" if values else "<b>no</b> images",
        metrics={"balanced_accuracy": MetricValue.of(values)} if values else {},
    )  # fmt: skip
    _put(made, place, record)


def _put(made: Study, place: int, record: MetricRecord) -> None:
    key = RunLayout.metric(record_key(record.model), "knn")
    open_store(made.variants[place].run).put(key, record.to_json())


def test_the_report_sets_the_newest_teachers_side_by_side(uri: str) -> None:
    made = study.plan_study(uri, config(), "slides", [0.1, 1.0])
    judged(made, 0, RANDOM_INIT, 0, [0.3])
    judged(made, 0, model_name(10), 10, [0.4])
    judged(made, 0, model_name(20), 20, [0.5, 0.6])
    judged(made, 1, model_name(20), 20, [0.8])
    result = report_study(uri, log=RunLog("test"))
    assert result.headline == {"0.1 knn balanced_accuracy": 0.55, "1 knn balanced_accuracy": 0.8}
    store = open_store(uri)
    told = json.loads(store.get(RunLayout.SUMMARY_JSON))["variants"]
    assert [(v["step"], v["figures"][0]["before_training"]) for v in told] == [(20, 0.3), (20, 0.3)]
    assert "| knn | balanced accuracy ↑ | 0.550 ± 0.071 | 0.800 |" in store.get(RunLayout.SUMMARY_MD).decode()
    page = store.get(RunLayout.SUMMARY_HTML).decode()
    assert "patches.slide_fraction" in page and page.count('<svg class="chart"') == 2
    assert "src=" not in page and "Not there" not in page


def test_only_what_chance_does_not_explain_is_called_best(uri: str) -> None:
    made = study.plan_study(uri, config(), "slides", [0.1, 0.5, 1.0])
    for place, values in enumerate(
        ([0.30] * 5, [0.297, 0.301, 0.299, 0.3, 0.302], [0.41, 0.4, 0.42, 0.43, 0.39])
    ):
        judged(made, place, model_name(20), 20, values)
    report_study(uri, log=RunLog("test"))
    told = open_store(uri).get(RunLayout.SUMMARY_MD).decode()
    assert told.count("**") == 2 and "**0.410 ± 0.016**" in told
    judged(made, 2, model_name(20), 20, [0.301])
    judged(made, 1, model_name(20), 20, [0.297])
    report_study(uri, log=RunLog("test"))
    assert "**" not in open_store(uri).get(RunLayout.SUMMARY_MD).decode()


def test_a_share_of_the_slides_says_how_many_that_is(uri: str, tmp_path: Path) -> None:
    made = study.plan_study(uri, config(), "slides", [0.5, 1.0])
    for variant in made.variants:
        write_index(open_store(variant.run), f"file://{tmp_path}/index", slide_rows())
    judged(made, 0, model_name(20), 20, [0.5])
    report_study(uri, log=RunLog("test"))
    told = json.loads(open_store(uri).get(RunLayout.SUMMARY_JSON))["variants"]
    half, whole = (variant["num_slides"] for variant in told)
    assert 1 <= half < whole <= 8 and half == -(-whole // 2)
    assert f"0.5 ({half} slide" in open_store(uri).get(RunLayout.SUMMARY_HTML).decode()


@pytest.mark.parametrize(("top1", "shown"), [((0.5, 0.8), False), ((0.5, 0.9), True)])
def test_top1_is_shown_only_where_it_is_not_balanced_accuracy_again(
    uri: str, top1: tuple[float, float], shown: bool
) -> None:
    made = study.plan_study(uri, config(), "slides", [0.1, 1.0])
    for place, (value, other) in enumerate(zip((0.5, 0.8), top1, strict=True)):
        metrics = {"balanced_accuracy": MetricValue.of([value]), "top1": MetricValue.of([other])}
        _put(made, place, MetricRecord(
            model=model_name(20), step=20, task="knn", kind="knn", status="ok", metrics=metrics,
        ))  # fmt: skip
    report_study(uri, log=RunLog("test"))
    store = open_store(uri)
    assert ("top-1 accuracy" in store.get(RunLayout.SUMMARY_HTML).decode()) is shown
    assert ("top-1 accuracy" in store.get(RunLayout.SUMMARY_MD).decode()) is shown
    assert '"metric": "top1"' in store.get(RunLayout.SUMMARY_JSON).decode()


def test_half_a_study_still_gives_a_report_that_says_what_is_missing(uri: str) -> None:
    made = study.plan_study(uri, config(), "slides", [0.1, 1.0])
    judged(made, 0, model_name(20), 20, [])
    open_store(made.variants[0].run).put("metrics/x/knn.json", b"{")
    result = report_study(uri, log=RunLog("test"))
    assert (result.headline, result.num_ok, result.num_not_ok) == ({}, 0, 1)
    page = open_store(uri).get(RunLayout.SUMMARY_HTML).decode()
    assert "is not a MetricRecord" in page and "1: no teacher of it has been judged" in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page


def test_no_study_no_report(uri: str) -> None:
    with pytest.raises(UserError, match="no study at"):
        report_study(uri, log=RunLog("test"))


def test_odcorr_is_set_against_accuracy_over_the_models_of_all_runs(uri: str) -> None:
    made = study.plan_study(uri, config(), "slides", [0.1, 0.5, 1.0])
    odcorr, accuracy = [0.5, 0.41, 0.33, 0.3, 0.22, 0.24], [0.41, 0.52, 0.5, 0.61, 0.7, 0.62]
    figures = iter(zip(odcorr, accuracy, strict=True))

    def put(place: int, name: str, step: int, digest: str, x: float, y: float) -> None:
        for task, metric, value in (("heldout", "odcorr", x), ("knn", "balanced_accuracy", y)):
            record = MetricRecord(
                model=name, step=step, task=task, kind="knn", status="ok", model_digest=digest,
                metrics={metric: MetricValue.of([value], higher_is_better=metric != "odcorr")},
            )  # fmt: skip
            open_store(made.variants[place].run).put(
                RunLayout.metric(record_key(name), task), record.to_json()
            )

    for place in range(3):
        put(place, RANDOM_INIT, 0, "the same in all", 0.6, 0.3)
        for step in (10, 20):
            put(place, model_name(step), step, f"{place} {step}", *next(figures))
    report_study(uri, log=RunLog("test"))
    found = stats.pearsonr([0.6, *odcorr], [0.3, *accuracy])
    low, high = found.confidence_interval(0.95)
    told = f"knn, r = −{abs(found.statistic):.3f} (−{abs(low):.3f} to −{abs(high):.3f}), over 7 models"
    document = json.loads(open_store(uri).get(RunLayout.SUMMARY_JSON))
    assert document["correlations"] == [f"ODCorr against balanced accuracy, {told}"]
    page = open_store(uri).get(RunLayout.SUMMARY_HTML).decode()
    assert "Label-free figures against accuracy" in page and f"r = −{abs(found.statistic):.3f}" in page
    assert told in open_store(uri).get(RunLayout.SUMMARY_MD).decode()
