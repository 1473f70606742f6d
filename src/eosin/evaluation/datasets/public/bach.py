"""BACH: breast biopsies in four classes (ICIAR 2018), split by patient as in kaiko-eva."""

from __future__ import annotations

from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.datasets.public.listing import Found, Listing, as_dataset
from eosin.evaluation.datasets.public.published import PublicDataset

# Folder and prefix of the file names; 100 images of each, b001.tif to b100.tif.
_CLASSES = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}
_PER_CLASS = 100
# Of the 400 images in class and number order, those of kaiko-eva's validation split, [first, end).
_VAL_RANGES = ((41, 59), (60, 90), (139, 169), (240, 258), (260, 273), (345, 368))


def _read(listing: Listing) -> Dataset:
    return as_dataset(listing, [each for name in _CLASSES for each in _of_class(listing, name)])


def _of_class(listing: Listing, name: str) -> list[Found]:
    first = _PER_CLASS * list(_CLASSES).index(name)
    return [
        Found(info, Sample(info.key, name, _split(first + int(match["number"]) - 1)))
        for info, match in listing.images(rf"Photos/{name}/{_CLASSES[name]}(?P<number>\d{{3}})\.tif")
        if 1 <= int(match["number"]) <= _PER_CLASS
    ]


def _split(place: int) -> str:
    return "val" if any(first <= place < end for first, end in _VAL_RANGES) else "train"


BACH = PublicDataset(
    title="BACH (ICIAR 2018)",
    tree="Photos/Benign/b001.tif",
    num_images={"train": 268, "val": 132},
    read=_read,
    classes=tuple(_CLASSES),
)
