"""Slides with labels as a dataset: from a CSV, or as a public dataset is published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from eosin.config.presets import SlideLayout
from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import SPLITS, Dataset, Digest, MissingImage, Sample
from eosin.evaluation.datasets.patients import tcga_patient
from eosin.evaluation.datasets.public.listing import parse_csv
from eosin.evaluation.datasets.public.slides import SLIDES
from eosin.storage import NotFound, open_store


@dataclass(frozen=True, kw_only=True)
class SlideDataset(Dataset):
    """One sample a slide; its `source` is the slide's key below `slides_uri`. Patches are drawn later."""

    slides_uri: str


def open_slides(
    uri: str, layout: SlideLayout | None = None, *, allow_subset: bool = False, slides_uri: str = ""
) -> SlideDataset:
    """Slides with their labels: of the CSV at `uri`, or of the public dataset `layout` in the folder `uri`.

    `slides_uri`: folder of the slides that a CSV names (empty: where it lies). Raises `UserError` for a CSV
    that is not there or not understood, or a public dataset that is not whole.
    """
    if layout is None:
        return _from_csv(uri, slides_uri)
    found = SLIDES[layout].open(uri, allow_subset=allow_subset)
    slides = _slide_dataset(uri, found.uri, found.samples, found.notes)
    return replace(slides, is_whole=found.is_whole)


def _from_csv(uri: str, slides_uri: str) -> SlideDataset:
    folder, _, name = uri.rpartition("/")
    try:
        data = open_store(folder or ".").get(name)
    except NotFound:
        raise UserError(
            f"no table at {uri}", hint="a CSV with the columns slide and label is needed"
        ) from None
    rows = parse_csv(data, uri, ("slide", "label"))
    samples = [_sample(uri, number, row) for number, row in enumerate(rows, 2)]
    twice = [name for name, count in Counter(sample.source for sample in samples).items() if count > 1]
    if twice:
        raise UserError(f"{uri} names {twice[0]} twice", hint="one row a slide is needed")
    return _slide_dataset(uri, slides_uri or folder or ".", samples, ())


def _sample(uri: str, number: int, row: dict[str, str]) -> Sample:
    if not row["slide"]:
        raise UserError(f"{uri}, row {number}: no slide is named")
    split = row.get("split", "")
    if split and split not in SPLITS:
        raise UserError(f"{uri}, row {number}: split {split!r} is not one of {', '.join(SPLITS)}")
    patient = row.get("patient", "") or tcga_patient(row["slide"])
    return Sample(row["slide"], row["label"], split, patient)


def _slide_dataset(
    uri: str, slides_uri: str, samples: Sequence[Sample], notes: tuple[str, ...]
) -> SlideDataset:
    digest = Digest()
    digest.add(slides_uri)
    for sample in samples:
        digest.add(sample.source, sample.label, sample.split, sample.patient)
    return SlideDataset(
        uri=uri,
        digest=digest.hex(),
        samples=tuple(samples),
        read=_no_images,
        notes=notes,
        slides_uri=slides_uri,
    )


def _no_images(indices: Sequence[int]) -> list[bytes | MissingImage]:
    raise TypeError("a slide is read by its patches")
