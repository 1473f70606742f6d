"""BreakHis: breast tumours at 40×, the four classes with seven patients or more, split by patient."""

from __future__ import annotations

from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.datasets.public.listing import Found, Listing, as_dataset
from eosin.evaluation.datasets.public.published import PublicDataset

_CLASSES = ("DC", "F", "MC", "TA")
_VAL_PATIENTS = frozenset(
    {
        *("18842D", "19979", "15275", "15792", "16875", "3909", "5287"),
        *("16716", "2773", "5695", "16184CD", "23060CD", "21998CD", "21998EF"),
    }
)
_PATTERN = rf"40X/SOB_[BM]_(?P<label>{'|'.join(_CLASSES)})-\d+-(?P<patient>[0-9A-Z]+)-40-\d+\.png"


def _read(listing: Listing) -> Dataset:
    return as_dataset(
        listing,
        [
            Found(info, Sample(info.key, match["label"], _split(match["patient"]), match["patient"]))
            for info, match in listing.images(_PATTERN)
        ],
    )


def _split(patient: str) -> str:
    return "val" if patient in _VAL_PATIENTS else "train"


BREAKHIS = PublicDataset(
    title="BreakHis at 40×",
    tree="…/40X/SOB_B_TA-14-4659-40-001.png",
    num_images={"train": 1132, "val": 339},
    read=_read,
    classes=_CLASSES,
)
