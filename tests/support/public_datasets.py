"""Miniature trees of public datasets, laid out as they are published.

Names are those of kaiko-ai/eva 0.4.5, tests/eva/assets/vision/datasets, on which eva tests its own
readers; `PUBLISHED` has some as they stand there. MoNuSeg, which eva does not read, follows the folders of
its challenge's two archives; PatchCamelyon's `_meta.csv` those of basveeling/pcam.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIDE_PX = 40
_BENIGN = "BreaKHis_v1/histology_slides/breast/benign/SOB"
# Preset, path, split, label, patient.
PUBLISHED = (
    ("bach", "ICIAR2018_BACH_Challenge/Photos/InSitu/is001.tif", "train", "InSitu", ""),
    ("bracs", "BRACS_RoI/latest_version/test/1_PB/BRACS_264_PB_18.png", "test", "1_PB", "BRACS_264"),
    ("bracs", "BRACS_RoI/latest_version/val/0_N/BRACS_265_N_5.png", "val", "0_N", "BRACS_265"),
    (
        "breakhis",
        f"{_BENIGN}/tubular_adenoma/SOB_B_A_14-21978AB/SOB_B_TA_14-3411F/40X/SOB_B_TA-14-3411F-40-001.png",
        "train", "TA", "3411F",
    ),
    (
        "breakhis",
        "BreaKHis_v1/histology_slides/breast/malignant/SOB/mucinous_carcinoma/SOB_M_MC_14-19979/40X/"
        "SOB_M_MC-14-19979-40-001.png",
        "val", "MC", "19979",
    ),
    ("crc", "CRC-VAL-HE-7K/ADI/ADI-SIHVHHPH.tif", "val", "ADI", ""),
    ("crc", "NCT-CRC-HE-100K/BACK/BACK-YYYHKNMK.tif", "train", "BACK", ""),
    ("crc", "NCT-CRC-HE-100K-NONORM/BACK/BACK-YYYHKNMK.tif", None, "", ""),
    (
        "gleason",
        "train_validation_patches_750/ZT76_39_A_1_2/ZT76_39_A_1_2_patch_00_class_0.jpg",
        "val", "benign", "ZT76_39_A_1_2",
    ),
    (
        "gleason",
        "train_validation_patches_750/ZT204_6_B_7_8/ZT204_6_B_7_8_patch_3_class_2.jpg",
        "train", "gleason_4", "ZT204_6_B_7_8",
    ),
    ("gleason", "test_patches_750/patho_1/ZT80_38_A_1_2/ZT80_38_A_1_2_patch_18_class_1.jpg", None, "", ""),
    (
        "bcss",
        "rgbs_colorNormalized/TCGA-C8-A3XY-DX1_xmin76297_ymin35510_MPP-0.2500.png",
        "val", "", "TCGA-C8-A3XY",
    ),
    (
        "bcss",
        "rgbs_colorNormalized/TCGA-OL-A5D6-DX1_xmin115108_ymin40554_MPP-0.2500.png",
        "test", "", "TCGA-OL-A5D6",
    ),
    ("consep", "Test/Images/test_1.png", "val", "", ""),
    (
        "monusac",
        "MoNuSAC_images_and_annotations/TCGA-69-7760-01Z-00-DX1/TCGA-69-7760-01Z-00-DX1_001.tif",
        "train", "", "TCGA-69-7760",
    ),
    (
        "monusac",
        "MoNuSAC Testing Data and Annotations/TCGA-2Z-A9JG-01Z-00-DX1/TCGA-2Z-A9JG-01Z-00-DX1_2.tif",
        "val", "", "TCGA-2Z-A9JG",
    ),
)  # fmt: skip
# Where a mask lies beside an image of `PUBLISHED`.
MASK_OF = {
    "bcss": ("rgbs_colorNormalized/", "masks/", ".png"),
    "consep": ("/Images/", "/Labels/", ".mat"),
    "monusac": ("", "", ".xml"),
}
_CRC = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
_BRACS = ("0_N", "1_PB", "2_UDH", "3_FEA", "4_ADH", "5_DCIS", "6_IC")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    color = np.random.default_rng(seed).integers(60, 220, 3)
    noise = np.random.default_rng(seed + 1).normal(0, 20, (SIDE_PX, SIDE_PX, 3))
    Image.fromarray(np.clip(color + noise, 0, 255).astype(np.uint8)).save(path)


def table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def bach(root: Path) -> None:
    """All 400 names, so that the split can be counted; one real image copied 400 times."""
    picture(root / "model.tif", 1)
    data = (root / "model.tif").read_bytes()
    (root / "model.tif").unlink()
    for folder, prefix in (("Benign", "b"), ("InSitu", "is"), ("Invasive", "iv"), ("Normal", "n")):
        photos = root / "ICIAR2018_BACH_Challenge" / "Photos" / folder
        photos.mkdir(parents=True)
        for number in range(1, 101):
            (photos / f"{prefix}{number:03d}.tif").write_bytes(data)
        (photos / "Thumbs.db").write_bytes(b"x")


def bracs(root: Path) -> None:
    for i, split in enumerate(("train", "val", "test")):
        for j, name in enumerate(_BRACS):
            folder = root / "BRACS_RoI" / "latest_version" / split / name
            for n in range(2):
                picture(folder / f"BRACS_{264 + 10 * i + j}_{name[2:]}_{n + 1}.png", j)


def breakhis(root: Path) -> None:
    base = root / "BreaKHis_v1" / "histology_slides" / "breast"
    for kind, benign, code, val in (
        ("tubular_adenoma", True, "TA", "3909"),
        ("fibroadenoma", True, "F", "21998CD"),
        ("mucinous_carcinoma", False, "MC", "19979"),
        ("ductal_carcinoma", False, "DC", "5287"),
        ("adenosis", True, "A", "22549AB"),  # a class that is not judged
    ):
        for patient in ("777", "888B", val):
            letter = "B" if benign else "M"
            name = f"SOB_{letter}_{code}-14-{patient}"
            folder = base / ("benign" if benign else "malignant") / "SOB" / kind / name
            picture(folder / "40X" / f"{name}-40-001.png", len(code))
            picture(folder / "100X" / f"{name}-100-001.png", 9)


def crc(root: Path) -> None:
    for part, count in (("NCT-CRC-HE-100K", 3), ("CRC-VAL-HE-7K", 2)):
        for j, name in enumerate(_CRC):
            for n in range(count):
                picture(root / part / name / f"{name}-{'SIHVWYQ'[n]}HHPH.tif", j)


def gleason(root: Path) -> None:
    for array in ("ZT76", "ZT111", "ZT199", "ZT204"):
        for label in range(4):
            core = f"{array}_4_A_{label}_1"
            picture(root / "train_validation_patches_750" / core / f"{core}_patch_3_class_{label}.jpg", label)
    picture(root / "test_patches_750" / "patho_1" / "ZT80_1_A_1_1" / "ZT80_1_A_1_1_patch_1_class_2.jpg", 2)


def mhist(root: Path) -> None:
    rows = []
    for n in range(10):
        name = f"MHIST_{chr(97 + n)}aa.png"
        picture(root / "images" / name, n % 2)
        rows.append((name, ("HP", "SSA")[n % 2], 2 + n % 2 * 3, "test" if n % 5 == 4 or n == 3 else "train"))
    columns = ("Image Name", "Majority Vote Label", "Number of Annotators who Selected SSA (Out of 7)")
    table(root / "annotations.csv", (*columns, "Partition"), rows)


def pcam(root: Path, *, counts: Sequence[int] = (24, 8, 10), with_slides: bool = True) -> None:
    import h5py

    root.mkdir(parents=True, exist_ok=True)
    for split, count in zip(("train", "valid", "test"), counts, strict=True):
        random = np.random.default_rng(count)
        labels = (np.arange(count) % 2).astype(np.uint8)
        pixels = (
            random.integers(0, 90, (count, 96, 96, 3), dtype=np.uint8) + 120 * labels[:, None, None, None]
        )
        stem = f"camelyonpatch_level_2_split_{split}"
        with h5py.File(root / f"{stem}_x.h5", "w") as file:
            file["x"] = pixels
        with h5py.File(root / f"{stem}_y.h5", "w") as file:
            file["y"] = labels[:, None, None, None]
        if with_slides:
            rows = [(i, i % 2, f"camelyon16_train_{split}_{i // 4:03d}") for i in range(count)]
            table(root / f"{stem}_meta.csv", ("", "tumor_patch", "wsi"), rows)


# Names as published: kaiko-ai/eva 0.4.5, tests/eva/assets/vision/datasets/unitopatho/800; EIDOSLAB's tables.
UNITOPATHO_NAMES = {
    "188-B4-NORM.ndpi_ROI__mpp0.44_reg001_crop_sk00026_(15904,10751,1812,1812).png": "188-B4-NORM",
    "243-B5-TVALG.ndpi_ROI__mpp0.44_reg002_crop_sk00033_(7688,23775,1812,1812).png": "243-B5-TVALG",
    "TVA.LG CASO 2 - 2018-12-04 13.19.16.ndpi_ROI__mpp0.44_reg000_crop_sk00021_(9060,9947,1812,1812).png": (
        "TVA.LG CASO 2 - 2018-12-04 13.19.16"
    ),
}


def unitopatho(root: Path) -> None:
    names = ("HP", "NORM", "TA.HG", "TA.LG", "TVA.HG", "TVA.LG")
    for path, slides in (("train.csv", (1, 2)), ("test.csv", (3,))):
        rows = []
        for slide in slides:
            for label, name in enumerate(names):
                case = f"{name} CASO {slide} - 2018-12-04 13.19.16"
                image = f"{case}.ndpi_ROI__mpp0.44_reg000_crop_sk00021_(9060,9947,1812,1812).png"
                picture(root / "unitopath-public" / "800" / name / image, label)
                rows.append((image, label))
        table(root / "unitopath-public" / "800" / path, ("image_id", "top_label"), rows)


def consep(root: Path) -> None:
    from scipy.io import savemat

    for part, count in (("Train", 4), ("Test", 2)):
        (root / part / "Labels").mkdir(parents=True)
        for n in range(1, count + 1):
            name = f"{part.lower()}_{n}"
            picture(root / part / "Images" / f"{name}.png", n)
            types = np.zeros((SIDE_PX, SIDE_PX))
            types[:, : SIDE_PX // 2] = np.arange(SIDE_PX)[:, None] // 5
            savemat(root / part / "Labels" / f"{name}.mat", {"type_map": types, "inst_map": types})


def outlines(path: Path, layers: Sequence[tuple[str, Sequence[Sequence[tuple[float, float]]]]]) -> None:
    """An Aperio annotation file: a layer a class, a region a nucleus."""
    parts = []
    for number, (label, regions) in enumerate(layers, 1):
        drawn = "".join(
            f'<Region Id="{i}"><Attributes/><Vertices>'
            + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in region)
            + "</Vertices></Region>"
            for i, region in enumerate(regions, 1)
        )
        name = f'<Attributes><Attribute Id="0" Name="{label}" Value=""/></Attributes>' if label else ""
        parts.append(f'<Annotation Id="{number}">{name}<Regions>{drawn}</Regions></Annotation>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<?xml version='1.0'?><Annotations>{''.join(parts)}</Annotations>")


SQUARE = ((5.0, 5.0), (20.0, 5.0), (20.0, 20.0), (5.0, 20.0))
CORNER = ((25.0, 25.0), (35.0, 25.0), (35.0, 35.0))


def monusac(root: Path) -> None:
    for part, count in (("MoNuSAC_images_and_annotations", 4), ("MoNuSAC Testing Data and Annotations", 2)):
        for n in range(count):
            folder = root / part / f"TCGA-5P-A9K{n}-01Z-00-DX1"
            stem = f"TCGA-5P-A9K{n}-01Z-00-DX1_1"
            picture(folder / f"{stem}.tif", n)
            (folder / f"{stem}.svs").write_bytes(b"not read")
            second = ("Ambiguous" if "Testing" in part else "Macrophage", [CORNER])
            outlines(folder / f"{stem}.xml", [("Epithelial", [SQUARE]), second])


def monuseg(root: Path) -> None:
    for n in range(5):
        stem = f"TCGA-18-559{n}-01Z-00-DX1"
        picture(root / "MoNuSeg 2018 Training Data" / "Tissue Images" / f"{stem}.tif", n)
        outlines(
            root / "MoNuSeg 2018 Training Data" / "Annotations" / f"{stem}.xml", [("", [SQUARE, CORNER])]
        )
    for n in range(2):
        stem = f"TCGA-2Z-A9J{n}-01A-01-TS1"
        picture(root / "MoNuSegTestData" / f"{stem}.tif", n)
        outlines(root / "MoNuSegTestData" / f"{stem}.xml", [("", [SQUARE])])


def bcss(root: Path) -> None:
    for n, institute in enumerate(("A2", "AR", "BH", "OL", "GM")):
        name = f"TCGA-{institute}-A0C{n}-DX1_xmin100_ymin200_MPP-0.2500.png"
        picture(root / "rgbs_colorNormalized" / name, n)
        (root / "masks").mkdir(exist_ok=True)
        mask = np.zeros((SIDE_PX, SIDE_PX), dtype=np.uint8)
        mask[:, 10:20], mask[:, 20:30], mask[:, 30:] = 1, 19, 9
        Image.fromarray(mask).save(root / "masks" / name)
