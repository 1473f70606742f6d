"""The report of a whole run, of half a run, and of one that lies to it."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image

from eosin.errors import UserError
from eosin.layout import RunLayout
from eosin.observability import RunLog
from eosin.records import StepFailure, publish_once
from eosin.records.details import ExamplePicture
from eosin.storage import open_store
from eosin.summary.summarize import RunSummary, SummaryResult, summarize
from tests.support.summary import HOSTILE, STEPS, TASKS, fake_run, jpeg, put_record, record, report_file


def _summarize(run: str) -> SummaryResult:
    return summarize(run, log=RunLog("summarize-test"))


def _summary(run: str) -> dict[str, Any]:
    _summarize(run)
    summary: dict[str, Any] = json.loads(report_file(run, RunLayout.SUMMARY_JSON))
    schema = RunSummary.model_json_schema(mode="serialization")
    jsonschema.validate(summary, schema, cls=jsonschema.Draft202012Validator)
    assert set(summary) == set(RunSummary.model_fields)
    return summary


def _status(summary: dict[str, Any], model: str, task: str) -> set[tuple[str, str]]:
    return {
        (r["status"], r["reason"]) for r in summary["results"] if (r["model"], r["task"]) == (model, task)
    }


class _Page(HTMLParser):
    """Tags, attributes and text of a page; complains of a tag that is not closed."""

    VOID = {"meta", "img", "link", "br"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _page(run: str) -> _Page:
    _summarize(run)
    return _Page(report_file(run, RunLayout.SUMMARY_HTML))


def test_the_json_is_the_contract_for_machines(tmp_path: Path) -> None:
    summary = _summary(fake_run(tmp_path))
    assert summary["schema_version"] == 1
    assert {(r["model"], r["step"]) for r in summary["results"]} == {
        ("random-init", 0), ("step-00000100", 100), ("step-00000200", 200), ("step-00000300", 300),
    }  # fmt: skip
    last = {r["metric"]: r for r in summary["results"] if r["step"] == 300 and r["task"] == "textures-linear"}
    assert set(last) == {"balanced_accuracy", "top1"}
    assert last["top1"]["num_runs"] == 5
    assert last["top1"]["status"] == "ok"
    assert summary["evaluations"] == {"ok": 12}
    assert summary["data"]["num_used"] == 8
    assert [group["status"] for group in summary["data"]["rejected"]] == [
        "brand-new-reason",
        "empty-file",
        "no-mpp",
    ]


def test_the_result_carries_the_headline_figures(tmp_path: Path) -> None:
    result = _summarize(fake_run(tmp_path))
    assert result.headline["heldout rankme"] == pytest.approx(3 + 45 * 0.75)
    assert result.headline["heldout rankme (random-init)"] == pytest.approx(3.0)
    assert (result.num_ok, result.num_not_ok) == (12, 0)
    assert "better on 2, worse on 0, 2 without a test, of which 2 moved the right way" in result.verdict


def test_a_gain_that_chance_explains_is_called_that(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    store = open_store(run)
    first = record("random-init", 0, TASKS[1], 0.5)
    truth = first.details.truth
    predicted = list(first.details.predicted[0])
    wrong = next(i for i, (t, p) in enumerate(zip(truth, predicted, strict=True)) if t != p)
    predicted[wrong] = truth[wrong]
    better = {
        name: value.model_copy(update={"mean": value.mean + 0.01}) for name, value in first.metrics.items()
    }
    put_record(store, first)
    details = first.details.model_copy(update={"predicted": (tuple(predicted),)})
    last = first.model_copy(
        update={"model": "step-00000300", "step": 300, "metrics": better, "details": details}
    )
    put_record(store, last)
    summary = _summary(run)
    line = next(line for line in summary["headline"] if line["task"] == "textures-knn" and line["p_value"])
    assert line["improved"]
    assert line["p_value"] > 0.05
    assert "better on 1, worse on 0, not told from it on 1" in summary["verdict"]


def test_written_again_it_is_the_same_bytes(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    store = open_store(run)
    keys = (RunLayout.SUMMARY_JSON, RunLayout.SUMMARY_MD, RunLayout.SUMMARY_HTML)
    _summarize(run)
    first = [store.get(key) for key in keys]
    with RunLog("summarize", store) as log:
        summarize(run, log=log)
    assert [store.get(key) for key in keys] == first


def test_the_page_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    page = _page(fake_run(tmp_path))
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:image/jpeg;base64,", "#")), (tag, target)
    assert "@import" not in report_file(f"file://{tmp_path}/runs/demo", RunLayout.SUMMARY_HTML)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 8 + 1, "a thumbnail for each usable slide and the contact sheet"
    assert all(attributes["alt"] for attributes in pictures)


def test_every_section_says_what_it_must(tmp_path: Path) -> None:
    page = _page(fake_run(tmp_path))
    for words in (
        "random-init", "± ", "balanced accuracy ↑", "ODCorr ↓",
        "held out, 3 refused, of s3://bucket/slides", "began anew 2 times", "chance 0.333",
        "its header has no resolution (mpp)", "give it in slides.overrides",
        "log lines of steps replayed after a restart: 3",
        "2 → 1 workers", "1 → 2 workers",
        "Label-free figures against supervised ones",
        "Recipe none-packaged is not packaged",
        "0123456789abcdef",
    ):  # fmt: skip
        assert words in page.text, words
    charts = [
        attributes["aria-label"]
        for tag, attributes in page.tags
        if tag == "svg" and "aria-label" in attributes
    ]
    for title in (
        "RankMe",
        "balanced accuracy",
        "Loss",
        "Learning rate",
        "World size",
    ):
        assert title in charts


def test_step_zero_is_on_every_curve(tmp_path: Path) -> None:
    page = report_file(fake_run(tmp_path), RunLayout.CONFIG)
    assert page
    run = f"file://{tmp_path}/runs/demo"
    _summarize(run)
    html = report_file(run, RunLayout.SUMMARY_HTML)
    assert html.count("random-init: ") >= 5, "the tooltip of the point at step 0, a chart each"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    page = _page(run)
    assert not [tag for tag, _ in page.tags if tag in ("script", "b")]
    assert "<script>alert('x')</script>" in page.text
    assert "<i>so & so</i>" in page.text
    markdown = report_file(run, RunLayout.SUMMARY_MD)
    assert not re.search(r"(?<!\\)<(script|i|b)\b", markdown)


def test_half_the_evaluations_still_give_a_report(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    store = open_store(run)
    store.delete([RunLayout.metric(f"step-{STEPS[1]:08d}", task["name"]) for task in TASKS])
    store.delete([RunLayout.metric("random-init", "textures-knn")])
    summary = _summary(run)
    assert summary["evaluations"] == {"ok": 8, "missing": 4}
    assert _status(summary, "step-00000200", "heldout") == {
        ("missing", "no record: it has not been evaluated")
    }
    knn = next(line for line in summary["headline"] if line["task"] == "textures-knn")
    assert (knn["random_init"], knn["change"], knn["improved"]) == (None, None, None)
    assert "4 evaluations missing" in _page(run).text


def test_a_failure_is_shown_with_its_reason(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    failed = record(
        "step-00000300", 300, TASKS[2], 0.5, status="failed", metrics={}, reason="<b>NaN</b> in 12 of 90"
    )
    put_record(open_store(run), failed)
    summary = _summary(run)
    assert _status(summary, "step-00000300", "textures-linear") == {("failed", "<b>NaN</b> in 12 of 90")}
    assert "<b>NaN</b> in 12 of 90" in _page(run).text
    line = next(line for line in summary["headline"] if line["task"] == "textures-linear")
    assert line["last"]["step"] == 200, "the newest teacher that has a figure"


def test_two_records_that_claim_the_same_task_are_both_shown(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    put_record(
        open_store(run), record("random-init", 0, TASKS[1], 0.9), "metrics/copied-by-hand/textures-knn.json"
    )
    summary = _summary(run)
    ((status, reason),) = _status(summary, "random-init", "textures-knn")
    assert status == "disagreeing"
    assert "metrics/copied-by-hand/textures-knn.json" in reason
    found = [r for r in summary["results"] if (r["model"], r["task"]) == ("random-init", "textures-knn")]
    assert len(found) == 4, "two metrics of two records"


@pytest.mark.parametrize(
    ("change", "words"),
    [({"dataset_digest": "e" * 64}, "judged on other data"), ({"protocol_version": 9}, "v9")],
)
def test_a_record_that_cannot_be_compared_is_told_apart(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    run = fake_run(tmp_path)
    put_record(open_store(run), record("step-00000100", 100, TASKS[1], 0.9, **change))
    summary = _summary(run)
    ((status, reason),) = _status(summary, "step-00000100", "textures-knn")
    assert status == "disagreeing"
    assert words in reason
    assert _status(summary, "step-00000200", "textures-knn") == {("ok", "")}
    line = next(line for line in summary["headline"] if line["task"] == "textures-knn")
    assert line["best"]["step"] != 100, "a figure of other data is not the best of these"


def test_a_record_of_a_model_nobody_asked_for_is_shown_too(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    put_record(open_store(run), record("timm:vit_small", None, TASKS[1], 0.95))
    summary = _summary(run)
    assert ("ok", "") in _status(summary, "timm:vit_small", "textures-knn")
    assert "timm:vit_small" in _page(run).text


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ([RunLayout.TRAINING_DONE], "training has not ended"),
        ([RunLayout.INDEX_PIN], "has no index yet"),
        ([RunLayout.patch_set_manifest("heldout")], "no patch set has been decoded"),
        (["logs/train/20260101T000000.jsonl"], "Training has logged no step"),
        (["patches/heldout/contact-sheet.jpg"], "Patch set heldout"),
    ],
)
def test_whatever_is_not_there_is_named_and_the_rest_is_shown(
    tmp_path: Path, lost: list[str], words: str
) -> None:
    run = fake_run(tmp_path)
    open_store(run).delete(lost)
    page = _page(run)
    assert words in page.text
    assert "textures-linear" in page.text
    _summary(run)


def test_steps_that_failed_and_have_not_succeeded_since_are_told_first(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    store, step = open_store(run), "evaluate-00001-of-00004"
    told = {
        "message": "<no> *room* left",
        "hint": "free some",
        "exit_code": 1,
        "time": "2026-01-02T00:00:00Z",
    }
    for failed in (step, "summarize"):
        publish_once(store, RunLayout.failure(failed), StepFailure(step=failed, attempt=2, **told))
    text = " ".join(_page(run).text.split())
    assert "<no> *room* left → free some 2026-01-02T00:00:00Z, attempt 2" in text
    assert text.index("Steps that failed") < text.index(step) < text.index("random-init")
    assert [each["step"] for each in _summary(run)["failures"]] == [step]
    markdown = store.get(RunLayout.SUMMARY_MD).decode()
    line = rf"- **{step}** (2026-01-02T00:00:00Z, attempt 2): \<no\> \*room\* left free some"
    assert line in markdown.split("## ")[1]


def test_damaged_objects_are_named_and_the_rest_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fake_run(tmp_path)
    store, index = open_store(run), open_store(f"file://{tmp_path}/index")
    store.put(RunLayout.metric("step-00000100", "heldout"), b'{"model": "step-0000')
    for info in list(index.list("tiles/"))[:3]:
        index.put(info.key, b"not a picture")
    rows = index.get("snapshots/0123456789abcdef/slides.parquet")
    summary = _summary(run)
    assert any(
        "metrics/step-00000100/heldout.json is not a MetricRecord" in line for line in summary["problems"]
    )
    assert _status(summary, "step-00000100", "heldout") == {
        ("missing", "no record: it has not been evaluated")
    }
    index.put("snapshots/0123456789abcdef/slides.parquet", rows[:-9])
    monkeypatch.setenv("EOSIN_CACHE_DIR", str(tmp_path / "another-node"))
    assert any("is not what its marker says" in line for line in _summary(run)["problems"])


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    store = open_store(run)
    store.delete([info.key for info in store.list() if info.key != RunLayout.CONFIG])
    summary = _summary(run)
    assert summary["training"] is None
    assert "no figure can be compared" in summary["verdict"]
    assert {r["status"] for r in summary["results"]} == {"missing"}
    assert "The run has no index yet" in _page(run).text


def test_no_run_at_all_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run at"):
        _summarize(f"file://{tmp_path}/nothing")


def test_the_difference_from_the_recipe_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eosin.summary.published.load_recipe", lambda name: (f"recipe: {name}\n", "recipe"))
    page = _page(fake_run(tmp_path))
    assert "slides.uri: '' → 's3://bucket/slides'" in page.text


def test_summarizing_needs_no_torch() -> None:
    code = "import sys, eosin.summary.summarize; print(*(m in sys.modules for m in ('torch', 'timm')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_hostile_is_hostile() -> None:
    """The name the other tests rely on would break a page that does not escape it."""
    assert "<script>" in HOSTILE


def test_pictures_and_intervals_of_a_record_are_shown(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    store = open_store(run)
    key = RunLayout.example("step-00000300", "heldout", "neighbours")
    data = jpeg(Image.new("RGB", (30, 20), "teal"))
    store.put(key, data)
    shown = [
        ExamplePicture(kind="neighbours", key=key, caption="Each row: <b>a patch</b>"),
        ExamplePicture(kind="maps", key=key.replace("neighbours", "gone"), caption="not there"),
        ExamplePicture(kind="elsewhere", key="checkpoints/x.jpg", caption="not a picture"),
    ]
    base = record("step-00000300", 300, TASKS[0], 0.7)
    details = base.details.model_copy(update={"examples": tuple(shown)})
    put_record(store, base.model_copy(update={"details": details}))
    probe = record("step-00000300", 300, TASKS[2], 0.7)
    intervals = {**probe.details.intervals, "top1": (0.61, 0.72), "f1_macro": (0.51, 0.66)}
    details = probe.details.model_copy(update={"intervals": intervals})
    put_record(store, probe.model_copy(update={"details": details}))
    summary = _summary(run)
    page = report_file(run, RunLayout.SUMMARY_HTML)
    assert base64.b64encode(data).decode() in page
    assert "Each row: &lt;b&gt;a patch&lt;/b&gt;" in page
    assert "not there" not in page and "not a picture" not in page
    assert "macro F1 0.510 to 0.660" in page
    found = {
        r["metric"]: r["interval"] for r in summary["results"]
        if (r["model"], r["task"]) == ("step-00000300", "textures-linear")
    }  # fmt: skip
    assert found["top1"] == [0.61, 0.72] and found["balanced_accuracy"] is not None
