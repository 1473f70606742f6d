"""Which test a pair of records allows."""

from typing import Any

import numpy as np
import pytest

from eosin.metrics.group_counts import paired_difference
from eosin.metrics.significance import permutation_p_value, significance
from eosin.records import MetricRecord, MetricValue
from eosin.records.details import SegmentationDetails

TRUTH = [i % 3 for i in range(60)]


def record(values: list[float], metric: str = "balanced_accuracy", **details: Any) -> MetricRecord:
    return MetricRecord.model_validate(
        {
            "model": "m", "step": 1, "task": "t", "kind": "linear-probe", "status": "ok", "dataset": "d",
            "dataset_digest": "d" * 64, "num_patches": 60, "protocol": "p", "eosin_version": "0",
            "inputs_digest": "i" * 64, "metrics": {metric: MetricValue.of(values)}, "details": details,
        }
    )  # fmt: skip


def guess(num_wrong: int) -> list[int]:
    return [(t + 1) % 3 if i < num_wrong else t for i, t in enumerate(TRUTH)]


@pytest.mark.parametrize("metric", ["balanced_accuracy", "top1", "f1_macro"])
def test_predictions_on_the_same_samples_are_paired(metric: str) -> None:
    before = record([0.5], metric, truth=TRUTH, predicted=guess(40))
    little, much = (record([0.6], metric, truth=TRUTH, predicted=guess(n)) for n in (39, 5))
    found = [significance(before, after, metric) for after in (little, much)]
    assert (
        found[0] is not None
        and found[0].how == "exchange of the results of 60 images"
        and found[0].p_value > 0.05
    )
    assert found[1] is not None and found[1].p_value < 0.01


def test_other_samples_or_patients_leave_only_the_seeds() -> None:
    before = record([0.1, 0.2, 0.3], truth=TRUTH, predicted=guess(40), patients=["a"] * 60)
    for changed in ({"truth": TRUTH[::-1]}, {"patients": ["b"] * 60}, {"predicted": None}):
        details = {"truth": TRUTH, "predicted": guess(3), "patients": ["a"] * 60, **changed}
        found = significance(before, record([0.7, 0.8, 0.9], **details), "balanced_accuracy")
        assert found is not None and found.how == "exchange of 3 and 3 runs; patients stay the same"
        assert found.p_value == permutation_p_value([0.1, 0.2, 0.3], [0.7, 0.8, 0.9])


def test_dice_is_paired_by_the_counts_of_each_patient() -> None:
    generator = np.random.default_rng(3)
    counts = [generator.integers(1, 9, (8, 2, 2))]
    counts.append(counts[0][:, :, ::-1])
    named = [{f"p{i}": each[i].tolist() for i in range(8)} for each in counts]
    told = {"counted_classes": [1], "interval_over": "8 patients"}
    before, after = (
        record([0.5], "dice").model_copy(
            update={"details": SegmentationDetails(group_confusions=each, **told)}
        )
        for each in named
    )
    found = significance(before, after, "dice")
    expected = paired_difference(counts[0], counts[1], "dice", counted=[1])
    assert found is not None and (found.p_value, found.how) == (
        expected.p_value,
        "exchange of the results of 8 patients",
    )
    few = {name: after.details.group_confusions[name] for name in ("p0", "p1")}
    some = [r.model_copy(update={"details": r.details.model_copy(update={"group_confusions": few})})
            for r in (before, after)]  # fmt: skip
    lacking = significance(*some, "dice")
    assert lacking is not None and lacking.p_value is None
    assert lacking.how == "no test: 2 patients, 6 are needed"
    other = after.details.model_copy(update={"group_confusions": {"q": few["p0"]}})
    assert significance(before, after.model_copy(update={"details": other}), "dice") is None


def test_all_runs_are_tested_not_the_first() -> None:
    """The first run says worse, the others better: the test sees what the mean sees."""
    before = record([0.9, 0.5, 0.5], predicted=[guess(6), guess(30), guess(30)], truth=TRUTH)
    after = record([0.6, 0.9, 0.9], predicted=[guess(24), guess(6), guess(6)], truth=TRUTH)
    found = significance(before, after, "balanced_accuracy")
    assert found is not None and found.difference > 0.1
    assert found.difference == pytest.approx((36 + 54 + 54 - 54 - 30 - 30) / 180)


def test_one_patient_gives_no_p_however_many_images() -> None:
    before, after = (record([0.5], truth=TRUTH, predicted=guess(n), patients=["p"] * 60) for n in (40, 5))
    found = significance(before, after, "balanced_accuracy")
    assert found is not None and found.p_value is None and "1 patients" in found.how


def test_single_values_have_no_test() -> None:
    assert significance(record([0.1], "rankme"), record([0.9], "rankme"), "rankme") is None
    assert significance(record([0.1], "rankme"), record([0.9, 0.8], "rankme"), "rankme") is None
    assert significance(record([0.1, 0.2], "rankme"), record([0.9, 0.8], "odcorr"), "odcorr") is None
