"""BCSS: breast tumour regions in 21 tissue types, grouped into five, at 0.5 mpp; split by institute."""

from __future__ import annotations

from eosin.evaluation.datasets.dataset import Sample
from eosin.evaluation.datasets.mask_folder import MaskedDataset
from eosin.evaluation.datasets.masks import IGNORE, Classes, load_mask
from eosin.evaluation.datasets.patients import tcga_patient
from eosin.evaluation.datasets.public.listing import Listing
from eosin.evaluation.datasets.public.masked import as_masked, pair_up, regrouped
from eosin.evaluation.datasets.public.published import PublicDataset

_VAL_INSTITUTES = frozenset({"BH", "C8", "A8", "A1", "E9"})
_TEST_INSTITUTES = frozenset({"OL", "LL", "E2", "EW", "GM", "S3"})
_TUMOR, _STROMA, _INFLAMMATORY, _NECROSIS, _OTHER = range(5)
# By published value: what is outside the region of interest does not count; 10 and 11 are plasma and other
# immune cells, 19 and 20 angioinvasion and carcinoma in situ.
_GROUPS = (
    IGNORE, _TUMOR, _STROMA, _INFLAMMATORY, _NECROSIS, *[_OTHER] * 5, _INFLAMMATORY, _INFLAMMATORY,
    *[_OTHER] * 7, _TUMOR, _TUMOR, _OTHER,
)  # fmt: skip
# The images are published at 0.25 mpp.
_SCALE = 0.5


def _read(listing: Listing) -> MaskedDataset:
    masks = {match["name"]: info for info, match in listing.matching(r"masks/(?P<name>[^/]+)\.png")}
    pattern = r"rgbs_colorNormalized/(?P<name>TCGA-(?P<institute>\w\w)-[^/]+)\.png"
    images = [
        (info, match["name"], Sample(info.key, "", _split(match["institute"]), tcga_patient(info.key)))
        for info, match in listing.matching(pattern)
    ]
    pairs, alone = pair_up(images, masks)
    return as_masked(listing, pairs, _classes, unpaired=alone, scale=_SCALE)


def _split(institute: str) -> str:
    if institute in _TEST_INSTITUTES:
        return "test"
    return "val" if institute in _VAL_INSTITUTES else "train"


def _classes(mask: bytes, image: bytes) -> Classes:
    return regrouped(load_mask(mask), _GROUPS, "type")


BCSS = PublicDataset(
    title="BCSS",
    tree="rgbs_colorNormalized/TCGA-….png and masks/TCGA-….png",
    num_images={"train": 76, "val": 30, "test": 45},
    read=_read,
)
