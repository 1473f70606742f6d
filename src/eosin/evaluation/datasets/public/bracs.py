"""BRACS: regions of breast lesions in seven classes, in its official split."""

from __future__ import annotations

from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.datasets.public.listing import Found, Listing, as_dataset
from eosin.evaluation.datasets.public.published import PublicDataset

_CLASSES = ("0_N", "1_PB", "2_UDH", "3_FEA", "4_ADH", "5_DCIS", "6_IC")
_PATTERN = (
    rf"BRACS_RoI/latest_version/(?P<split>train|val|test)/(?P<label>{'|'.join(_CLASSES)})/"
    r"(?P<slide>BRACS_\d+)_[^/]+\.png"
)


def _read(listing: Listing) -> Dataset:
    # The images name no patient; regions of one slide are at least not counted as independent.
    return as_dataset(
        listing,
        [
            Found(info, Sample(info.key, match["label"], match["split"], patient=match["slide"]))
            for info, match in listing.images(_PATTERN)
        ],
        ("patients are not published: the slide stands for the patient",),
    )


BRACS = PublicDataset(
    title="BRACS (regions of interest)",
    tree="BRACS_RoI/latest_version/train/0_N/BRACS_1003728_N_1.png",
    num_images={"train": 3657, "val": 312, "test": 570},
    read=_read,
    classes=_CLASSES,
)
