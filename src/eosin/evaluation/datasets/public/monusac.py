"""MoNuSAC 2020: nuclei of four organs in four types; what is ambiguous is neither learned nor judged."""

from __future__ import annotations

from eosin.evaluation.datasets.dataset import Sample
from eosin.evaluation.datasets.mask_folder import MaskedDataset
from eosin.evaluation.datasets.masks import IGNORE, Classes
from eosin.evaluation.datasets.patients import tcga_patient
from eosin.evaluation.datasets.public.listing import Listing
from eosin.evaluation.datasets.public.masked import as_masked, pair_up
from eosin.evaluation.datasets.public.polygons import paint, parse_outlines
from eosin.evaluation.datasets.public.published import PublicDataset

_SPLITS = {"MoNuSAC_images_and_annotations": "train", "MoNuSAC Testing Data and Annotations": "val"}
_TYPES = {"epithelial": 1, "lymphocyte": 2, "neutrophil": 3, "macrophage": 4}
_PATTERN = rf"(?P<name>(?P<part>{'|'.join(_SPLITS)})/.+)\.{{}}"


def _read(listing: Listing) -> MaskedDataset:
    masks = {match["name"]: info for info, match in listing.matching(_PATTERN.format("xml"))}
    images = [
        (info, match["name"], Sample(info.key, "", _SPLITS[match["part"]], tcga_patient(info.key)))
        for info, match in listing.matching(_PATTERN.format("tif"))
    ]
    pairs, alone = pair_up(images, masks)
    note = "the test part also chooses the step, as in kaiko-eva: there is no other"
    return as_masked(listing, pairs, _classes, unpaired=alone, notes=(note,))


def _classes(mask: bytes, image: bytes) -> Classes:
    return paint(parse_outlines(mask), image, lambda label: _TYPES.get(label.strip().lower(), IGNORE))


MONUSAC = PublicDataset(
    title="MoNuSAC 2020",
    tree="MoNuSAC_images_and_annotations/TCGA-…/….tif and ….xml",
    num_images={"train": 209, "val": 85},
    read=_read,
)
