"""What the report shows of a segmentation task and of a protocol that was changed."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eosin.evaluation.evaluate import evaluate
from eosin.layout import RANDOM_INIT, RunLayout
from eosin.observability import RunLog
from eosin.records import MetricRecord
from eosin.storage import open_store
from eosin.summary.summarize import SummaryResult, summarize
from tests.support.evaluation import export, make_config, make_run, quiet_log
from tests.support.segmentation import DECODER, write_masked
from tests.support.summary import TASKS, fake_run, jpeg, record, report_file


def _summarize(run: str) -> tuple[SummaryResult, str]:
    result = summarize(run, log=RunLog("summarize-test"))
    return result, report_file(run, RunLayout.SUMMARY_HTML)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """Random-init and one teacher, judged on blobs."""
    dataset = write_masked(tmp_path / "data")
    task = {"kind": "segmentation", "name": "blobs", "dataset": dataset, "decoder": DECODER}
    config = make_config([task])
    uri = make_run(tmp_path, config)
    model = export(uri, config, 20)
    for each in (RANDOM_INIT, model):
        assert evaluate(uri, each, "blobs", log=quiet_log()).status == "ok"
    return uri


def test_dice_picture_and_decoder_are_in_the_report(run: str) -> None:
    result, page = _summarize(run)
    assert set(result.headline) == {"blobs dice", "blobs dice (random-init)"}
    assert "<figcaption>Dice</figcaption>" in page, "a curve over steps"
    assert "<figcaption>Dice of class 1</figcaption>" in page
    picture = open_store(run).get(RunLayout.example("step-00000020", "blobs", "panel"))
    assert base64.b64encode(picture).decode() in page
    assert "conv-decoder v1 on patch tokens alone" in page
    assert "num_steps 40 (eva: 2000)" in page
    summary = json.loads(report_file(run, RunLayout.SUMMARY_JSON))
    assert {"dice", "dice_class 1"} <= {each["metric"] for each in summary["results"]}


def test_without_its_picture_the_rest_is_shown(run: str) -> None:
    store = open_store(run)
    store.delete([RunLayout.example("step-00000020", "blobs", "panel")])
    _, page = _summarize(run)
    assert "Patch, truth, prediction" not in page
    assert "<figcaption>Dice</figcaption>" in page


@pytest.mark.parametrize("key", ["../secret.jpg", "pictures/../secret.jpg", "logs/secret.jpg", 7, ["x"], ""])
def test_a_record_cannot_name_another_object(tmp_path: Path, key: Any) -> None:
    run = fake_run(tmp_path)
    data = jpeg(Image.new("RGB", (16, 16), "red"))
    open_store(run).put("logs/secret.jpg", data)
    open_store(f"file://{tmp_path}/runs").put("secret.jpg", data)
    spoiled = record("step-00000300", 300, TASKS[1], 0.9)
    tree = json.loads(spoiled.to_json())
    tree["details"]["examples"] = [{"kind": "panel", "key": key, "caption": ""}]
    key_of_record = RunLayout.metric(spoiled.model, spoiled.task)
    open_store(run).put(key_of_record, json.dumps(tree).encode())
    assert base64.b64encode(data).decode() not in _summarize(run)[1]


def test_what_is_no_jpeg_is_not_shown(run: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    key = RunLayout.example("step-00000020", "blobs", "panel")
    open_store(run).put(key, buffer.getvalue())
    assert "Patch, truth, prediction" not in _summarize(run)[1]


def test_records_with_different_changes_are_not_compared(tmp_path: Path) -> None:
    run = fake_run(tmp_path)
    store = open_store(run)
    key = RunLayout.metric("step-00000100", "textures-linear")
    stored = MetricRecord.from_json(store.get(key), source=key)
    changes = ["num_steps 5 (eva: 12500)"]
    details = stored.details.model_copy(update={"protocol_changes": tuple(changes)})
    other = stored.model_copy(update={"details": details})
    store.put(key, other.to_json())
    _, page = _summarize(run)
    summary = json.loads(report_file(run, RunLayout.SUMMARY_JSON))
    status = {(r["model"], r["status"]) for r in summary["results"] if r["task"] == "textures-linear"}
    assert ("step-00000100", "disagreeing") in status
    assert ("step-00000200", "ok") in status
    assert changes[0] in page
