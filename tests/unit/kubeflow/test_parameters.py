"""Parameters of a compiled pipeline are checked before anything runs."""

from pathlib import Path
from typing import Any

import pytest

from eosin.errors import UserError
from eosin.kubeflow.parameters import (
    arguments_of,
    compiled_pipeline,
    images_of_here,
    pipeline_names,
    require_acceptable_size,
    takes,
)

IMAGES = {f"{name}_image": f"reg/{name}@sha256:{'0' * 64}" for name in ("index", "train", "evaluate")}
GIVEN = {"run": "s3://b/runs/x", "registry": "s3://b/reg", "name": "he", **IMAGES}


def retrain(*texts: str, **given: Any) -> dict[str, Any]:
    return arguments_of(compiled_pipeline("retrain"), {**GIVEN, **given}, texts)


def test_texts_are_read_by_the_type_of_the_parameter() -> None:
    texts = ("margin=0.5", "min_new_slides=12", "judge_by=[a/b, c/d]", "name=1e3")
    arguments = retrain(*texts, recipe=None, name=None)
    assert arguments == {
        **GIVEN, "name": "1e3", "margin": 0.5, "min_new_slides": 12, "judge_by": ["a/b", "c/d"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("margn=0.5", "did you mean margin"),
        ("margin=much", "is a number, not 'much'"),
        ("min_new_slides=1.5", "is a whole number"),
        ("min_new_slides=true", "is a whole number, not True"),
        ("judge_by=a/b", "is a list, not 'a/b'"),
        ("judge_by=[a/b, null]", "takes no null"),
        ("margin", "not of the form"),
        ("judge_by=[", "not YAML"),
        ("name=other", "--param name is 'other', and --name says 'he'"),
    ],
)
def test_what_cannot_be_is_named(text: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        retrain(text)
    assert reason in f"{caught.value.message} {caught.value.hint}"


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="pipeline retrain needs name, registry"):
        arguments_of(compiled_pipeline("retrain"), {"run": "s3://b/r"})


@pytest.mark.parametrize("pipeline", pipeline_names())
def test_pipeline_without_images_is_refused_with_the_next_command(pipeline: str) -> None:
    path = compiled_pipeline(pipeline)
    given = {"run": "s3://b/r", "teacher": "s3://b/t", "registry": "s3://b/reg", "name": "x",
             "index": "s3://b/i", "model": "timm:resnet18"}  # fmt: skip
    needed = {name: value for name, value in given.items() if name in takes(path)}
    images = sorted(name for name in IMAGES if name in takes(path))
    with pytest.raises(UserError, match=f"names no images: {', '.join(images)}$") as caught:
        arguments_of(path, needed)
    assert "make publish REGISTRY=" in caught.value.hint
    assert f"dist/pipelines/{pipeline}.yaml" in caught.value.hint
    with pytest.raises(UserError, match=f"names no images: {images[-1]}$"):
        arguments_of(path, {**needed, **{key: IMAGES[key] for key in images[:-1]}})
    assert arguments_of(path, {**images_of_here(path), **needed}).items() >= needed.items()


def test_every_pipeline_ships_and_a_file_may_stand_in(tmp_path: Path) -> None:
    assert {"pretrain", "evaluate", "retrain"} <= set(pipeline_names())
    copy = tmp_path / "mine.yaml"
    copy.write_bytes(compiled_pipeline("evaluate").read_bytes())
    assert takes(compiled_pipeline(str(copy))) == takes(compiled_pipeline("evaluate"))
    for name in ("nothing", str(tmp_path / "none.yaml")):
        with pytest.raises(UserError, match="no compiled pipeline"):
            compiled_pipeline(name)


@pytest.mark.parametrize("text", ["", "a: 1", "- 1", "{"])
def test_a_file_that_is_no_pipeline_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(UserError, match="not a compiled pipeline"):
        takes(tmp_path / "p.yaml")


def test_what_a_cluster_would_refuse_for_its_size_is_refused_before() -> None:
    path = compiled_pipeline("pretrain")
    require_acceptable_size(path, {"run": "s3://b/r", "settings": ["x" * 24_000]})
    with pytest.raises(UserError, match=r"most of it settings, 1\.6 MB") as caught:
        require_acceptable_size(path, {"run": "s3://b/r", "settings": ["x" * 1_600_000]})
    assert "1.57 MB of both together" in caught.value.message and "--recipe URI" in caught.value.hint
