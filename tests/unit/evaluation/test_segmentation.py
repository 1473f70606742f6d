"""Segmentation from a folder of images and masks to a record with a picture."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eosin.evaluation.embeddings import tokens as tokens_module
from eosin.evaluation.evaluate import evaluate
from eosin.layout import RANDOM_INIT, RunLayout
from eosin.records import MetricRecord
from eosin.storage import open_store
from tests.support.evaluation import export, make_config, make_run, quiet_log
from tests.support.samples import sample
from tests.support.segmentation import DECODER, blobs, write_image, write_masked, write_pair


def _task(dataset: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "segmentation", "name": "blobs", "dataset": dataset, "decoder": DECODER, **fields}


def _judge(folder: Path, dataset: str, model: str = RANDOM_INIT, **fields: Any) -> MetricRecord:
    config = make_config([_task(dataset, **fields)])
    run = make_run(folder, config)
    if model != RANDOM_INIT:
        export(run, config, 20)
    return evaluate(run, model, "blobs", log=quiet_log())


def _reasons(record: MetricRecord) -> dict[str, str]:
    return {drop.source: drop.reason for drop in record.details.dropped}


@pytest.mark.parametrize("model", [RANDOM_INIT, "step-00000020"])
def test_blobs_are_found_on_images_never_seen(tmp_path: Path, model: str) -> None:
    dataset = write_masked(tmp_path / "data", ("train", "val", "test"), num=5, num_classes=3)
    record = _judge(tmp_path, dataset, model, classes=["ground", "violet", "orange"])
    assert record.status == "ok", record.reason
    assert set(record.metrics) == {"dice", "dice_ground", "dice_violet", "dice_orange"}
    assert len(record.metrics["dice"].values) == 2
    # Painting everything in one class, or by chance, stays far below.
    assert record.metrics["dice"].mean > 0.6
    mean = np.mean([record.metrics[f"dice_{name}"].values for name in ("violet", "orange")], axis=0)
    assert record.metrics["dice"].values == pytest.approx(mean.tolist())


def test_the_record_names_decoder_and_every_hyperparameter(tmp_path: Path) -> None:
    record = _judge(tmp_path, write_masked(tmp_path / "data"))
    assert (record.protocol, record.protocol_version) == ("segmentation-conv-decoder", 1)
    decoder = record.details.decoder
    assert (decoder.name, decoder.version, decoder.loss) == ("conv-decoder", 1, "Dice")
    assert DECODER.items() <= record.details.hyperparameters.items()
    assert record.details.hyperparameters["weight_decay"] == 0.01
    assert "num_steps 40 (eva: 2000)" in record.details.protocol_changes
    assert not any("weight_decay" in change for change in record.details.protocol_changes)


def test_the_picture_lies_beside_the_record(tmp_path: Path) -> None:
    record = _judge(tmp_path, write_masked(tmp_path / "data"))
    (shown,) = record.details.examples
    key = shown.key
    assert key == RunLayout.example(RANDOM_INIT, "blobs", "panel")
    data = open_store(f"file://{tmp_path}/run").get(key)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "JPEG"
        assert picture.width > 500
    assert len(data) < 200_000


def test_a_second_time_nothing_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_masked(tmp_path / "data")
    first = _judge(tmp_path, dataset)
    monkeypatch.setattr(tokens_module, "_look", lambda dataset: pytest.fail("the masks were read again"))
    assert evaluate(f"file://{tmp_path}/run", RANDOM_INIT, "blobs", log=quiet_log()) == first


def test_the_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    dataset = write_masked(tmp_path / "data")
    one, two = (_judge(tmp_path / name, dataset) for name in ("one", "two"))
    assert one.metrics == two.metrics
    assert one.details.best_step == two.details.best_step


def test_masks_of_0_and_255_are_two_classes(tmp_path: Path) -> None:
    indices = _judge(tmp_path / "i", write_masked(tmp_path / "indices"))
    binary = _judge(tmp_path / "b", write_masked(tmp_path / "binary", binary=True))
    assert binary.metrics == indices.metrics
    assert binary.details.classes == ("background", "class 1")


def test_what_cannot_be_used_is_left_out_and_named(tmp_path: Path) -> None:
    uri = write_masked(tmp_path / "data", ("train", "val", "test"), num=8)
    root = tmp_path / "data/train"
    (root / "masks/00.png").unlink()
    write_image(root / "masks/01.png", np.zeros((64, 60), dtype=np.uint8))
    write_image(root / "masks/02.png", np.full((64, 64), 173, dtype=np.uint8))
    (root / "images/03.png").write_bytes(b"\x89PNG cut short")
    (root / "masks/04.png").write_bytes(b"")
    write_image(root / "masks/alone.png", np.zeros((64, 64), dtype=np.uint8))
    write_image(root / "images/05.tif", blobs(1)[0])
    record = _judge(tmp_path, uri)
    assert record.status == "ok", record.reason
    reasons = {source.removeprefix("train/"): reason for source, reason in _reasons(record).items()}
    assert "no mask of the same name" in reasons["images/00.png"]
    assert "64 × 64" in reasons["images/01.png"] and "60 × 64" in reasons["images/01.png"]
    assert "173" in reasons["images/02.png"]
    assert "images/03.png" in reasons
    assert "empty" in reasons["images/04.png"]
    assert "2 images share" in reasons["images/05.png"]
    assert record.details.num_dropped == 6
    assert any("masks without an image, ignored: 1" in note for note in record.details.notes)


def _empty(root: Path) -> None:
    (root / "images").mkdir(parents=True)


def _no_masks(root: Path) -> None:
    write_masked(root)
    for path in (root / "masks").iterdir():
        path.unlink()


def _background_only(root: Path) -> None:
    write_masked(root)
    for path in (root / "masks").iterdir():
        write_image(path, np.zeros((64, 64), dtype=np.uint8))


def _instances(root: Path) -> None:
    write_masked(root)
    for path in (root / "masks").iterdir():
        write_image(path, np.arange(64 * 64, dtype=np.uint8).reshape(64, 64))


def _one_image(root: Path) -> None:
    write_pair(root, "only", 1)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_empty, "no images/ with masks/"),
        (_no_masks, "none of the 6 images"),
        (_background_only, "1 class (background)"),
        (_instances, "values in its mask: 64, 65"),
        (_one_image, "training split has 1 usable|0 usable tile"),
    ],
)
def test_nothing_to_learn_is_a_failed_record_that_says_why(tmp_path: Path, spoil: Any, words: str) -> None:
    spoil(tmp_path / "data")
    record = _judge(tmp_path, f"file://{tmp_path}/data")
    assert record.status == "failed"
    assert any(part in record.reason for part in words.split("|")), record.reason
    assert "defect of eosin" not in record.reason


def test_too_many_tokens_are_refused_by_name(tmp_path: Path) -> None:
    record = _judge(tmp_path, write_masked(tmp_path / "data"), max_tokens_gib=1e-6)
    assert record.status == "failed"
    assert "max_tiles" in record.reason


def test_more_tiles_than_allowed_are_drawn_and_noted(tmp_path: Path) -> None:
    record = _judge(tmp_path, write_masked(tmp_path / "data"), max_tiles=20)
    assert record.num_patches == 20
    assert "20 of 24 tiles are drawn (max_tiles)" in record.details.notes


def test_ignored_pixels_are_not_judged(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_masked(root)
    for path in (root / "masks").iterdir():
        classes = np.array(Image.open(path))
        classes[:32] = 255
        write_image(path, classes)
    record = _judge(tmp_path, f"file://{root}", ignore_value=255)
    assert record.status == "ok", record.reason
    # Half of every image: 64 x 32 pixels of each judged one, in the tiles that show any.
    assert sum(record.details.class_pixels.values()) == record.details.num_judged * 32 * 32
    assert record.num_patches == 12


def test_real_nuclei_give_figures_and_a_picture(tmp_path: Path) -> None:
    folder = sample("data", "segmentation", "monuseg")
    record = _judge(tmp_path, f"file://{folder}", classes=["background", "nucleus"], max_tiles=600)
    assert record.status == "ok", record.reason
    assert 0.2 < record.metrics["dice_nucleus"].mean < 1
    assert record.details.num_images == 10
    assert record.details.examples


def test_dice_keeps_counts_of_each_image_to_compare_by(tmp_path: Path) -> None:
    record = _judge(tmp_path, write_masked(tmp_path / "data"))
    assert record.details.intervals == {}, "fewer than six images carry no interval"
    counts = np.array(list(record.details.group_confusions.values()))
    assert record.details.interval_over == f"{len(counts)} images, too few for an interval (6 are needed)"
    pixels = sum(record.details.class_pixels.values())
    num_runs = len(record.metrics["dice"].values)
    assert counts.sum() == pixels * num_runs, "of all runs"


@pytest.mark.parametrize("name", ["eva-with-image", "eva-multi-stage"])
def test_evas_decoders_find_blobs_and_tell_evas_dice(tmp_path: Path, name: str) -> None:
    dataset = write_masked(tmp_path / "data", ("train", "val", "test"), num=5, num_classes=3)
    decoder = {**DECODER, "name": name, "num_steps": 60}
    record = _judge(tmp_path, dataset, decoder=decoder, tile_px=32)
    assert record.status == "ok", record.reason
    assert record.metrics["tile_dice"].mean > 0.5
    assert record.protocol == "segmentation-eva-decoder"
    assert "num_steps 60 (eva: 2000)" in record.details.protocol_changes
    assert (record.details.decoder.name.startswith("Conv"), record.details.num_judged) == (True, 20)


def test_a_protocol_is_called_evas_only_unchanged() -> None:
    def protocol(**fields: Any) -> str:
        tasks = [{"preset": "consep", "dataset": "d", **fields}]
        (task,) = make_config(tasks).evaluate.tasks
        return task.protocol().name  # type: ignore[attr-defined,no-any-return]

    assert protocol() == "segmentation-eva"
    assert protocol(tile_px=None) == protocol(decoder={"lr": 1e-3}) == "segmentation-eva-decoder"
    assert protocol(decoder={"name": "conv-decoder"}) == "segmentation-conv-decoder"


def test_whole_tiles_are_resized_with_their_masks(tmp_path: Path) -> None:
    assert [(t.x_px, t.y_px) for t in tokens_module.whole_grid(0, 70, 64, 32)] == [
        (0, 0),
        (0, 32),
        (32, 0),
        (32, 32),
    ]
    image, classes = blobs(1, width_px=50, height_px=50)
    seen, labels = tokens_module._resized(image, classes, 28)
    assert seen.shape == (28, 28, 3)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(classes)[None, None].float(), (28, 28), mode="nearest"
    )
    assert (labels == wanted[0, 0].numpy()).all()
