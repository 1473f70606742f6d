"""MHIST: colorectal polyps, hyperplastic or sessile serrated, labelled by a majority of seven."""

from __future__ import annotations

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.datasets.public.listing import Found, Listing, as_dataset
from eosin.evaluation.datasets.public.published import PublicDataset

_CLASSES = ("HP", "SSA")
_NAME, _LABEL, _PARTITION = "Image Name", "Majority Vote Label", "Partition"
_SPLITS = {"train": "train", "test": "val"}


def _read(listing: Listing) -> Dataset:
    images = {match["name"]: info for info, match in listing.images(r"images/(?P<name>[^/]+)")}
    rows = listing.read_table("annotations.csv", (_NAME, _LABEL, _PARTITION))
    known = [row for row in rows if row[_NAME] in images]
    notes = ["the test part also chooses the epoch, as in kaiko-eva: there is no other"]
    if len(known) < len(rows):
        first = next(row[_NAME] for row in rows if row[_NAME] not in images)
        notes.append(f"{len(rows) - len(known)} image(s) of annotations.csv are missing, first {first}")
    return as_dataset(
        listing,
        [Found(images[row[_NAME]], _sample(images[row[_NAME]].key, row, listing.uri)) for row in known],
        tuple(notes),
    )


def _sample(key: str, row: dict[str, str], uri: str) -> Sample:
    if row[_LABEL] not in _CLASSES or row[_PARTITION] not in _SPLITS:
        raise UserError(
            f"{uri}: annotations.csv says {_LABEL} {row[_LABEL]!r}, {_PARTITION} {row[_PARTITION]!r} "
            f"of {row[_NAME]}; known are {', '.join(_CLASSES)} and {', '.join(_SPLITS)}"
        )
    return Sample(key, row[_LABEL], _SPLITS[row[_PARTITION]])


MHIST = PublicDataset(
    title="MHIST",
    tree="images/MHIST_aaa.png and annotations.csv",
    num_images={"train": 2_175, "val": 977},
    read=_read,
    classes=_CLASSES,
)
