"""CoNSeP: colorectal nuclei in seven types, grouped into four as in HoVer-Net."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from eosin.errors import MissingDependency
from eosin.evaluation.datasets.dataset import Sample
from eosin.evaluation.datasets.mask_folder import MaskedDataset
from eosin.evaluation.datasets.masks import Classes
from eosin.evaluation.datasets.public.listing import Listing
from eosin.evaluation.datasets.public.masked import as_masked, pair_up, regrouped
from eosin.evaluation.datasets.public.published import PublicDataset
from eosin.evaluation.transform import BadImage

_SPLITS = {"Train": "train", "Test": "val"}
# Background, other, inflammatory, healthy and malignant epithelial as one, then three spindle-shaped as one.
_GROUPS = (0, 1, 2, 3, 3, 4, 4, 4)


def _read(listing: Listing) -> MaskedDataset:
    loadmat = _import_loadmat()
    masks = {
        match["name"]: info for info, match in listing.matching(r"(?P<name>(?:Train|Test)/Labels/[^/]+)\.mat")
    }
    images = [
        (info, f"{match['part']}/Labels/{match['name']}", Sample(info.key, split=_SPLITS[match["part"]]))
        for info, match in listing.matching(r"(?P<part>Train|Test)/Images/(?P<name>[^/]+)\.png")
    ]
    pairs, alone = pair_up(images, masks)

    def classes(mask: bytes, image: bytes) -> Classes:
        return _classes(loadmat, mask)

    return as_masked(listing, pairs, classes, unpaired=alone)


def _classes(loadmat: Any, data: bytes) -> Classes:
    try:
        values = np.asarray(loadmat(io.BytesIO(data), variable_names=["type_map"])["type_map"])
    except Exception as error:  # whatever the parser makes of damaged bytes
        raise BadImage(f"not a MATLAB file with type_map: {type(error).__name__}: {error}") from error
    if values.ndim != 2 or not np.array_equal(values, np.round(values)):
        raise BadImage(f"type_map is {values.dtype} {values.shape}, not a class for each pixel")
    return regrouped(values.astype(np.int64), _GROUPS, "type")


def _import_loadmat() -> Any:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingDependency("scipy", "datasets") from error
    return loadmat


CONSEP = PublicDataset(
    title="CoNSeP",
    tree="Train/Images/train_1.png and Train/Labels/train_1.mat",
    num_images={"train": 27, "val": 14},
    read=_read,
)
