"""One evaluation from start to record, on a tiny run."""

from pathlib import Path

import pytest

from eosin.config import RunConfig, dump_config, load_config
from eosin.errors import TransientError, UserError
from eosin.evaluation.embeddings import embed as embed_module
from eosin.evaluation.evaluate import evaluate
from eosin.evaluation.plan import find_teacher, list_evaluations, list_evaluations_of
from eosin.layout import RunLayout, record_key
from eosin.records import MetricRecord
from eosin.registry.promote import Contender, Rule, compare
from eosin.runs import load_run
from eosin.storage import open_store
from tests.support.evaluation import (
    export,
    make_config,
    make_run,
    patch_rows,
    quiet_log,
    write_folder,
    write_patch_set,
)

PROBE = {"num_steps": 150, "batch_size": 16, "lr": 1e-2, "num_runs": 3}


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run with a held-out set, a labelled set by patient, three tasks and one exported teacher."""
    labelled = write_patch_set(tmp_path / "labelled", patch_rows(num_patients=8, per_class=4))
    config = make_config(
        [
            {"kind": "unsupervised", "name": "heldout"},
            {"kind": "knn", "name": "texture-knn", "dataset": labelled, "k": 5},
            {"kind": "linear-probe", "name": "texture-probe", "dataset": labelled, "probe": PROBE},
        ]
    )
    uri = make_run(tmp_path, config)
    write_patch_set(
        tmp_path / "run" / "patches" / "heldout", patch_rows(num_patients=4, label="", patient="")
    )
    export(uri, config, 20)
    return uri


def _judge(run: str, model: str, task: str) -> MetricRecord:
    return evaluate(run, model, task, log=quiet_log())


def _stored(run: str, model: str, task: str) -> MetricRecord:
    return MetricRecord.from_json(open_store(run).get(RunLayout.metric(model, task)), source="test")


def test_every_model_is_paired_with_every_task(run: str) -> None:
    pairs = [(pair["model"], pair["task"]) for pair in list_evaluations(run)]
    tasks = ("heldout", "texture-knn", "texture-probe")
    assert pairs == [(model, task) for model in ("random-init", "step-00000020") for task in tasks]


def test_each_task_publishes_its_record(run: str) -> None:
    for model, step in (("random-init", 0), ("step-00000020", 20)):
        heldout = _judge(run, model, "heldout")
        assert (heldout.status, heldout.step, heldout.num_patches) == ("ok", step, 36)
        assert 1 < heldout.metrics["rankme"].mean <= 32
        assert 0 <= heldout.metrics["odcorr"].mean <= 1
        assert not heldout.metrics["odcorr"].higher_is_better
        assert set(heldout.details.by_mpp) == {"0.5", "1"}
        assert _stored(run, model, "heldout") == heldout

    knn = _judge(run, "step-00000020", "texture-knn")
    assert knn.metrics["top1"].mean > 0.9, "three colours are told apart by any network"
    assert sum(map(sum, knn.details.confusion)) == knn.details.num_judged

    probe = _judge(run, "step-00000020", "texture-probe")
    accuracy = probe.metrics["balanced_accuracy"]
    assert len(accuracy.values) == 3
    assert accuracy.mean > 0.9
    assert probe.details.intervals == {}
    assert "patients, too few for an interval (6 are needed)" in probe.details.interval_over
    assert {"auroc", "auprc", "f1_macro"} <= probe.metrics.keys()


def test_robustness_is_measured_for_every_change_and_magnification(tmp_path: Path) -> None:
    labelled = write_patch_set(tmp_path / "set", patch_rows(num_patients=4, per_class=4))
    config = make_config([{"kind": "robustness", "name": "robust", "patch_set": labelled}])
    uri = make_run(tmp_path, config)
    record = _judge(uri, "random-init", "robust")
    assert record.status == "ok"
    assert {name.rsplit("_", 1)[0] for name in record.metrics} == {"rotation", "flip", "stain", "blur"}
    assert all(value.mean <= 1 for value in record.metrics.values())
    assert set(record.details.by_mpp) == {"0.5", "1"}
    assert len(list(open_store(uri).list(RunLayout.EMBEDDINGS))) == 5, "the originals and four changes"


def test_a_second_time_nothing_is_computed(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _judge(run, "step-00000020", "texture-knn")

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr(embed_module, "_compute", forbidden)
    assert _judge(run, "step-00000020", "texture-knn") == first
    # Another task on the same images takes the stored embeddings.
    assert _judge(run, "step-00000020", "texture-probe").status == "ok"


def test_a_damaged_embedding_file_is_made_again(run: str) -> None:
    first = _judge(run, "step-00000020", "texture-knn")
    store = open_store(run)
    (key,) = [info.key for info in store.list(RunLayout.EMBEDDINGS)]
    store.put(key, store.get(key)[:100])
    store.delete([RunLayout.metric("step-00000020", "texture-knn")])
    again = _judge(run, "step-00000020", "texture-knn")
    assert again.metrics == first.metrics


def test_the_same_evaluation_gives_the_same_figures(run: str) -> None:
    first = _judge(run, "step-00000020", "texture-probe")
    store = open_store(run)
    store.delete([info.key for info in store.list(RunLayout.EMBEDDINGS)])
    store.delete([RunLayout.metric("step-00000020", "texture-probe")])
    second = _judge(run, "step-00000020", "texture-probe")
    assert second.metrics == first.metrics
    assert second.details == first.details


def test_changed_data_is_judged_again(run: str, tmp_path: Path) -> None:
    first = _judge(run, "random-init", "texture-knn")
    write_patch_set(tmp_path / "labelled", patch_rows(num_patients=9, per_class=4))
    second = _judge(run, "random-init", "texture-knn")
    assert second.inputs_digest != first.inputs_digest
    assert second.num_patches == 108


def test_a_diverged_checkpoint_is_a_failed_record_and_harms_no_other(run: str, tmp_path: Path) -> None:
    from eosin.runs import load_run

    export(run, load_run(run), 40, spoil=float("nan"))
    record = _judge(run, "step-00000040", "heldout")
    assert record.status == "failed"
    assert "36 of 36 embeddings are not finite" in record.reason
    assert _stored(run, "step-00000040", "heldout") == record
    assert not list(open_store(run).list(RunLayout.EMBEDDINGS)), "embeddings of no use are not kept"
    assert _judge(run, "step-00000020", "heldout").status == "ok"


def test_a_failed_record_is_tried_again(run: str, tmp_path: Path) -> None:
    shard = tmp_path / "labelled" / "00001-of-00002.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-40])
    failed = _judge(run, "random-init", "texture-knn")
    assert failed.status == "failed"
    assert "00001-of-00002.parquet" in failed.reason
    shard.write_bytes(whole)
    assert _judge(run, "random-init", "texture-knn").status == "ok"


def test_weights_of_another_network_are_a_failed_record(run: str) -> None:
    store = open_store(run)
    key = RunLayout.teacher_card("step-00000020")
    store.put(key, store.get(key).replace(b'"embed_dim": 32', b'"embed_dim": 64'))
    record = _judge(run, "step-00000020", "heldout")
    assert record.status == "failed"
    assert "does not fit its card" in record.reason


def test_a_held_out_set_that_was_never_decoded_is_a_failed_record(tmp_path: Path) -> None:
    config = make_config([{"kind": "unsupervised"}])
    record = _judge(make_run(tmp_path, config), "random-init", "heldout")
    assert record.status == "failed"
    assert "no images at" in record.reason


@pytest.mark.parametrize(
    ("model", "task", "words"),
    [
        ("step-00000021", "heldout", "did you mean step-00000020"),
        ("random-init", "heldut", "did you mean heldout"),
        ("random-init", "qqq", "there are: heldout, texture-knn, texture-probe"),
    ],
)
def test_a_name_the_run_does_not_have_is_the_callers_error(
    run: str, model: str, task: str, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        _judge(run, model, task)
    assert words in caught.value.hint
    assert not list(open_store(run).list(RunLayout.METRICS))


def test_a_store_that_is_down_is_recorded_and_raised_to_be_tried_again(
    run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise TransientError("s3://bucket is slow", hint="wait")

    monkeypatch.setattr(embed_module, "_compute", down)
    with pytest.raises(TransientError, match="is slow"):
        _judge(run, "random-init", "heldout")
    assert _stored(run, "random-init", "heldout").status == "failed"


def test_baselines_without_weights_are_failed_records(tmp_path: Path) -> None:
    labelled = write_folder(tmp_path / "set", {"": {"red": 6, "blue": 6}})
    config = make_config(
        [{"kind": "knn", "name": "knn", "dataset": labelled}], baselines=["random-init", "timm:no_such_model"]
    )
    uri = make_run(tmp_path, config)
    record = _judge(uri, "timm:no_such_model", "knn")
    assert (record.status, record.step) == ("failed", None)
    assert "has no model 'no_such_model'" in record.reason
    keys = [info.key for info in open_store(uri).list(RunLayout.METRICS)]
    assert len(keys) == 1
    assert keys[0].startswith("metrics/timm-no_such_model-")


def test_listing_without_a_teacher_gives_the_baselines_or_says_what_to_do(tmp_path: Path) -> None:
    uri = make_run(tmp_path, make_config([{"kind": "unsupervised"}], baselines=[]))
    with pytest.raises(UserError, match="has exported no teacher yet"):
        list_evaluations(uri)


def _run_at(folder: Path, img_px: int | None) -> str:
    labelled = write_patch_set(folder / "labelled", patch_rows(num_patients=6, per_class=3))
    task = {"kind": "knn", "name": "texture-knn", "dataset": labelled, "k": 3}
    return make_run(folder, make_config([task], img_px=img_px))


def test_images_are_seen_at_the_side_asked_for(tmp_path: Path) -> None:
    own, larger = (
        _judge(_run_at(tmp_path / str(side), side), "random-init", "texture-knn") for side in (None, 48)
    )
    assert own.status == larger.status == "ok"
    assert own.model_digest != larger.model_digest and own.inputs_digest != larger.inputs_digest


def test_another_read_out_is_another_protocol_that_nothing_is_compared_across(run: str) -> None:
    store, usual = open_store(run), _judge(run, "random-init", "texture-probe")
    tree = load_run(run).model_dump(mode="json")
    for task in tree["evaluate"]["tasks"]:
        task["read_out"] = "cls_last_1_mean_patch"
    config = RunConfig.model_validate(tree)
    store.put(RunLayout.CONFIG, dump_config(config).encode())
    other = _judge(run, "step-00000020", "texture-probe")
    assert other.status == "ok" and other.details.hyperparameters["read_out"] == "cls_last_1_mean_patch"
    assert other.details.protocol_changes[-1] == "read_out cls_last_1_mean_patch (usual: last)"
    rule = Rule(metrics=("texture-probe/balanced_accuracy",))
    assert len(other.weights_sha256) == 64
    candidate, current = Contender((other.model,), other.weights_sha256), Contender(("random-init",), "")
    (judgement,) = compare(store, config, candidate, current, rule)
    assert not judgement.passed and "other data or protocols" in judgement.why
    again = _judge(run, "random-init", "texture-probe")
    assert again.inputs_digest != usual.inputs_digest and again.metrics != usual.metrics
    (judgement,) = compare(store, config, candidate, current, rule)
    assert judgement.candidate is not None


def test_a_task_without_embeddings_refuses_a_read_out() -> None:
    task = {"kind": "segmentation", "name": "masks", "dataset": "s3://d/m", "read_out": "cls_last_4"}
    with pytest.raises(ValueError, match="map of patch tokens"):
        make_config([task])
    with pytest.raises(UserError, match="must be last, cls_last_N or cls_last_N_mean_patch"):
        load_config({"evaluate": {"tasks": [{**task, "kind": "knn", "read_out": "cls_last_0"}]}})


def test_a_side_the_backbone_cannot_cut_into_patches_is_a_failed_record(tmp_path: Path) -> None:
    record = _judge(_run_at(tmp_path, 35), "random-init", "texture-knn")
    assert record.status == "failed" and "35" in record.reason


def test_a_teacher_of_another_run_is_judged_as_it_is_in_its_own(run: str, tmp_path: Path) -> None:
    tasks = [{"kind": "knn", "name": "knn", "dataset": f"file://{tmp_path}/labelled", "k": 5}]
    other = make_run(tmp_path / "other", make_config(tasks))
    folder = find_teacher(f"{run}/")
    assert folder == f"{run}/teachers/step-00000020"
    record = _judge(other, folder, "knn")
    own = _judge(run, "step-00000020", "texture-knn")
    assert (record.status, record.model, record.step) == ("ok", folder, None)
    assert record.metrics == own.metrics and record.model_digest == own.model_digest
    (key,) = [info.key for info in open_store(other).list(RunLayout.METRICS)]
    assert key == RunLayout.metric(record_key(folder), "knn")


def test_a_teacher_from_elsewhere_takes_the_place_of_the_runs_own(run: str, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", make_config([{"kind": "unsupervised"}]))
    models = {pair["model"] for pair in list_evaluations_of(other, f"{run}/teachers/step-00000020/")}
    assert models == {"random-init", f"{run}/teachers/step-00000020"}


def test_a_teacher_that_is_not_there_is_a_users_error(run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no teacher at .*/nowhere"):
        find_teacher(f"file://{tmp_path}/nowhere")
    with pytest.raises(UserError, match=r"model\.json is not there"):
        _judge(run, f"file://{tmp_path}/nowhere", "heldout")
