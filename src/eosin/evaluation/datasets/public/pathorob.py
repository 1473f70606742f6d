"""PathoROB's sets of patches with the tables that say which of them each of its figures is of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from eosin.config.presets import CentreLayout
from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, Digest
from eosin.evaluation.datasets.open_dataset import open_dataset
from eosin.evaluation.datasets.public.published import parse_csv
from eosin.metrics.centres import TestCases
from eosin.storage import NotFound, join_uri, open_store

DesignName = Literal["index", "clustering", "drop"]
# Tables of data/metadata in bifold-pathomics/PathoROB.
_TABLES: dict[CentreLayout, dict[DesignName, str]] = {
    "pathorob-camelyon": {"index": "camelyon", "clustering": "camelyon_reduced", "drop": "camelyon"},
    "pathorob-tcga": {"index": "tcga_2x2", "clustering": "tcga_4x4", "drop": "tcga_4x4"},
    "pathorob-tolkach-esca": {
        "index": "tolkach_esca_reduced", "clustering": "tolkach_esca_reduced", "drop": "tolkach_esca",
    },
}  # fmt: skip
_CASES = "tolkach_splits.json"
_COLUMNS = ("subset", "slide_id", "patch_id")
OUTSIDE = "OOD"
"""Subset of the patches from centres that nothing is learnt of."""


@dataclass(frozen=True)
class CentrePatch:
    """A patch in one of the designs; `row` is that of the dataset."""

    row: int
    subset: str
    slide: str
    """Whose patches are no neighbours of each other: the slide, or the patient."""
    label: str
    centre: str


@dataclass(frozen=True, kw_only=True)
class CentreDataset(Dataset):
    """Patches with a class and a centre, and which of them the figures are of."""

    designs: Mapping[DesignName, tuple[CentrePatch, ...]] = field(default_factory=dict)
    test_cases: TestCases | None = None


def open_centres(uri: str) -> CentreDataset:
    """A table of one's own: every patch with a label and a centre, neighbours of one patient passed over.

    Raises `UserError` as `open_dataset` does.
    """
    found = open_dataset(uri, columns=_COLUMNS[:2])
    patches = tuple(
        CentrePatch(row, s.columns.get("subset", ""), s.patient or s.columns.get("slide_id") or f"\x1f{row}",
                    s.label, s.centre)
        for row, s in enumerate(found.samples) if s.label and s.centre
    )  # fmt: skip
    return CentreDataset(
        found.uri, found.digest, found.samples, found.read, found.notes,
        designs={"index": patches, "clustering": patches},
    )  # fmt: skip


def open_pathorob(uri: str, metadata_uri: str, layout: CentreLayout) -> CentreDataset:
    """The images at `uri` (Parquet as on Hugging Face, or a table), with the tables in `metadata_uri`.

    Images are told by `slide_id` and `patch_id`. Those that a table names and that are not there become a
    note. Raises `UserError` where a table is not there, or none of its patches is.
    """
    found, store = open_dataset(uri, columns=_COLUMNS), open_store(metadata_uri)
    place = {(s.columns["slide_id"], s.columns["patch_id"]): row for row, s in enumerate(found.samples)}
    designs: dict[DesignName, tuple[CentrePatch, ...]] = {}
    notes, digest = [], Digest()
    digest.add(found.digest)

    def fetched(name: str) -> bytes:
        try:
            data = store.get(name)
        except NotFound:
            raise UserError(
                f"no {name} at {metadata_uri}",
                hint="metadata is the folder data/metadata of github.com/bifold-pathomics/PathoROB, with its "
                f"pathorob/resources/{_CASES} beside the tables",
            ) from None
        digest.add(name, data)
        return data

    for design, name in _TABLES[layout].items():
        source = join_uri(metadata_uri, f"{name}.csv")
        rows = parse_csv(fetched(f"{name}.csv"), source, (*_COLUMNS, "label", "centre"))
        there = [(row, place.get((row["slide_id"], row["patch_id"]))) for row in rows]
        designs[design] = tuple(
            CentrePatch(at, row["subset"], row["slide_id"], row["label"], row["centre"])
            for row, at in there if at is not None
        )  # fmt: skip
        if not designs[design]:
            raise UserError(f"{uri} has none of the {len(rows)} patches of {source}")
        if missing := len(rows) - len(designs[design]):
            notes.append(f"{missing} of the {len(rows)} patches of {name}.csv are missing: not as published")
    cases = json.loads(fetched(_CASES))["test"] if layout == "pathorob-tolkach-esca" else None
    return CentreDataset(
        found.uri, digest.hex(), found.samples, found.read, (*found.notes, *notes), not notes,
        designs=designs, test_cases=cases,
    )  # fmt: skip
