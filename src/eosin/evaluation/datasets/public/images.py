"""Public datasets of labelled images as they are published; split as kaiko-eva where they have no split."""

import re
from collections.abc import Callable

from eosin.config.presets import ImageLayout
from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.datasets.public.pcam import PCAM
from eosin.evaluation.datasets.public.published import Found, Listing, PublicDataset, as_dataset

_SLIDE_NOTE = "patients are not published: the slide stands for the patient"


def _by_name(
    pattern: str, sample: Callable[[str, re.Match[str]], Sample | None], *notes: str
) -> Callable[[Listing], Dataset]:
    """Reads images whose path says all: `sample` makes a sample of key and match, or None of what is none."""

    def read(listing: Listing) -> Dataset:
        found = ((info, sample(info.key, match)) for info, match in listing.images(pattern))
        return as_dataset(listing, [Found(info, each) for info, each in found if each], notes)

    return read


# BACH (ICIAR 2018). Folder and prefix of the file names; 100 images of each, b001.tif to b100.tif.
_BACH_CLASSES = {"Benign": "b", "InSitu": "is", "Invasive": "iv", "Normal": "n"}
_BACH_PATTERN = r"Photos/(?P<label>Benign|InSitu|Invasive|Normal)/(?P<prefix>[a-z]+)(?P<number>\d{3})\.tif"
_PER_CLASS = 100
# Of the 400 images in class and number order, those of kaiko-eva's validation (by patient), [first, end).
_VAL_RANGES = ((41, 59), (60, 90), (139, 169), (240, 258), (260, 273), (345, 368))


def _bach(key: str, match: re.Match[str]) -> Sample | None:
    label, number = match["label"], int(match["number"])
    if match["prefix"] != _BACH_CLASSES[label] or not 1 <= number <= _PER_CLASS:
        return None
    place = _PER_CLASS * list(_BACH_CLASSES).index(label) + number - 1
    return Sample(key, label, "val" if any(a <= place < b for a, b in _VAL_RANGES) else "train")


_BRACS_CLASSES = ("0_N", "1_PB", "2_UDH", "3_FEA", "4_ADH", "5_DCIS", "6_IC")
_BRACS_PATTERN = (
    rf"BRACS_RoI/latest_version/(?P<split>train|val|test)/(?P<label>{'|'.join(_BRACS_CLASSES)})/"
    r"(?P<slide>BRACS_\d+)_[^/]+\.png"
)

# BreakHis at 40×: the four classes with seven patients or more.
_BREAKHIS_CLASSES = ("TA", "MC", "F", "DC")
_BREAKHIS_VAL = frozenset(
    {
        *("18842D", "19979", "15275", "15792", "16875", "3909", "5287"),
        *("16716", "2773", "5695", "16184CD", "23060CD", "21998CD", "21998EF"),
    }
)
_BREAKHIS_PATTERN = (
    rf"40X/SOB_[BM]_(?P<label>{'|'.join(_BREAKHIS_CLASSES)})-\d+-(?P<patient>[0-9A-Z]+)-40-\d+\.png"
)

_CRC_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
_CRC_SPLITS = {"NCT-CRC-HE-100K": "train", "CRC-VAL-HE-7K": "val"}
_CRC_PATTERN = rf"(?P<part>{'|'.join(_CRC_SPLITS)})/(?P<label>{'|'.join(_CRC_CLASSES)})/[^/]+\.tif"

# Gleason patterns in prostate tissue microarrays (Arvaniti et al. 2018), in tiles of 750 px.
_GLEASON_CLASSES = ("benign", "gleason_3", "gleason_4", "gleason_5")
_ARRAYS = {"ZT76": "val", "ZT111": "train", "ZT199": "train", "ZT204": "train"}
_GLEASON_PATTERN = (
    rf"train_validation_patches_750/(?:[^/]+/)?(?P<core>(?P<array>{'|'.join(_ARRAYS)})_[^/]+?)"
    r"_patch_\d+_class_(?P<label>[0-3])\.jpg"
)

# MHIST: hyperplastic or sessile serrated polyps, labelled by a majority of seven.
_MHIST_CLASSES = ("SSA", "HP")
_NAME, _LABEL, _PARTITION = "Image Name", "Majority Vote Label", "Partition"
_MHIST_SPLITS = {"train": "train", "test": "val"}


def _read_mhist(listing: Listing) -> Dataset:
    images = {match["name"]: info for info, match in listing.images(r"images/(?P<name>[^/]+)")}
    rows = listing.read_table("annotations.csv", (_NAME, _LABEL, _PARTITION))
    known = [row for row in rows if row[_NAME] in images]
    notes = ["the test part also chooses the epoch, as in kaiko-eva: there is no other"]
    if len(known) < len(rows):
        first = next(row[_NAME] for row in rows if row[_NAME] not in images)
        notes.append(f"images of annotations.csv that are missing: {len(rows) - len(known)}, first {first}")
    found = [Found(images[row[_NAME]], _mhist(images[row[_NAME]].key, row, listing.uri)) for row in known]
    return as_dataset(listing, found, tuple(notes))


def _mhist(key: str, row: dict[str, str], uri: str) -> Sample:
    if row[_LABEL] not in _MHIST_CLASSES or row[_PARTITION] not in _MHIST_SPLITS:
        raise UserError(
            f"{uri}: annotations.csv says {_LABEL} {row[_LABEL]!r}, {_PARTITION} {row[_PARTITION]!r} "
            f"of {row[_NAME]}; known are {', '.join(_MHIST_CLASSES)} and {', '.join(_MHIST_SPLITS)}"
        )
    return Sample(key, row[_LABEL], _MHIST_SPLITS[row[_PARTITION]])


# UniToPatho: colorectal polyps, patches of 800 µm; the classes in the order of `top_label`.
_UNITOPATHO_CLASSES = ("HP", "NORM", "TA.HG", "TA.LG", "TVA.HG", "TVA.LG")
_UNITOPATHO_TABLES = {"800/train.csv": "train", "800/test.csv": "val"}
# As in `188-B4-NORM.ndpi_ROI__mpp0.44_reg001_crop_sk00026_(15904,10751,1812,1812).png`.
_SLIDE = re.compile(r"(?P<slide>.+?)\.ndpi_ROI")


def _read_unitopatho(listing: Listing) -> Dataset:
    images = {match["name"]: info for info, match in listing.images(r"800/(?:.+/)?(?P<name>[^/]+\.png)")}
    found, num_missing = [], 0
    for path, split in _UNITOPATHO_TABLES.items():
        for row in listing.read_table(path, ("image_id", "top_label")):
            info = images.get(row["image_id"])
            if info is None:
                num_missing += 1
            else:
                found.append(Found(info, _unitopatho(info.key, row, split, f"{listing.uri}/{path}")))
    notes = [f"images of its tables that are missing: {num_missing}"] if num_missing else []
    without = sum(not each.sample.patient for each in found)
    notes.append(f"figures are over images; those of no named slide: {without}" if without else _SLIDE_NOTE)
    return as_dataset(listing, found, tuple(notes))


def _unitopatho(key: str, row: dict[str, str], split: str, table: str) -> Sample:
    label, last = row["top_label"], len(_UNITOPATHO_CLASSES) - 1
    if not label.isdigit() or int(label) > last:
        raise UserError(f"{table}: top_label {label!r} of {row['image_id']} is not 0 to {last}")
    slide = _SLIDE.match(row["image_id"])
    return Sample(key, _UNITOPATHO_CLASSES[int(label)], split, slide["slide"] if slide else "")


IMAGES: dict[ImageLayout, PublicDataset[Dataset]] = {
    "bach": PublicDataset(
        title="BACH (ICIAR 2018)",
        tree="Photos/Benign/b001.tif",
        num_images={"train": 268, "val": 132},
        read=_by_name(_BACH_PATTERN, _bach),
        classes=tuple(_BACH_CLASSES),
    ),
    "bracs": PublicDataset(
        title="BRACS (regions of interest)",
        tree="BRACS_RoI/latest_version/train/0_N/BRACS_1003728_N_1.png",
        num_images={"train": 3657, "val": 312, "test": 570},
        read=_by_name(
            _BRACS_PATTERN, lambda key, m: Sample(key, m["label"], m["split"], m["slide"]), _SLIDE_NOTE
        ),
        classes=_BRACS_CLASSES,
    ),
    "breakhis": PublicDataset(
        title="BreakHis at 40×",
        tree="…/40X/SOB_B_TA-14-4659-40-001.png",
        num_images={"train": 1132, "val": 339},
        read=_by_name(
            _BREAKHIS_PATTERN,
            lambda key, m: Sample(
                key, m["label"], "val" if m["patient"] in _BREAKHIS_VAL else "train", m["patient"]
            ),
        ),
        classes=_BREAKHIS_CLASSES,
    ),
    "crc": PublicDataset(
        title="CRC (NCT-CRC-HE-100K, CRC-VAL-HE-7K)",
        tree="NCT-CRC-HE-100K/ADI/….tif and CRC-VAL-HE-7K/ADI/….tif",
        num_images={"train": 100_000, "val": 7_180},
        read=_by_name(_CRC_PATTERN, lambda key, m: Sample(key, m["label"], _CRC_SPLITS[m["part"]])),
        classes=_CRC_CLASSES,
    ),
    "gleason": PublicDataset(
        title="Gleason (Arvaniti), tiles of 750 px",
        tree="train_validation_patches_750/ZT76_39_A_1_1/ZT76_39_A_1_1_patch_12_class_0.jpg",
        num_images={"train": 15_303, "val": 2_482},
        read=_by_name(
            _GLEASON_PATTERN,
            lambda key, m: Sample(key, _GLEASON_CLASSES[int(m["label"])], _ARRAYS[m["array"]], m["core"]),
            "judged on validation (array ZT76), as kaiko-eva does: figures on its test arrays are not stable",
            "patients are not published: the tissue core stands for the patient",
        ),
        classes=_GLEASON_CLASSES,
    ),
    "mhist": PublicDataset(
        title="MHIST",
        tree="images/MHIST_aaa.png and annotations.csv",
        num_images={"train": 2_175, "val": 977},
        read=_read_mhist,
        classes=_MHIST_CLASSES,
    ),
    "pcam": PCAM,
    "unitopatho": PublicDataset(
        title="UniToPatho (800)",
        tree="800/HP/….png, 800/train.csv and 800/test.csv",
        num_images={"train": 6_270, "val": 2_399},
        read=_read_unitopatho,
        classes=_UNITOPATHO_CLASSES,
    ),
}
