"""MoNuSeg 2018: nuclei of several organs against everything else, in its official split."""

from __future__ import annotations

from eosin.evaluation.datasets.dataset import Sample
from eosin.evaluation.datasets.mask_folder import MaskedDataset
from eosin.evaluation.datasets.masks import Classes
from eosin.evaluation.datasets.patients import tcga_patient
from eosin.evaluation.datasets.public.listing import Listing
from eosin.evaluation.datasets.public.masked import as_masked, pair_up
from eosin.evaluation.datasets.public.polygons import paint, parse_outlines
from eosin.evaluation.datasets.public.published import PublicDataset

_SPLITS = {"MoNuSeg 2018 Training Data": "train", "MoNuSegTestData": "test"}
_PATTERN = rf"(?P<part>{'|'.join(_SPLITS)})/(?:.+/)?(?P<name>[^/]+)\.{{}}"


def _read(listing: Listing) -> MaskedDataset:
    masks = {
        f"{match['part']}/{match['name']}": info for info, match in listing.matching(_PATTERN.format("xml"))
    }
    images = [
        (
            info,
            f"{match['part']}/{match['name']}",
            Sample(info.key, "", _SPLITS[match["part"]], tcga_patient(info.key)),
        )
        for info, match in listing.matching(_PATTERN.format("tif"))
    ]
    pairs, alone = pair_up(images, masks)
    return as_masked(listing, pairs, _classes, unpaired=alone)


def _classes(mask: bytes, image: bytes) -> Classes:
    return paint(parse_outlines(mask), image, lambda label: 1)


MONUSEG = PublicDataset(
    title="MoNuSeg 2018",
    tree="MoNuSeg 2018 Training Data/Tissue Images/TCGA-….tif and Annotations/TCGA-….xml",
    num_images={"train": 37, "test": 14},
    read=_read,
)
