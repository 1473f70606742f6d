"""Public datasets as they are published: what is found, how it is split, and what a wrong count says."""

import io
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin.config import RunConfig
from eosin.config.presets import PRESETS
from eosin.errors import UserError
from eosin.evaluation.datasets.masks import IGNORE
from eosin.evaluation.datasets.open_dataset import open_dataset
from eosin.evaluation.datasets.public.images import IMAGES
from eosin.evaluation.datasets.public.masked import MASKS, paint, parse_outlines
from eosin.evaluation.tasks.linear_probe import LinearProbeTask
from eosin.evaluation.tasks.segmentation import SegmentationTask
from tests.support import public_datasets as trees

MINI = {
    "bracs": {"train": 14, "val": 14, "test": 14},
    "breakhis": {"train": 8, "val": 4},
    "crc": {"train": 27, "val": 18},
    "gleason": {"train": 12, "val": 4},
    "mhist": {"train": 7, "val": 3},
    "pcam": {"train": 24, "val": 8, "test": 10},
    "unitopatho": {"train": 12, "val": 6},
    "consep": {"train": 4, "val": 2},
    "monusac": {"train": 4, "val": 2},
    "monuseg": {"train": 5, "test": 2},
    "bcss": {"train": 2, "val": 1, "test": 2},
}
ALL = {**IMAGES, **MASKS}


def _make(name: str, root: Path) -> str:
    make: Callable[[Path], None] = getattr(trees, name)
    make(root)
    return f"file://{root}"


@pytest.mark.parametrize("name", MINI)
def test_the_published_tree_is_read_in_its_split(name: str, tmp_path: Path) -> None:
    uri = _make(name, tmp_path / "data")
    published = replace(ALL[name], num_images=MINI[name])
    dataset = published.open(uri)
    assert Counter(sample.split for sample in dataset.samples) == MINI[name]
    assert set(dataset.classes) == set(published.classes)
    assert not any("a part of" in note for note in dataset.notes)
    for data in dataset.read(range(0, len(dataset.samples), 3)):
        assert isinstance(data, bytes)
        Image.open(io.BytesIO(data)).load()


@pytest.mark.parametrize("name", MINI)
def test_a_wrong_count_names_what_is_expected_and_found(name: str, tmp_path: Path) -> None:
    uri = _make(name, tmp_path / "data")
    published = ALL[name]
    split, expected = next(iter(published.num_images.items()))
    with pytest.raises(UserError) as caught:
        published.open(uri)
    message = str(caught.value)
    assert f"{split} has {MINI[name][split]} images, {expected} expected" in message
    assert published.title in message and uri in message
    assert "allow_subset" in caught.value.hint
    (note,) = [n for n in published.open(uri, allow_subset=True).notes if "a part of" in n]
    assert f"{expected} expected" in note


@pytest.mark.parametrize("name", [*IMAGES, *MASKS])
def test_an_empty_folder_says_what_must_be_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError) as caught:
        ALL[name].open(f"file://{tmp_path}")
    assert str(tmp_path) in str(caught.value)
    assert caught.value.hint


def test_more_than_was_published_is_no_subset(tmp_path: Path) -> None:
    uri = _make("crc", tmp_path / "data")
    published = replace(IMAGES["crc"], num_images={"train": 20, "val": 18})
    with pytest.raises(UserError, match="train has 27 images, 20 expected") as caught:
        published.open(uri, allow_subset=True)
    assert "has more than CRC" in str(caught.value) and "fetch it whole" not in caught.value.hint


def test_bach_has_evas_split_and_no_count_to_forgive(tmp_path: Path) -> None:
    uri = _make("bach", tmp_path)
    dataset = open_dataset(uri, "bach")
    split = {Path(s.source).stem: s.split for s in dataset.samples}
    assert Counter(split.values()) == {"train": 268, "val": 132}
    # The edges of the published index ranges, [41, 59) and [345, 368) of all 400.
    assert [split[n] for n in ("b041", "b042", "b059", "b060", "n045", "n046", "n068", "n069")] == [
        *("train", "val", "val", "train"),
        *("train", "val", "val", "train"),
    ]
    (tmp_path / "ICIAR2018_BACH_Challenge/Photos/InSitu/is050.tif").unlink()
    with pytest.raises(UserError, match="val has 131 images, 132 expected"):
        open_dataset(uri, "bach")
    # A subset leaves every other image on its side.
    part = open_dataset(uri, "bach", allow_subset=True)
    assert {Path(s.source).stem: s.split for s in part.samples}.items() <= split.items()


def test_the_digest_follows_a_change_of_one_image(tmp_path: Path) -> None:
    uri = _make("mhist", tmp_path)
    published = replace(IMAGES["mhist"], num_images=MINI["mhist"])
    before = published.open(uri).digest
    assert published.open(uri).digest == before
    trees.picture(tmp_path / "images" / "MHIST_aaa.png", 99)
    assert published.open(uri).digest != before


def test_breakhis_keeps_a_patient_on_one_side(tmp_path: Path) -> None:
    dataset = open_dataset(_make("breakhis", tmp_path), "breakhis", allow_subset=True)
    sides: dict[str, set[str]] = {}
    for sample in dataset.samples:
        sides.setdefault(sample.patient, set()).add(sample.split)
    assert all(len(side) == 1 for side in sides.values())
    assert {p for p, side in sides.items() if side == {"val"}} == {"3909", "21998CD", "19979", "5287"}


def test_classes_are_numbered_as_eva_numbers_them(tmp_path: Path) -> None:
    # kaiko-eva 0.4.5, `class_to_idx` of vision/data/datasets/classification/{mhist,breakhis}.py: a head that
    # begins with the same weights has the same outputs, and of two classes the same one is the positive.
    mhist = open_dataset(_make("mhist", tmp_path / "m"), "mhist", allow_subset=True)
    assert mhist.classes == ("SSA", "HP")
    breakhis = open_dataset(_make("breakhis", tmp_path / "b"), "breakhis", allow_subset=True)
    assert breakhis.classes == ("TA", "MC", "F", "DC")
    only = tuple(sample for sample in breakhis.samples if sample.label != "MC")
    assert replace(breakhis, samples=only).classes == ("TA", "F", "DC")


def test_groups_that_are_published_stand_for_patients(tmp_path: Path) -> None:
    pcam = open_dataset(_make("pcam", tmp_path / "p"), "pcam", allow_subset=True)
    assert pcam.samples[5].patient == "camelyon16_train_train_001"
    unitopatho = open_dataset(_make("unitopatho", tmp_path / "u"), "unitopatho", allow_subset=True)
    slides = {s.patient for s in unitopatho.samples if s.split == "val"}
    assert slides == {f"{name} CASO 3 - 2018-12-04 13.19.16" for name in unitopatho.classes}


@pytest.mark.parametrize(("name", "path", "split", "label", "patient"), trees.PUBLISHED)
def test_published_names_say_split_label_and_patient(
    name: str, path: str, split: str | None, label: str, patient: str, tmp_path: Path
) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_bytes(b"image")
    if name in trees.MASK_OF:
        folder, masks, suffix = trees.MASK_OF[name]
        mask = (tmp_path / path.replace(folder, masks, 1)).with_suffix(suffix)
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_bytes(b"mask")
    if split is None:
        with pytest.raises(UserError, match="no images of"):
            ALL[name].open(f"file://{tmp_path}", allow_subset=True)
        return
    (sample,) = ALL[name].open(f"file://{tmp_path}", allow_subset=True).samples
    assert (sample.source, sample.split, sample.label, sample.patient) == (path, split, label, patient)


@pytest.mark.parametrize(("name", "slide"), trees.UNITOPATHO_NAMES.items())
def test_published_names_of_unitopatho_give_their_slide(name: str, slide: str, tmp_path: Path) -> None:
    trees.picture(tmp_path / "800" / "NORM" / name, 1)
    trees.table(tmp_path / "800" / "train.csv", ("image_id", "top_label"), [(name, 1)])
    trees.table(tmp_path / "800" / "test.csv", ("image_id", "top_label"), [])
    dataset = open_dataset(f"file://{tmp_path}", "unitopatho", allow_subset=True)
    assert [sample.patient for sample in dataset.samples] == [slide]
    assert any("the slide stands for the patient" in note for note in dataset.notes)


def test_pcam_reads_any_rows_in_the_order_asked_for(tmp_path: Path) -> None:
    dataset = open_dataset(_make("pcam", tmp_path), "pcam", allow_subset=True)
    wanted = [30, 1, 0, 1, 41, 24]
    images = [np.asarray(Image.open(io.BytesIO(d))) for d in dataset.read(wanted) if isinstance(d, bytes)]
    assert [int(image.mean() > 110) for image in images] == [
        int(dataset.samples[i].label == "tumor") for i in wanted
    ]
    assert (images[1] == images[3]).all()


def test_pcam_labels_that_do_not_match_are_named(tmp_path: Path) -> None:
    _make("pcam", tmp_path / "good")
    trees.pcam(tmp_path / "other", counts=(20, 8, 10))
    stem = "camelyonpatch_level_2_split_train_y.h5"
    (tmp_path / "other" / stem).replace(tmp_path / "good" / stem)
    with pytest.raises(UserError, match=r"train_y\.h5 does not match .*20 labels for 24 images"):
        open_dataset(f"file://{tmp_path / 'good'}", "pcam", allow_subset=True)


def test_a_file_that_is_no_hdf5_is_named(tmp_path: Path) -> None:
    _make("pcam", tmp_path)
    (tmp_path / "camelyonpatch_level_2_split_test_x.h5").write_bytes(b"\x1f\x8b still packed")
    with pytest.raises(UserError, match=r"test_x\.h5 is not an HDF5 file with x"):
        open_dataset(f"file://{tmp_path}", "pcam", allow_subset=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("SSA,", "XYZ,", "XYZ"),
        ("Partition", "Part", "lacks the column.*Partition"),
        (",train", ",holdout", "holdout"),
    ],
)
def test_a_table_that_does_not_match_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    uri = _make("mhist", tmp_path)
    path = tmp_path / "annotations.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        open_dataset(uri, "mhist", allow_subset=True)


def test_images_that_a_table_names_and_nobody_has_are_counted(tmp_path: Path) -> None:
    uri = _make("mhist", tmp_path)
    (tmp_path / "images" / "MHIST_aaa.png").unlink()
    with pytest.raises(UserError, match="train has 6 images, 2175 expected"):
        open_dataset(uri, "mhist")
    notes = open_dataset(uri, "mhist", allow_subset=True).notes
    assert any("images of annotations.csv that are missing: 1, first MHIST_aaa.png" in note for note in notes)


def _classes(name: str, uri: str, row: int) -> np.ndarray:  # type: ignore[type-arg]
    dataset = replace(MASKS[name], num_images=MINI[name]).open(uri)  # type: ignore[index]
    (data,) = dataset.read_masks([row])
    assert isinstance(data, bytes), data
    return np.asarray(Image.open(io.BytesIO(data)))


def test_consep_types_are_grouped(tmp_path: Path) -> None:
    classes = _classes("consep", _make("consep", tmp_path), 0)
    assert classes[::5, 0].tolist() == [0, 1, 2, 3, 3, 4, 4, 4]
    assert (classes[:, -1] == 0).all()


def test_monusac_outlines_are_painted_and_ambiguous_ones_do_not_count(tmp_path: Path) -> None:
    uri = _make("monusac", tmp_path)
    dataset = replace(MASKS["monusac"], num_images=MINI["monusac"]).open(uri)
    rows = {dataset.samples[i].split: i for i in range(len(dataset.samples))}
    train, val = _classes("monusac", uri, rows["train"]), _classes("monusac", uri, rows["val"])
    assert (train[10, 10], train[27, 33], train[0, 0]) == (1, 4, 0)
    assert (val[10, 10], val[27, 33]) == (1, IGNORE)
    assert dataset.samples[0].patient.startswith("TCGA-5P-A9K")


def test_outlines_are_filled_as_the_challenge_fills_them(tmp_path: Path) -> None:
    """Rows by `skimage.draw.polygon` (scikit-image 0.26), as MoNuSAC's own code and eva make masks."""
    outline = ((2.5, 1.0), (9.0, 4.5), (6.0, 9.0), (1.0, 7.0), (4.0, 5.0))
    trees.outlines(tmp_path / "a.xml", [("Epithelial", [outline])])
    trees.picture(tmp_path / "a.tif", 1)
    layers = parse_outlines((tmp_path / "a.xml").read_bytes())
    filled = paint(layers, (tmp_path / "a.tif").read_bytes(), lambda label: 1)
    assert ["".join(map(str, row)) for row in filled[:10, :10]] == [
        "0000000000", "0000000000", "0001100000", "0000111000", "0000111110",
        "0000111110", "0001111110", "0111111100", "0000111000", "0000001000",
    ]  # fmt: skip


def test_monuseg_has_nuclei_and_the_rest(tmp_path: Path) -> None:
    classes = _classes("monuseg", _make("monuseg", tmp_path), 0)
    assert sorted(np.unique(classes)) == [0, 1]
    assert (classes[5:21, 5:21] == 1).all() and classes[3, 3] == 0


def test_bcss_is_halved_and_grouped(tmp_path: Path) -> None:
    uri = _make("bcss", tmp_path)
    classes = _classes("bcss", uri, 0)
    assert classes.shape == (trees.SIDE_PX // 2, trees.SIDE_PX // 2)
    assert classes[3, [2, 7, 12, 17]].tolist() == [IGNORE, 0, 0, 4]
    dataset = replace(MASKS["bcss"], num_images=MINI["bcss"]).open(uri)
    (data,) = dataset.read([0])
    assert isinstance(data, bytes)
    assert Image.open(io.BytesIO(data)).size == (trees.SIDE_PX // 2, trees.SIDE_PX // 2)


def test_damaged_masks_are_reasons_and_spare_the_others(tmp_path: Path) -> None:
    uri = _make("consep", tmp_path)
    (tmp_path / "Train" / "Labels" / "train_2.mat").write_bytes(b"\x00" * 200)
    (tmp_path / "Train" / "Labels" / "train_3.mat").unlink()
    dataset = MASKS["consep"].open(uri, allow_subset=True)
    assert [left["source"] for left in dataset.unpaired] == ["Train/Images/train_3.png"]
    reasons = [m for m in dataset.read_masks(range(len(dataset.samples))) if not isinstance(m, bytes)]
    (reason,) = reasons
    assert "MATLAB" in reason.reason


@pytest.mark.parametrize("name", PRESETS)
def test_one_line_of_configuration_is_enough(name: str) -> None:
    config = RunConfig.model_validate({"evaluate": {"tasks": [{"preset": name, "dataset": "s3://d/x"}]}})
    (task,) = config.evaluate.tasks
    assert (task.name, getattr(task, "dataset", "")) == (name, "s3://d/x")
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_presets_carry_the_protocol_and_yield_to_the_line() -> None:
    tasks = [
        {"preset": "bach", "dataset": "b"},
        {"preset": "pcam-10shot", "dataset": "p", "probe": {"num_runs": 3}},
        {"preset": "crc", "kind": "knn", "name": "crc-knn", "dataset": "c"},
        {"preset": "bcss", "dataset": "m"},
    ]
    bach, shots, knn, bcss = RunConfig.model_validate({"evaluate": {"tasks": tasks}}).evaluate.tasks
    assert isinstance(bach, LinearProbeTask) and bach.probe.patience_epochs == 1250
    assert isinstance(shots, LinearProbeTask)
    assert (shots.probe.num_shots, shots.probe.num_runs, shots.probe.validate_every_epochs) == (10, 3, 10)
    assert (knn.kind, knn.name, getattr(knn, "layout", "")) == ("knn", "crc-knn", "crc")
    assert isinstance(bcss, SegmentationTask)
    assert (bcss.background, bcss.ignore_value, len(bcss.classes or ())) == (None, 255, 5)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no preset bahc; did you mean bach"):
        RunConfig.model_validate({"evaluate": {"tasks": [{"preset": "bahc", "dataset": "b"}]}})
