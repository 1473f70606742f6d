"""Cox regression and concordance as lifelines and scikit-survival have them, and the task on slides."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from eosin.evaluation.evaluate import evaluate
from eosin.metrics.regression import concordance_index, fit_cox
from eosin.records import MetricRecord
from tests.support.evaluation import make_config, make_run, quiet_log
from tests.support.labelled_slides import write_labelled_slides, write_labels

# Of lifelines 0.30 and scikit-survival 0.28: benchmarks/peers/survival_golden.py.
GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "survival.safetensors"


@pytest.mark.parametrize("case", ["plain", "ridge", "ties", "wide", "wide_ties"])
def test_risks_and_concordance_are_those_of_lifelines_and_scikit_survival(case: str) -> None:
    golden = {key.removeprefix(f"{case}."): value for key, value in load_file(GOLDEN).items()
              if key.startswith(f"{case}.")}  # fmt: skip
    features, times, events = golden["features"], golden["times"], golden["events"]
    risk = fit_cox(features, times, events, penalty=float(golden["penalty"][0]))(features)
    assert np.allclose(risk - risk.mean(), golden["risk"], atol=1e-5)
    assert concordance_index(times, events, risk) == pytest.approx(float(golden["c_index"][0]), abs=1e-12)


def test_a_ridge_shrinks_and_nothing_comparable_has_no_figure() -> None:
    golden = load_file(GOLDEN)
    features, times, events = (golden[f"plain.{part}"] for part in ("features", "times", "events"))
    spread = [np.std(fit_cox(features, times, events, penalty=p)(features)) for p in (0.0, 0.1, 10.0)]
    assert spread[0] > spread[1] > spread[2] > 0
    assert np.isnan(concordance_index(times, np.zeros(80, dtype=bool), times))


def _judge(tmp_path: Path, rows: list[dict[str, str]]) -> MetricRecord:
    table = write_labels(tmp_path / "slides" / "times.csv", rows)
    task = {"kind": "survival", "name": "os", "dataset": table, "patch_px": 64, "num_patches": 4}
    return evaluate(make_run(tmp_path, make_config([task])), "random-init", "os", log=quiet_log())


def test_slides_are_ranked_by_time_and_patients_counted_once(tmp_path: Path) -> None:
    write_labelled_slides(tmp_path / "slides", per_split=4)
    rows = [
        {"slide": f"{kind}_{split}_{n}.svs", "time": str((1 if kind == "pink" else 10) + patient),
         "event": "1", "split": split, "patient": f"{kind}{split}{patient}"}
        for kind in ("pink", "violet") for split in ("train", "test") for n in range(4)
        for patient in [n // 2 if split == "train" else n]
    ]  # fmt: skip
    record = _judge(tmp_path, rows)
    assert record.status == "ok", record.reason
    assert record.metrics["c_index"].mean > 0.6
    assert "4 patients learnt from, 8 judged, of whom 8 had the event" in record.details.notes[-1]
    assert record.details.interval_over == "8 patients" and "c_index" in record.details.intervals
    censored = _judge(tmp_path, [{**row, "event": "0"} for row in rows])
    assert censored.status == "failed" and "no event among 4 patients" in censored.reason
    last = max(rows, key=lambda row: (row["split"] == "test", float(row["time"])))
    kept = [{**row, "event": str(int(row["split"] == "train" or row is last))} for row in rows]
    alone = _judge(tmp_path, kept)
    assert alone.status == "failed" and "no two can be compared" in alone.reason


@pytest.mark.parametrize(("time", "event"), [("0", "1"), ("x", "1"), ("3", "dead"), ("", "0")])
def test_a_time_or_event_that_is_none_is_named(tmp_path: Path, time: str, event: str) -> None:
    (tmp_path / "slides").mkdir()
    record = _judge(tmp_path, [{"slide": "a.svs", "time": time, "event": event}])
    assert record.status == "failed"
    assert f"row 2: time {time!r}, event {event!r}" in record.reason


def test_folds_of_a_table_are_judged_each(tmp_path: Path) -> None:
    write_labelled_slides(tmp_path / "slides", per_split=4)
    rows = [
        {"slide": f"{kind}_{split}_{n}.svs", "time": str((1 if kind == "pink" else 10) + n), "event": "1",
         "patient": f"{kind}{split}{n}", **{f"fold_{f}": "test" if n % 3 == f else "train" for f in range(3)}}
        for kind in ("pink", "violet") for split in ("train", "test") for n in range(4)
    ]  # fmt: skip
    record = _judge(tmp_path, rows)
    assert record.status == "ok", record.reason
    value = record.metrics["c_index"]
    assert len(value.values) == 3 and record.details.interval_over == "3 folds of 16 patients"
    low, high = record.details.intervals["c_index"]
    assert low < value.mean <= high <= 1
