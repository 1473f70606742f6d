"""Slides with labels as a dataset: from a CSV, or Camelyon16 and PANDA as they are published."""

import csv
import io
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import yaml

from eosin.config.presets import SlideLayout
from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import (
    SPLITS,
    Dataset,
    Digest,
    MissingImage,
    Sample,
    label_notes,
    lfs_reason,
    splits_of_row,
    tcga_patient,
    tidy_labels,
)
from eosin.evaluation.datasets.public.published import Found, Listing, PublicDataset, as_dataset, parse_csv
from eosin.storage import NotFound, Store, join_uri, open_store

# kaiko-eva's validation slides of Camelyon16, which are those of PatchCamelyon.
_VAL_NORMAL = (
    *(10, 13, 16, 17, 19, 20, 25, 30, 31, 32, 52, 56, 57, 67, 76, 79, 85, 95, 98, 99, 101, 102, 105, 106),
    *(109, 129, 132, 137, 142, 143, 148, 152),
)
_VAL_TUMOR = (1, 5, 11, 12, 13, 19, 31, 37, 43, 46, 57, 65, 69, 71, 73, 79, 80, 81, 82, 85, 97, 109)
_VAL_SLIDES = frozenset(
    {f"normal_{number:03d}" for number in _VAL_NORMAL} | {f"tumor_{number:03d}" for number in _VAL_TUMOR}
)
_EVA_SEED = 42
_GRADES = tuple(str(grade) for grade in range(6))


def _read_camelyon16(listing: Listing) -> Dataset:
    training = r"training/(?P<label>normal|tumor)/(?P<name>(?:normal|tumor)_\d{3})\.tif"
    found = [
        Found(
            info,
            Sample(info.key, match["label"], "val" if match["name"] in _VAL_SLIDES else "train"),
        )
        for info, match in listing.matching(training)
    ]
    tested = list(listing.matching(r"testing/images/(?P<name>test_\d{3})\.tif"))
    labels = _reference(listing) if tested else {}
    unknown = [match["name"] for _, match in tested if match["name"] not in labels]
    if unknown:
        raise UserError(f"{listing.uri}: testing/reference.csv says nothing of {unknown[0]}")
    found += [Found(info, Sample(info.key, labels[match["name"]], "test")) for info, match in tested]
    return as_dataset(listing, found)


def _reference(listing: Listing) -> dict[str, str]:
    """Label of each test slide, from a table without a header: name, Normal or Tumor, and more."""
    data = listing.store.get(listing.one("testing/reference.csv").key)
    if reason := lfs_reason(data):
        raise UserError(f"{listing.uri}: testing/reference.csv is {reason}")
    text = data.decode("utf-8-sig", "replace")
    rows = [row for row in csv.reader(io.StringIO(text)) if len(row) > 1]
    return {row[0].strip().removesuffix(".tif"): row[1].strip().lower() for row in rows}


def _read_panda(listing: Listing, shares: tuple[float, float, float]) -> Dataset:
    slides = {
        match["name"]: info for info, match in listing.matching(r"train_images/(?P<name>[0-9a-f]+)\.tiff")
    }
    if not slides:
        return as_dataset(listing, [])
    rows = listing.read_table("train_with_noisy_labels.csv", ("image_id", "isup_grade", "noise_ratio_10"))
    grades = {row["image_id"]: row["isup_grade"] for row in rows if float(row["noise_ratio_10"] or 0) != 0}
    odd = [f"{name}: {grade!r}" for name, grade in grades.items() if grade not in _GRADES]
    if odd:
        raise UserError(f"{listing.uri}: isup_grade of {odd[0]} is not 0 to 5")
    # The split is drawn from the table, so that a slide that is missing moves no other.
    names = sorted(grades)
    split = stratified_split([int(grades[name]) for name in names], shares)
    return as_dataset(
        listing,
        [
            Found(slides[name], Sample(slides[name].key, grades[name], where))
            for name, where in zip(names, split, strict=True)
            if where and name in slides
        ],
        ("about a tenth of the slides, whose labels are noisy, are left out, as in kaiko-eva",),
    )


def stratified_split(classes: Sequence[int], shares: tuple[float, float, float]) -> list[str]:
    """train, val, test or empty for each sample, drawn class by class as kaiko-eva draws (seed 42).

    Each class is shuffled by one NumPy generator, classes in ascending order, and cut at whole numbers
    rounded down, at least one; where the shares make up 1, test takes what is left.
    """
    train, val, test = shares
    generator = np.random.default_rng(_EVA_SEED)
    split = [""] * len(classes)
    values = np.asarray(classes)
    for each in np.unique(values):
        members = np.flatnonzero(values == each)
        generator.shuffle(members)
        num_train, num_val = (int(np.floor(share * len(members))) or 1 for share in (train, val))
        rest = len(members) - num_train - num_val
        num_test = rest if train + val + test == 1 else int(np.floor(test * len(members))) or 1
        names = ["train"] * num_train + ["val"] * num_val + ["test"] * num_test
        for place, name in zip(members.tolist(), names, strict=False):
            split[place] = name
    return split


def _panda(
    title: str, num_slides: tuple[int, int, int], shares: tuple[float, float, float]
) -> PublicDataset[Dataset]:
    tree = "train_images/….tiff and train_with_noisy_labels.csv (image_id, isup_grade, noise_ratio_10)"
    counts = dict(zip(SPLITS, num_slides, strict=True))
    return PublicDataset(title, tree, counts, lambda listing: _read_panda(listing, shares), _GRADES, "slides")


SLIDES: dict[SlideLayout, PublicDataset[Dataset]] = {
    "camelyon16": PublicDataset(
        title="Camelyon16",
        tree="training/normal/normal_001.tif, testing/images/test_001.tif and testing/reference.csv",
        num_images={"train": 216, "val": 54, "test": 129},
        read=_read_camelyon16,
        classes=("normal", "tumor"),
        unit="slides",
    ),
    "panda": _panda("PANDA", (6_686, 1_430, 1_439), (0.7, 0.15, 0.15)),
    "panda-small": _panda("PANDA (small)", (952, 475, 475), (0.1, 0.05, 0.05)),
}


@dataclass(frozen=True, kw_only=True)
class SlideDataset(Dataset):
    """One sample a slide; its `source` is the slide's key below `slides_uri`. Patches are drawn later."""

    slides_uri: str
    times: tuple[float, ...] = ()
    """Of each slide, where they are of survival: until the event, or until nothing more is known."""
    is_of_patients: bool = False
    """Whether its table says that what is judged are patients, of all their slides."""


EVENT, CENSORED = "event", "censored"


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


def open_survival(uri: str, slides_uri: str = "") -> SlideDataset:
    """Slides of a CSV with `time` (above 0) and `event` (1; 0 for censored), labelled `EVENT` or `CENSORED`.

    Raises `UserError` as `open_slides` does, and for another time or event.
    """
    found = _from_csv(uri, slides_uri, ("slide", "time", "event"))
    require_alike_patients(found)
    return found


def _followed(uri: str, number: int, row: dict[str, str]) -> tuple[float, str]:
    """Time and label of a row."""
    events = {"1": EVENT, "true": EVENT, "0": CENSORED, "false": CENSORED, "1.0": EVENT, "0.0": CENSORED}
    try:
        time, label = float(row["time"]), events[row["event"].lower()]
    except (ValueError, KeyError):
        time, label = math.nan, ""
    if not 0 < time < math.inf:
        raise UserError(
            f"{uri}, row {number}: time {row['time']!r}, event {row['event']!r}",
            hint="time is a number above 0, event 1 or 0",
        )
    return time, label


def _from_csv(uri: str, slides_uri: str, columns: tuple[str, ...] = ("slide", "label")) -> SlideDataset:
    folder, _, name = uri.rpartition("/")
    store = open_store(folder or ".")
    try:
        data = store.get(name)
    except NotFound:
        raise UserError(
            f"no table at {uri}", hint=f"a CSV with the columns {', '.join(columns)} is needed"
        ) from None
    given = _given_task(store, folder) if uri.lower().endswith(".tsv") else _GivenTask({}, {}, False)
    rows = parse_csv(data, uri, [given.names.get(column, column) for column in columns])
    if not rows:
        raise UserError(f"{uri} has no row below its header")
    rows = [
        {**row, **{ours: row[theirs] for ours, theirs in given.names.items() if theirs in row}}
        for row in rows
    ]
    times: tuple[float, ...] = ()
    if "time" in columns:
        followed = [_followed(uri, number, row) for number, row in enumerate(rows, 2)]
        times, labels = tuple(time for time, _ in followed), [label for _, label in followed]
    else:
        labels = [given.labels.get(each, each) for each in tidy_labels([row["label"] for row in rows])]
    pairs = zip(rows, labels, strict=True)
    samples = [_sample(uri, number, row, label) for number, (row, label) in enumerate(pairs, 2)]
    twice = [name for name, count in Counter(sample.source for sample in samples).items() if count > 1]
    if twice:
        raise UserError(f"{uri} names {twice[0]} twice", hint="one row a slide is needed")
    found = _slide_dataset(uri, slides_uri or folder or ".", samples, label_notes(labels), times)
    return replace(found, is_of_patients=given.is_of_patients)


class _GivenTask(NamedTuple):
    """What the task file beside a table of Patho-Bench says."""

    names: dict[str, str]
    """Our names of columns, and its own."""
    labels: dict[str, str]
    """By what stands in the table."""
    is_of_patients: bool


def _given_task(store: Store, folder: str) -> _GivenTask:
    """Of `config.yaml` beside `k=all.tsv`, as MahmoodLab/Patho-Bench on Hugging Face has them; none without.

    Raises `UserError` where the file is something else.
    """
    source = join_uri(folder, "config.yaml")
    if not store.exists("config.yaml"):
        return _GivenTask({}, {}, False)
    try:
        tree = yaml.safe_load(store.get("config.yaml"))
        task, unit = str(tree["task_col"]), str(tree["sample_col"])
        labels = {str(key): str(value) for key, value in (tree.get("label_dict") or {}).items()}
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{source} is not a task of Patho-Bench: {type(error).__name__} {error}",
            hint="a .tsv with a config.yaml is read as Patho-Bench publishes them; else give a .csv",
        ) from error
    names = {"slide": "slide_id", "patient": "case_id", "label": task}
    return _GivenTask(names | {"time": f"{task}_days", "event": f"{task}_event"}, labels, unit == "case_id")


def _sample(uri: str, number: int, row: dict[str, str], label: str) -> Sample:
    if not row["slide"]:
        raise UserError(f"{uri}, row {number}: no slide is named")
    split, folds = splits_of_row(row, f"{uri}, row {number}")
    patient = row.get("patient", "") or tcga_patient(row["slide"])
    return Sample(row["slide"], label, split, patient, folds=folds)


def by_patient(dataset: SlideDataset) -> SlideDataset:
    """The same with the slides of each patient side by side; a slide without a patient is one of its own.

    Raises `UserError` where the slides of a patient differ in label, time or split.
    """
    require_alike_patients(dataset)
    order = sorted(range(len(dataset.samples)), key=lambda row: (patient_or_slide(dataset.samples[row]), row))
    return replace(
        dataset,
        is_of_patients=True,
        samples=tuple(dataset.samples[row] for row in order),
        times=tuple(dataset.times[row] for row in order) if dataset.times else (),
    )


def patient_or_slide(sample: Sample) -> str:
    """Its patient; where none is known, the slide itself."""
    return sample.patient or sample.source


def require_alike_patients(dataset: SlideDataset) -> None:
    """Raises `UserError` where the slides of one patient differ in label, time or split."""
    told: dict[str, tuple[object, ...]] = {}
    for sample, time in itertools.zip_longest(dataset.samples, dataset.times):
        told_here = (sample.label, time, sample.split, sample.folds)
        if told.setdefault(patient_or_slide(sample), told_here) != told_here:
            raise UserError(
                f"{dataset.uri}: slides of patient {patient_or_slide(sample)} differ in label, time or split",
                hint="where patients are judged, all slides of one have the same",
            )


def _slide_dataset(
    uri: str,
    slides_uri: str,
    samples: Sequence[Sample],
    notes: tuple[str, ...],
    times: tuple[float, ...] = (),
) -> SlideDataset:
    digest = Digest()
    digest.add(slides_uri, *times)
    for sample in samples:
        digest.add(sample.source, sample.label, sample.split, sample.patient, *sample.folds)
    return SlideDataset(
        uri=uri,
        digest=digest.hex(),
        samples=tuple(samples),
        read=_no_images,
        notes=notes,
        slides_uri=slides_uri,
        times=times,
    )


def _no_images(indices: Sequence[int]) -> list[bytes | MissingImage]:
    raise TypeError("a slide is read by its patches")
