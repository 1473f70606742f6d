"""Made features and tables as PathoROB, PLISM and HEST-Bench have them, for tests and for their own code."""

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

TCGA = (
    (
        "Breast_invasive_carcinoma",
        "Colon_adenocarcinoma",
        "Lung_adenocarcinoma",
        "Lung_squamous_cell_carcinoma",
    ),
    ("Asterand", "Christiana Healthcare", "Roswell Park", "University of Pittsburgh"),
)
CAMELYON = (("normal", "tumor"), ("RUMC", "UMCU"))
ESCA = (
    ("TUMOR", "MUSC_PROP", "SH_OES", "SH_MAG", "REGR_TU", "ADVENT"),
    ("VALSET2_WNS", "VALSET4_CHA_FULL"),
)
ESCA_CASES = {
    "train": {
        "VALSET2_WNS": [[f"case_{n}" for n in range(7)], [f"case_{n}" for n in range(2, 9)]],
        "VALSET4_CHA_FULL": [[f"case_{n}" for n in range(20, 27)]],
    },
    "test": {
        "VALSET2_WNS": [["case_7", "case_8"], ["case_0", "case_1"]],
        "VALSET4_CHA_FULL": [["case_27", "case_28"]],
    },
}
COLUMNS = ("subset", "slide_id", "patch_id", "biological_class", "medical_center")


@dataclass(frozen=True)
class MadeSet:
    """Rows of a metadata table of PathoROB, and the features [N, D] of their patches."""

    rows: tuple[tuple[str, ...], ...]
    features: Any


def made_set(name: str) -> MadeSet:
    """The table `name` of PathoROB, smaller: camelyon, camelyon_reduced, tcga_2x2, tcga_4x4, tolkach_esca…"""
    rows: list[tuple[str, ...]] = []
    if name.startswith("camelyon"):
        rows += _cells("ID", *CAMELYON, num_slides=6, num_patches=5)
        rows += [] if "reduced" in name else _cells("OOD", CAMELYON[0], ("CWZ",), num_slides=1, num_patches=4)
    elif name == "tcga_2x2":
        for i in range(3):
            classes, centres = TCGA[0][i : i + 2], TCGA[1][i : i + 2]
            rows += _cells(f"pair{i}", classes, centres, num_slides=4, num_patches=8)
    elif name == "tcga_4x4":
        rows += _cells("ID", *TCGA, num_slides=12, num_patches=30)
        rows += _cells("OOD", TCGA[0], ("Cureline",), num_slides=1, num_patches=30)
    elif name == "tolkach_esca":
        for i, centre in enumerate(ESCA[1]):
            for label in ESCA[0]:
                rows += [
                    ("ID", f"case_{20 * i + slide}", f"{label}.{n}", label, centre)
                    for slide in range(9)
                    for n in range(100)
                ]
        rows += _cells("OOD", ESCA[0], ("VALSET1_UKK",), num_slides=1, num_patches=20)
    else:
        rows += [
            (f"{label}-{centre}", f"case_{i}{slide}", f"{label}.{n}", label, centre)
            for i, centre in enumerate((*ESCA[1], "VALSET1_UKK"))
            for label in ESCA[0][:3]
            for slide in range(4)
            for n in range(6)
        ]
    return MadeSet(tuple(rows), features_of(rows))


def _cells(
    subset: str, classes: tuple[str, ...], centres: tuple[str, ...], *, num_slides: int, num_patches: int
) -> list[tuple[str, ...]]:
    return [
        (
            subset,
            f"TCGA-{centre[0]}{len(centre)}-{slide:02d}{label[0]}{label[-1]}{len(label)}",
            str(n),
            label,
            centre,
        )
        for label in classes
        for centre in centres
        for slide in range(num_slides)
        for n in range(num_patches)
    ]


def features_of(rows: list[tuple[str, ...]]) -> Any:
    """float32 [N, 8]: a direction of the class, one of the centre, and noise; equal ids, equal rows."""

    def drawn(name: str) -> Any:
        return np.random.default_rng(zlib.crc32(name.encode())).normal(size=8)

    return np.array(
        [drawn(row[3]) + 0.8 * drawn(row[4]) + drawn("-".join(row[1:3])) for row in rows], np.float32
    )


def made_slides(num_locations: int = 40) -> dict[tuple[str, str], Any]:
    """float32 [locations, 12] of every stain and scanner: tissue, stain, scanner and noise."""
    random = np.random.default_rng(23)
    tissue = random.normal(size=(num_locations, 12))
    stains = {name: 1.2 * random.normal(size=12) for name in ("GIV", "HR", "MY")}
    scanners = {name: 0.6 * random.normal(size=12) for name in ("AT2", "S60")}
    return {
        (stain, scanner): (tissue + shift + move + 0.5 * random.normal(size=tissue.shape)).astype(np.float32)
        for stain, shift in stains.items()
        for scanner, move in scanners.items()
    }


def made_expression() -> tuple[Any, Any, Any, Any]:
    """Features of 300 and 90 spots, float32 [N, 270], and the logarithm of 1 + expression, [N, 5]."""
    random = np.random.default_rng(31)
    features = random.normal(size=(390, 270)).astype(np.float32) * np.linspace(3, 0.2, 270, dtype=np.float32)
    counts = random.poisson(np.exp(1 + features @ random.normal(0, 0.05, (270, 5))))
    targets = np.log1p(counts.astype(np.float64))
    return features[:300], features[300:], targets[:300], targets[300:]
