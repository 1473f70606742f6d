"""What a dry run refuses, and that it leaves no trace."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from eosin import steps
from eosin.dry_run import StepPlan, plan_run
from eosin.errors import UserError
from eosin.layout import RunLayout
from eosin.storage import open_store


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "a.svs").write_bytes(b"never opened")
    return folder


def source(slides: Path, settings: Sequence[str] = ()) -> steps.ConfigSource:
    return steps.ConfigSource("demo", settings, str(slides))


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_it_writes_nothing(slides: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    plan = plan_run(steps.resolve_config(source(slides)), str(tmp_path / "runs" / "a"))
    (figures,) = plan.sources
    assert (figures.num_objects, figures.num_bytes) == (1, len(b"never opened"))
    assert any(uri.endswith(RunLayout.SUMMARY_HTML) for step in plan.steps for uri in step.writes)
    assert everything(tmp_path) == before


def test_overrides_that_are_not_there_are_refused_before_anything_runs(slides: Path, tmp_path: Path) -> None:
    settings = [f"slides.overrides={tmp_path / 'none.csv'}"]
    with pytest.raises(UserError, match=r"none\.csv"):
        plan_run(steps.resolve_config(source(slides, settings)), str(tmp_path / "runs/a"))


def test_a_bucket_for_the_run_that_is_not_there_is_refused(slides: Path, bucket_uri: str) -> None:
    with pytest.raises(UserError, match="no bucket there-is-none"):
        plan_run(steps.resolve_config(source(slides)), "s3://there-is-none/runs/a")


def test_a_bucket_for_the_index_that_is_not_there_is_refused(slides: Path, bucket_uri: str) -> None:
    settings = ["index.uri=s3://there-is-none/index"]
    with pytest.raises(UserError, match="no bucket there-is-none"):
        plan_run(steps.resolve_config(source(slides, settings)), f"{bucket_uri}/runs/a")


@pytest.mark.parametrize("place", ["a.svs", "a.svs/run"])
def test_a_file_where_run_or_index_should_be_is_refused(slides: Path, tmp_path: Path, place: str) -> None:
    run, there = str(tmp_path / "runs/a"), str(slides / place)
    with pytest.raises(UserError, match=r"a\.svs is a file"):
        plan_run(steps.resolve_config(source(slides)), there)
    with pytest.raises(UserError, match=r"a\.svs is a file"):
        plan_run(steps.resolve_config(source(slides, [f"index.uri={there}"])), run)
    assert everything(tmp_path) == {slides, slides / "a.svs"}


def test_a_run_begun_otherwise_says_what_would_change(slides: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "runs" / "a")
    steps.plan(run, source(slides, ["seed=1"]))
    other = steps.resolve_config(source(slides, ["seed=2"]))
    assert "the run begins anew with seed: 1 → 2" in plan_run(other, run).begun
    faster = ["seed=1", "train.elastic.workers_per_node=1"]
    plan = plan_run(steps.resolve_config(source(slides, faster)), run)
    assert "the run goes on with train.elastic.workers_per_node: 2 → 1" in str(plan)


def test_a_trained_run_begun_otherwise_is_refused_as_the_run_would(slides: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "runs" / "a")
    steps.plan(run, source(slides, ["seed=1"]))
    open_store(run).put(RunLayout.checkpoint_marker(3), b"{}")
    with pytest.raises(UserError, match="seed: 1 → 2"):
        plan_run(steps.resolve_config(source(slides, ["seed=2"])), run)


def weights(folder: Path, width: int, depth: int) -> str:
    """A safetensors file of a ViT in timm's names."""
    import torch
    from safetensors.torch import save_file

    tensors = {"backbone.patch_embed.proj.weight": torch.zeros(width, 3, 8, 8)}
    tensors |= {f"backbone.blocks.{i}.norm1.weight": torch.zeros(width) for i in range(depth)}
    save_file(tensors, folder / f"{width}-{depth}.safetensors")
    return str(folder / f"{width}-{depth}.safetensors")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.init=timm:nope", "has no model 'nope'"),
        ("model.init=timm:vit_small_patch16_224.dinoo", "has no weights"),
        ("model.init=timm:vit_small_patch16_224.dino", "384 features wide and 12 blocks deep"),
        ("model.init=radnom", "neither random, timm:NAME nor a URI"),
        ("model.init=TMP/none.safetensors", "there is no"),
        ("model.init=TMP/slides/a.svs", "is not a safetensors file"),
        (
            "model.init=TMP/64-4.safetensors",
            "64 features wide and 4 blocks deep, model.arch .* is 128 and 4",
        ),
        ("model.init=TMP/128-3.safetensors", "is 128 features wide and 3 blocks deep"),
        ("model.init=run:TMP/runs/none", "no run at"),
        ("model.arch=vit_nope", "has no model 'vit_nope'"),
        ("evaluate.baselines=[timm:nope]", "has no model 'nope'"),
        ("evaluate.baselines=[TMP/none/teachers/step-00000001]", "model.json is not there"),
        ("evaluate.baselines=[timm:vit_small_patch16_224@TMP/none.safetensors]", "no weights at"),
        ("evaluate.baselines=[random]", "is no baseline"),
        ("model.dino_head.num_prototypes=1000000000", "and there are 288.0 GiB"),
        ("train.optimizer.warmup_steps=180", "is not below train.num_steps"),
        ("slides.include=['*.ndpi']", "slides.include"),
    ],
)
def test_what_the_run_would_refuse_is_refused_and_leaves_nothing_behind(
    slides: Path, tmp_path: Path, setting: str, message: str
) -> None:
    weights(tmp_path, 64, 4), weights(tmp_path, 128, 3)
    run, settings = str(tmp_path / "runs" / "a"), [setting.replace("TMP", str(tmp_path))]
    before = everything(tmp_path)
    with pytest.raises(UserError, match=message):
        plan_run(steps.resolve_config(source(slides, settings)), run)
    with pytest.raises(UserError, match=message):
        steps.plan(run, source(slides, settings))
    assert everything(tmp_path) == before


def test_weights_that_fit_are_taken(slides: Path, tmp_path: Path) -> None:
    settings = [f"model.init={weights(tmp_path, 128, 4)}"]
    plan_run(steps.resolve_config(source(slides, settings)), str(tmp_path / "runs/a"))


def test_a_run_to_go_on_from_needs_a_checkpoint_of_the_same_size(slides: Path, tmp_path: Path) -> None:
    first = str(tmp_path / "runs" / "first")
    steps.plan(first, source(slides))

    def plan(*settings: str, begins_with: str = first) -> None:
        chosen = [f"model.init=run:{begins_with}", *settings]
        plan_run(steps.resolve_config(source(slides, chosen)), str(tmp_path / "runs/b"))

    with pytest.raises(UserError, match="has no checkpoint"):
        plan()
    with pytest.raises(UserError, match=r"model\.init run:.*/none: no run at") as refused:
        plan(begins_with=f"{tmp_path}/none")
    assert "--set model.init=run:URI" in refused.value.hint
    open_store(first).put(RunLayout.checkpoint_marker(30), b"{}")
    plan()
    with pytest.raises(UserError, match="is 128 features wide and 4 blocks deep"):
        plan("model.arch_args={patch_size: 8, embed_dim: 64, depth: 4, num_heads: 4}")


def test_prototypes_that_fit_no_memory_of_this_machine_are_refused(slides: Path, tmp_path: Path) -> None:
    config = steps.resolve_config(source(slides, ["model.dino_head.num_prototypes=200000000"]))
    plan_run(config, str(tmp_path / "runs/a"))
    with pytest.raises(UserError, match="and there are"):
        plan_run(config, str(tmp_path / "runs/a"), here=True)


def test_a_dataset_that_is_not_there_is_a_warning(slides: Path, tmp_path: Path) -> None:
    settings = [f"evaluate.tasks=[{{kind: knn, name: mine, dataset: {tmp_path}/none}}]"]
    plan = plan_run(steps.resolve_config(source(slides, settings)), str(tmp_path / "runs/a"))
    assert any("task mine will fail" in warning for warning in plan.warnings)


def test_a_teacher_to_evaluate_must_be_there(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no teacher at"):
        steps_of(slides, str(tmp_path / "runs/a"), "evaluate", teacher=str(tmp_path / "none"))


def steps_of(slides: Path, run: str, pipeline: str, **arguments: str) -> dict[str, StepPlan]:
    config = steps.resolve_config(source(slides))
    plan = plan_run(config, run, pipeline=pipeline, arguments=arguments)
    return {step.step: step for step in plan.steps}


def test_evaluating_a_stranger_trains_nothing(slides: Path, tmp_path: Path) -> None:
    teacher = f"file://{tmp_path}/x/teachers/y"
    open_store(teacher).put("model.json", b"{}")
    found = steps_of(slides, str(tmp_path / "runs/a"), "evaluate", teacher=teacher)
    assert list(found) == ["plan", "index", "decode", "evaluate", "summarize"]
    assert found["evaluate"].reads[0] == teacher
    assert not any(uri.endswith(RunLayout.TEACHERS) for uri in found["evaluate"].reads)


def test_retraining_names_its_registry_and_its_gate(slides: Path, tmp_path: Path) -> None:
    found = steps_of(
        slides, str(tmp_path / "runs/a"), "retrain", registry="s3://b/reg", name="he", min_new_slides="7"
    )
    assert list(found)[:3] == ["plan", "index", "gate"] and list(found)[-1] == "promote"
    assert "7 new slides" in found["gate"].note
    assert found["promote"].writes == ("s3://b/reg/models/he.json",)


def test_the_pools_of_a_jobset_are_shown_with_their_price(slides: Path, tmp_path: Path) -> None:
    pools = (
        "[{name: anchor, price_usd_per_hour: 4}, {name: spot, spot: true, max_nodes: 3, gpus_per_node: 8}]"
    )
    settings = [f"cluster.pools={pools}"]
    plan = plan_run(steps.resolve_config(source(slides, settings)), str(tmp_path / "runs/a"))
    unknown = "images an hour: not measured in a run of demo beside this one"
    assert plan.figures["pool anchor"] == f"1 node (on demand), 1 GPU, 1 worker, 4 USD an hour; {unknown}"
    assert plan.figures["pool spot"] == f"0–3 nodes (spot), 0–24 GPUs, 0–24 workers; {unknown}"
