"""UniToPatho: colorectal polyps in six classes, its patches of 800 µm in its official split."""

from __future__ import annotations

import re

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.datasets.public.listing import Found, Listing, as_dataset
from eosin.evaluation.datasets.public.published import PublicDataset

# The order of `top_label`.
_CLASSES = ("HP", "NORM", "TA.HG", "TA.LG", "TVA.HG", "TVA.LG")
_TABLES = {"800/train.csv": "train", "800/test.csv": "val"}
# As in `188-B4-NORM.ndpi_ROI__mpp0.44_reg001_crop_sk00026_(15904,10751,1812,1812).png`.
_SLIDE = re.compile(r"(?P<slide>.+?)\.ndpi_ROI")


def _read(listing: Listing) -> Dataset:
    images = {match["name"]: info for info, match in listing.images(r"800/(?:.+/)?(?P<name>[^/]+\.png)")}
    found, num_missing = [], 0
    for path, split in _TABLES.items():
        for row in listing.read_table(path, ("image_id", "top_label")):
            info = images.get(row["image_id"])
            if info is None:
                num_missing += 1
            else:
                found.append(Found(info, _sample(info.key, row, split, f"{listing.uri}/{path}")))
    notes = [f"{num_missing} image(s) of its tables are missing"] if num_missing else []
    without = sum(not each.sample.patient for each in found)
    if without:
        notes.append(f"{without} image(s) name no slide: figures are over images")
    else:
        notes.append("patients are not published: the slide stands for the patient")
    return as_dataset(listing, found, tuple(notes))


def _sample(key: str, row: dict[str, str], split: str, table: str) -> Sample:
    label = row["top_label"]
    if not label.isdigit() or int(label) >= len(_CLASSES):
        raise UserError(f"{table}: top_label {label!r} of {row['image_id']} is not 0 to {len(_CLASSES) - 1}")
    slide = _SLIDE.match(row["image_id"])
    return Sample(key, _CLASSES[int(label)], split, slide["slide"] if slide else "")


UNITOPATHO = PublicDataset(
    title="UniToPatho (800)",
    tree="800/HP/….png, 800/train.csv and 800/test.csv",
    num_images={"train": 6_270, "val": 2_399},
    read=_read,
    classes=_CLASSES,
)
