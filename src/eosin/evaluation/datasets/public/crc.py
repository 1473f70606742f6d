"""CRC: colorectal tissue in nine classes; trained on NCT-CRC-HE-100K, judged on CRC-VAL-HE-7K."""

from __future__ import annotations

from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.datasets.public.listing import Found, Listing, as_dataset
from eosin.evaluation.datasets.public.published import PublicDataset

_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
_SPLITS = {"NCT-CRC-HE-100K": "train", "CRC-VAL-HE-7K": "val"}
_PATTERN = rf"(?P<part>{'|'.join(_SPLITS)})/(?P<label>{'|'.join(_CLASSES)})/[^/]+\.tif"


def _read(listing: Listing) -> Dataset:
    return as_dataset(
        listing,
        [
            Found(info, Sample(info.key, match["label"], _SPLITS[match["part"]]))
            for info, match in listing.images(_PATTERN)
        ],
    )


CRC = PublicDataset(
    title="CRC (NCT-CRC-HE-100K, CRC-VAL-HE-7K)",
    tree="NCT-CRC-HE-100K/ADI/….tif and CRC-VAL-HE-7K/ADI/….tif",
    num_images={"train": 100_000, "val": 7_180},
    read=_read,
    classes=_CLASSES,
)
