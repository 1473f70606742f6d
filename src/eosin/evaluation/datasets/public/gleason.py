"""Gleason patterns in prostate tissue microarrays (Arvaniti et al. 2018), in tiles of 750 px."""

from __future__ import annotations

import re

from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.datasets.public.listing import Found, Listing, as_dataset
from eosin.evaluation.datasets.public.published import PublicDataset

_CLASSES = ("benign", "gleason_3", "gleason_4", "gleason_5")
_ARRAYS = {"ZT76": "val", "ZT111": "train", "ZT199": "train", "ZT204": "train"}
_PATTERN = (
    rf"train_validation_patches_750/(?:[^/]+/)?(?P<core>(?P<array>{'|'.join(_ARRAYS)})_[^/]+?)"
    r"_patch_\d+_class_(?P<label>[0-3])\.jpg"
)


def _read(listing: Listing) -> Dataset:
    return as_dataset(
        listing,
        [
            Found(
                info, Sample(info.key, _CLASSES[int(match["label"])], _ARRAYS[match["array"]], match["core"])
            )
            for info, match in listing.images(_PATTERN)
        ],
        (
            "judged on validation (array ZT76), as kaiko-eva does: figures on its test arrays are not stable",
            "patients are not published: the tissue core stands for the patient",
        ),
    )


def _split(match: re.Match[str]) -> str:
    return _ARRAYS[match["array"]]


GLEASON = PublicDataset(
    title="Gleason (Arvaniti), tiles of 750 px",
    tree="train_validation_patches_750/ZT76_39_A_1_1/ZT76_39_A_1_1_patch_12_class_0.jpg",
    num_images={"train": 15_303, "val": 2_482},
    read=_read,
    classes=_CLASSES,
)
