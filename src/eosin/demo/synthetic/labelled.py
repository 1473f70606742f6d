"""Labelled patches of each tissue class, from patients who have no slide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from eosin.demo.synthetic.config import CLASS_NAMES, SyntheticConfig, derived_seed
from eosin.demo.synthetic.scene import Rgb, draw_field
from eosin.demo.synthetic.texture import Stain
from eosin.records.patchset_shard import PatchRow

_FIELD_SIDE_PATCHES = 2


class LabelledPatient(NamedTuple):
    """A patient of the labelled set and the split they are in: train, val or test."""

    name: str
    split: str


def labelled_patients(config: SyntheticConfig) -> tuple[LabelledPatient, ...]:
    """Every patient lies in one split alone: half train, a sixth val, a third test, at least one each."""
    num = config.labelled_patients
    num_test = max(1, round(num / 3)) if num else 0
    num_val = max(1, round(num / 6)) if num else 0
    splits = ["train"] * (num - num_test - num_val) + ["val"] * num_val + ["test"] * num_test
    return tuple(LabelledPatient(f"labelled-{i + 1:02d}", split) for i, split in enumerate(splits))


def draw_patient(index: int, config: SyntheticConfig) -> list[PatchRow]:
    """All labelled patches of the `index`-th patient, by class.

    Patches are cut from fields of 2 × 2, drawn at the slides' mpp, put through the slides' JPEG
    and reduced to `labelled_mpp`: what a patch reader would hand over.
    """
    patient = labelled_patients(config)[index]
    stain = Stain.of_slide(np.random.default_rng([derived_seed(config.seed, "labelled-stain", index), 3]))
    per_field = _FIELD_SIDE_PATCHES**2
    rows: list[PatchRow] = []
    for class_number, name in enumerate(CLASS_NAMES):
        for field in range(-(-config.labelled_per_class // per_field)):
            seed = derived_seed(config.seed, f"labelled/{index}/{class_number}", field)
            wanted = min(per_field, config.labelled_per_class - field * per_field)
            rows += _field_rows(patient, name, field, seed, stain, wanted, config)
    return rows


def _field_rows(patient: LabelledPatient, class_name: str, field: int, seed: int, stain: Stain, wanted: int,
                config: SyntheticConfig) -> list[PatchRow]:  # fmt: skip
    patch_px = config.labelled_patch_px
    side_px = _FIELD_SIDE_PATCHES * patch_px
    level0_px = round(side_px * config.labelled_mpp / config.mpp)
    pixels = _as_scanned(
        draw_field(level0_px, level0_px, class_name, stain, config.mpp, seed), config.quality
    )
    reduced = cv2.resize(pixels, (side_px, side_px), interpolation=cv2.INTER_AREA)
    rows = []
    for place in range(wanted):
        y, x = (patch_px * step for step in divmod(place, _FIELD_SIDE_PATCHES))
        patch = reduced[y : y + patch_px, x : x + patch_px]
        rows.append(PatchRow(
            image=_png(patch), slide=f"{patient.name}/{class_name}-{field}", patient=patient.name,
            x_px=round(x * level0_px / side_px), y_px=round(y * level0_px / side_px), mpp=config.labelled_mpp,
            foreground=1.0, label=class_name, split=patient.split))  # fmt: skip
    return rows


def interleaved(rows: Sequence[PatchRow], seed: int) -> list[PatchRow]:
    """The rows in a seeded random order, so that a prefix of them holds every class."""
    order = np.random.default_rng([seed, 4]).permutation(len(rows))
    return [rows[int(place)] for place in order]


def _as_scanned(pixels: Rgb, quality: int) -> Rgb:
    jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    return simplejpeg.decode_jpeg(jpeg, colorspace="RGB")  # type: ignore[no-any-return]  # simplejpeg has no types


def _png(patch: Rgb) -> bytes:
    _, encoded = cv2.imencode(".png", cv2.cvtColor(patch, cv2.COLOR_RGB2BGR))
    return bytes(encoded.tobytes())
