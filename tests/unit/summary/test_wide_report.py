"""A report of many tasks and models: each figure under its own heading, each reason told once."""

import re
from html import unescape
from pathlib import Path

from scipy import stats

from eosin.layout import RunLayout, model_name
from eosin.observability import RunLog
from eosin.records import MetricRecord, MetricValue
from eosin.storage import open_store
from eosin.summary.headline import all_lines, headline
from eosin.summary.html import scatter_charts
from eosin.summary.leaderboard import leaderboard
from eosin.summary.names import model_label, signed
from eosin.summary.results import Gap, Result, find_gaps, listed
from eosin.summary.summarize import summarize
from tests.support.summary import TASKS, fake_run, put_record, record, report_file


def _page(run: str) -> str:
    with RunLog("summarize", open_store(run)) as log:
        summarize(run, log=log)
    return report_file(run, RunLayout.SUMMARY_HTML)


def _cells(row: str, tag: str) -> list[str]:
    found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", row, flags=re.DOTALL)
    return [" ".join(unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in found]


def test_a_baseline_judged_on_some_tasks_keeps_its_column(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    store = open_store(run)
    put_record(store, record("timm:alpha", None, TASKS[0], 0.95))
    put_record(store, record("timm:beta", None, TASKS[1], 0.95))
    rows = _page(run).split("<tr>")
    heads = next(cells for row in rows if "timm:alpha" in (cells := _cells(row, "th")))
    for row in rows:
        found = dict(zip(heads, _cells(row, "td"), strict=False))
        if found.get("task") == "heldout" and found["metric"].startswith("RankMe"):
            assert (found["timm:alpha"], found["timm:beta"]) == ("45.8", "–")
            assert len(_cells(row, "td")) == len(heads)
        if found.get("task") == "textures-linear":
            assert (found["timm:alpha"], found["timm:beta"]) == ("–", "–")
            assert len(_cells(row, "td")) == len(heads)


def test_one_cause_is_one_line_whatever_it_struck() -> None:
    pairs = [(model, task, "failed", "no data") for task in ("a", "b") for model in ("m", "n")]
    alone = ("m", "c", "failed", "no data")
    assert find_gaps([*pairs, alone, alone]) == [
        Gap(("m", "n"), ("a", "b"), "failed", "no data"),
        Gap(("m",), ("c",), "failed", "no data"),
    ]


def test_a_long_list_ends_in_a_count() -> None:
    assert listed(tuple("abc"), "tasks") == "a, b, c"
    assert listed(tuple("abcdefgh"), "tasks") == "a, b, c, d, e, f and 2 more tasks"


def _result(task: str, model: str, step: int | None, mean: float, kind: str = "knn") -> Result:
    return Result(
        model=model, step=step, task=task, kind=kind, metric="balanced_accuracy", mean=mean, std=0.0,
        num_runs=1, status="ok", dataset_digest="d", protocol="p",
    )  # fmt: skip


def test_a_wide_table_is_cut_and_rows_without_a_figure_stay_out() -> None:
    tasks = [f"t{i}" for i in range(8)]
    results = [_result(task, "random-init", 0, 0.5) for task in tasks]
    results.append(_result("t7", "timm:alpha", None, 0.9))
    lines = headline(all_lines(results, []), results)
    blocks = leaderboard(lines, results, [], []).blocks(6)
    assert [[line.task for line in block.columns] for block in blocks] == [tasks[:6], tasks[6:]]
    assert ["timm:alpha" in [row.label for row in block.rows] for block in blocks] == [False, True]


def test_correlation_and_its_interval_are_scipys() -> None:
    means, ranks = (0.5, 0.7, 0.4, 0.9, 0.6), (9.0, 30.0, 12.0, 40.0, 11.0)
    judged = [_result("t", f"timm:{name}", None, mean) for name, mean in zip("abcde", means, strict=True)]
    free = [
        each.model_copy(update={"task": "u", "metric": "rankme", "mean": rank})
        for each, rank in zip(judged, ranks, strict=True)
    ]
    (chart,) = scatter_charts([*judged, *free])
    expected = stats.pearsonr([r.mean for r in free], [r.mean for r in judged])
    low, high = expected.confidence_interval()
    assert chart.series[0].name == f"t, r = {signed(expected.statistic)} ({signed(low)} to {signed(high)})"


def test_what_equals_its_beginning_is_counted_as_such(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    store = open_store(run)
    for model, step in (("random-init", 0), ("step-00000300", 300)):
        put_record(store, record(model, step, TASKS[1], 0.5))
    page = _page(run)
    assert "equal on 1" in page
    assert "+0.000 equal" not in page


def test_the_index_of_centres_heads_its_task_and_is_told_by_magnification(tmp_path: Path) -> None:
    task = {"kind": "centres", "name": "hospitals", "dataset": "s3://bucket/patches.csv"}
    run = fake_run(tmp_path, tasks=[*TASKS, task])
    metrics = {
        "robustness_index": MetricValue.of([0.81]),
        "same_class_neighbours": MetricValue.of([0.6]),
        "same_centre_neighbours": MetricValue.of([0.2], higher_is_better=False),
    }
    details = {
        "counts": {"<b>TUM": {"A": 41, "B": 7}},
        "by_mpp": {"0.5": {"robustness_index": 0.777}, "1": {}},
    }
    put_record(
        open_store(run),
        MetricRecord(
            model="step-00000300", step=300, task="hospitals", kind="centres", status="ok", metrics=metrics,
            details=details,
        ),
    )  # fmt: skip
    page = _page(run)
    rows = [_cells(row, "td") for row in page.split("<tr>")]
    assert sum(row[:2] == ["hospitals", "robustness index ↑"] for row in rows) == 2, (
        "headline and every metric"
    )
    assert sum(row[:1] == ["hospitals"] for row in rows) == 1 + len(metrics)
    assert ["<b>TUM", "41", "7"] in rows
    assert ["0.5", "0.777"] in rows
    assert ["1", "–"] in rows


def test_a_file_of_weights_is_called_by_its_name() -> None:
    assert model_label("timm:vit_s@s3://models/deep/a.safetensors") == "timm:vit_s@a.safetensors"
    assert model_label("timm:vit_s") == "timm:vit_s"


def test_parts_of_a_task_are_a_table_and_folds_count_once(tmp_path: Path) -> None:
    tasks = [
        {"kind": "expression", "name": "hest", "dataset": "s3://b/h"},
        {"kind": "knn", "name": "cross", "dataset": "s3://b/k", "folds": 4},
    ]
    run = fake_run(tmp_path, tasks=tasks)
    store, model = open_store(run), "step-00000300"
    details = {"pearson_by_gene": {"KRT8": 0.625, "MS4A1": 0.25}, "num_folds": 4}
    folds = {"num_folds": 4, "classes": ("a", "b"), "num_judged": 10, "confusion": ((8, 2), (4, 6))}
    for task, metric, told in (("hest", "pearson", details), ("cross", "balanced_accuracy", folds)):
        kind = next(each["kind"] for each in tasks if each["name"] == task)
        put_record(store, MetricRecord(
            model=model, step=300, task=task, kind=kind, status="ok", details=told,
            metrics={metric: MetricValue.of([0.4, 0.5, 0.6, 0.5])},
        ))  # fmt: skip
    page = _page(run)
    rows = [_cells(row, "td") for row in page.split("<tr>")]
    assert ["KRT8", "0.625"] in rows and ["MS4A1", "0.250"] in rows
    # 20 counts of ten samples are two runs, not four as there are folds.
    assert ["4", "1", "–"] in rows and ["2", "3", "–"] in rows


def test_many_tasks_fold_and_a_small_p_is_not_nought(tmp_path: Path) -> None:
    tasks = [{"kind": "knn", "name": f"knn-{n}", "dataset": "s3://bucket/labelled"} for n in range(12)]
    run = fake_run(tmp_path, tasks=[*TASKS, *tasks])
    store, patients = open_store(run), tuple(f"p{n % 30}" for n in range(90))
    for task in tasks:
        for model, step, quality in (("random-init", 0, 0.0), (model_name(300), 300, 1.0)):
            made = record(model, step, task, quality)
            put_record(
                store,
                made.model_copy(update={"details": made.details.model_copy(update={"patients": patients})}),
            )
    page = _page(run)
    assert re.findall(r"p = 2\.00e-04", page) and "p = 0.000" not in page
    assert "(p = 2.00e-04)" in report_file(run, RunLayout.SUMMARY_MD)
    curves = page[page.index('<div class="bytask">') : page.index("<h3>Label-free figures")]
    shown, folded = curves.split("<summary>7 more: the other tasks</summary>")
    assert (shown.count("<h3>"), folded.count("<h3>")) == (8, 7)
    assert all(curves.count(f"<{tag}") == curves.count(f"</{tag}>") for tag in ("div", "details", "h3"))
