"""What is wrong with a submission is said before Kubeflow is asked, and a recipe file goes along."""

from pathlib import Path

import pytest

from eosin.errors import UserError
from eosin.submission import check_submission

RUN = {"run": "s3://there-is-no-such-bucket/runs/a", "slides": "s3://there-is-no-such-bucket/slides"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "nope"}, "there is no recipe 'nope'"),
        ({"recipe": "none.yaml"}, "there is no configuration at none.yaml"),
        ({"settings": ["train.num_stepz=1"]}, "did you mean train.num_steps"),
        ({"settings": ["train.optimizer.beta2=2"]}, "must be less than 1"),
        ({"slides": "/data/slides"}, "slides /data/slides is of this machine"),
        ({"run": "runs/a"}, "run runs/a is of this machine"),
        ({"index": "file:///index"}, "index file:///index is of this machine"),
        ({"settings": ["slides.overrides=/data/mpp.csv"]}, r"slides\.overrides /data/mpp\.csv is of this"),
        (
            {"settings": ["model.init=teacher/model.safetensors"]},
            "model.init teacher/model.safetensors is of",
        ),
        ({"settings": ["evaluate.tasks=[{kind: knn, name: t, dataset: /data}]"]}, "dataset of task t /data"),
    ],
)
def test_what_needs_no_bucket_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_submission("pretrain", {**RUN, **given}, recipe="demo")


def test_no_slides_at_all_are_refused() -> None:
    with pytest.raises(UserError, match="no slides named"):
        check_submission("pretrain", {"run": RUN["run"]}, recipe="demo")


def test_values_of_a_study_are_checked() -> None:
    arguments = {**RUN, "vary": "train.method", "values": ["dino", "dinov3"]}
    with pytest.raises(UserError, match="dinov3"):
        check_submission("scaling_study", arguments, recipe="demo")


def test_a_bucket_that_is_not_reached_is_a_note() -> None:
    made = check_submission("pretrain", RUN, recipe="demo")
    assert made.arguments == RUN and "not looked at from here" in made.notes[0]


def test_a_recipe_file_needs_the_bucket(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    with pytest.raises(UserError, match="travels through the bucket"):
        check_submission("pretrain", {**RUN, "recipe": str(tmp_path / "mine.yaml")})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patches": "/data/tiles"}, "patches /data/tiles is of this machine"),
        ({"model": "teachers/a"}, "model teachers/a is of this machine"),
        ({"model": "timm:vit_small@/w.safetensors"}, "model /w.safetensors is of this machine"),
    ],
)
def test_tiles_and_their_model_must_be_in_reach_of_pods(given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_submission("embed", {"run": RUN["run"], "model": "timm:vit_small", **given})
    assert check_submission("embed", {"run": RUN["run"], "model": "timm:hf-hub:MahmoodLab/UNI"}).notes
