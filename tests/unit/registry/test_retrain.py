"""A retraining sets out from one model for good, and goes on only where enough is new."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eosin import steps
from eosin.config import RunConfig, dump_config
from eosin.errors import UserError
from eosin.index.rows import SlideRow
from eosin.layout import TEACHER_CARD, RunLayout, model_name
from eosin.observability import RunLog
from eosin.records import RetrainBase
from eosin.registry.promote import promote
from eosin.registry.retrain import judge_new_slides
from eosin.slides.model import SlideObject
from eosin.storage import Store, open_store
from tests.support.summary import fake_run, slide_row, write_index

NAME = "he"

NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""A safetensors file without any."""


@pytest.fixture
def registry(tmp_path: Path) -> str:
    """With one version, the newest teacher of the run `first`."""
    uri = f"file://{tmp_path}/registry"
    run = open_store(fake_run(tmp_path / "first"))
    key = RunLayout.teacher_card(model_name(300))
    arch, digest = "vit_small_patch16_224", hashlib.sha256(NO_TENSORS).hexdigest()
    told = json.loads(run.get(key)) | {"arch": arch, "weights_sha256": digest}
    run.put(key, json.dumps(told).encode())
    run.put(RunLayout.teacher_weights(model_name(300)), NO_TENSORS)
    promote(uri, NAME, run.uri, log=RunLog("test"))
    return uri


def teacher(tmp_path: Path) -> str:
    return f"file://{tmp_path}/first/runs/demo/teachers/step-00000300"


def planned(tmp_path: Path, registry: str, name: str = "second", **more: Any) -> RunConfig:
    return steps.plan_retrain(f"file://{tmp_path}/runs/{name}", registry, NAME, steps.ConfigSource(**more))


def test_it_begins_with_the_current_model_and_is_judged_beside_it(tmp_path: Path, registry: str) -> None:
    config = planned(tmp_path, registry)
    assert config.model.init == f"{teacher(tmp_path)}/model.safetensors"
    assert config.evaluate.baselines == ("random-init", teacher(tmp_path))
    assert config.index.uri == f"file://{tmp_path}/first/index" and config.slides.uri == "s3://bucket/slides"


def test_planned_again_it_sets_out_from_the_same_model_whatever_was_promoted(
    tmp_path: Path, registry: str
) -> None:
    before = planned(tmp_path, registry)
    from eosin.registry.entries import added, change_entry, find_entry

    model = find_entry(registry, NAME).current_model.model_copy(update={"weights_sha256": "f" * 64})
    change_entry(registry, NAME, lambda entry: added(entry, NAME, model, ("test",)))
    assert planned(tmp_path, registry) == before


def test_a_current_model_that_was_overwritten_is_not_begun_with(tmp_path: Path, registry: str) -> None:
    store, key = open_store(teacher(tmp_path)), TEACHER_CARD
    told = json.loads(store.get(key)) | {"weights_sha256": "e" * 64}
    store.put(key, json.dumps(told).encode())
    with pytest.raises(UserError, match="is not what was promoted as version 1"):
        planned(tmp_path, registry)


def test_the_next_one_is_not_judged_beside_every_model_before(tmp_path: Path, registry: str) -> None:
    first = open_store(f"file://{tmp_path}/first/runs/demo")
    config = steps.load_run(first.uri)
    evaluate = config.evaluate.model_copy(
        update={"baselines": ("timm:vit_tiny_patch16_224", teacher(tmp_path))}
    )
    first.put(RunLayout.CONFIG, dump_config(config.model_copy(update={"evaluate": evaluate})).encode())
    assert planned(tmp_path, registry).evaluate.baselines == ("timm:vit_tiny_patch16_224", teacher(tmp_path))


@pytest.mark.parametrize(
    ("settings", "registry_name", "reason"),
    [
        (["model.arch=vit_base_patch16_224"], NAME, "is a vit_small_patch16_224, the recipe says"),
        ([], "unknown", "has no model unknown to retrain"),
    ],
)
def test_refused_before_anything_is_published(
    tmp_path: Path, registry: str, settings: list[str], registry_name: str, reason: str
) -> None:
    run = f"file://{tmp_path}/runs/second"
    with pytest.raises(UserError, match=reason):
        steps.plan_retrain(run, registry, registry_name, steps.ConfigSource(settings=settings))
    assert not list(open_store(run).list())


def test_a_model_that_was_deleted_is_named(tmp_path: Path, registry: str) -> None:
    open_store(teacher(tmp_path)).delete([TEACHER_CARD])
    with pytest.raises(UserError, match="is gone"):
        planned(tmp_path, registry)


def test_a_run_retrains_one_name_only(tmp_path: Path, registry: str) -> None:
    planned(tmp_path, registry)
    open_store(f"file://{tmp_path}/runs/second").put(RunLayout.checkpoint_marker(3), b"{}")
    with pytest.raises(UserError, match="retrains he of"):
        steps.plan_retrain(
            f"file://{tmp_path}/runs/second", f"file://{tmp_path}/else", NAME, steps.ConfigSource()
        )


def gate(tmp_path: Path, before: list[SlideRow], after: list[SlideRow], minimum: int) -> tuple[bool, int]:
    """The gate of a run whose base was trained on `before` and that has pinned `after`."""
    run: Store = open_store(f"file://{tmp_path}/run")
    write_index(open_store(f"file://{tmp_path}/ignored"), f"file://{tmp_path}/before", before)
    write_index(run, f"file://{tmp_path}/after", after)
    base = RetrainBase(
        registry="r", name=NAME, version=1, index_uri=f"file://{tmp_path}/before",
        snapshot_id="0123456789abcdef",
    )  # fmt: skip
    run.put(RunLayout.RETRAIN, base.to_json())
    result = judge_new_slides(run.uri, minimum, log=RunLog("test"))
    return result.go, result.num_new_slides


def rows(*names: str, etag: str = "etag", status: str = "ok") -> list[SlideRow]:
    made = (slide_row(name, status=status, mpp=0.25) for name in names)
    return [
        replace(row, header=replace(row.header, objects=(SlideObject(row.slide, etag, 1000),)))
        for row in made
    ]


@pytest.mark.parametrize(
    ("after", "minimum", "expected"),
    [
        (rows("a", "b"), 1, (False, 0)),
        (rows("a", "b", "c", "d"), 2, (True, 2)),
        (rows("a", "b", "c", "d"), 3, (False, 2)),
        (rows("a") + rows("b", etag="other"), 1, (True, 1)),  # replaced under its name
        (rows("a", "b") + rows("c", status="no-mpp"), 1, (False, 0)),  # unusable is not new
        (rows("c"), 1, (True, 1)),  # others may have gone
        ([replace(row, digest="indexed by a later eosin") for row in rows("a", "b")], 1, (False, 0)),
        (rows("a", "b"), 0, (True, 0)),
    ],
)
def test_new_is_what_the_current_model_cannot_have_seen(
    tmp_path: Path, after: list[SlideRow], minimum: int, expected: tuple[bool, int]
) -> None:
    assert gate(tmp_path, rows("a", "b"), after, minimum) == expected
