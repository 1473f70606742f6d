"""Train, validation and test where a dataset leaves something open; no patient on two sides."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.words import counted, first_of

AnyDataset = TypeVar("AnyDataset", bound=Dataset)

_TEST_SHARE, _VAL_SHARE = 0.2, 0.2
_MIN_PATIENTS = 3
_MAX_NAMED = 5

Shares = dict[str, float]


@dataclass(frozen=True)
class Split:
    """Indices into the samples given. `judged` names where the figures are taken: test, or val."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    judged: str
    notes: tuple[str, ...] = ()
    val_is_drawn: bool = False
    """Validation was cut off training: a task that chooses nothing may learn from both."""

    @property
    def judged_indices(self) -> tuple[int, ...]:
        """Indices of the samples that figures are taken on."""
        return self.test if self.judged == "test" else self.val


def split_samples(samples: Sequence[Sample]) -> Split:
    """The official split where there is one; what is missing of it is drawn from a stable hash.

    - train, val, test: as they are. - train and val: the figures are taken on val, as eva does.
    - train and test: a fifth of train becomes val. - train alone or nothing: 60 % / 20 % / 20 %.

    Drawn parts are stratified by class and whole patients where patients are known. The same samples
    give the same split, on any machine and in any order.
    """
    named = {name: [i for i, s in enumerate(samples) if s.split == name] for name in ("train", "val", "test")}
    unnamed = [i for i, s in enumerate(samples) if not s.split]
    notes: list[str] = []
    if not named["train"] or not (named["val"] or named["test"]):
        drawn = _draw(samples, range(len(samples)), {"test": _TEST_SHARE, "val": _VAL_SHARE}, notes)
        return _split(
            drawn, "test", ["no official split: drawn 60/20/20 by a stable hash", *notes], val_is_drawn=True
        )
    if unnamed:
        notes.append(f"left out: {counted(len(unnamed), 'sample')} without a split")
    notes += _shared_patients(samples, named)
    if not named["test"]:
        return _split(named, "val", ["no test split: figures are taken on validation", *notes])
    if not named["val"]:
        drawn = _draw(samples, named["train"], {"val": _VAL_SHARE}, notes)
        drawn["test"] = named["test"]
        return _split(
            drawn, "test", ["no validation split: a fifth of train is drawn", *notes], val_is_drawn=True
        )
    return _split(named, "test", notes)


def folds_of(dataset: AnyDataset) -> list[AnyDataset]:
    """The dataset once a fold, split and named so, or itself. Raises `UserError` for a fold of one side."""
    uri, samples = dataset.uri, dataset.samples
    num_folds = max((len(sample.folds) for sample in samples), default=0)
    for fold in range(num_folds):
        sides = {sample.folds[fold] for sample in samples if sample.label}
        if "train" not in sides or not sides & {"test", "val"}:
            raise UserError(f"{uri}: fold {fold} has nothing labelled to learn from, or nothing to judge on")
    return [
        replace(dataset, uri=f"{uri}, fold {n}", samples=tuple(replace(s, split=s.folds[n]) for s in samples))
        for n in range(num_folds)
    ] or [dataset]


def with_folds(dataset: AnyDataset, num_folds: int) -> AnyDataset:
    """The same, dealt into so many parts of like classes, each tested once by what is learnt of the others.

    Whole patients where they are known, by scikit-learn's StratifiedGroupKFold. The same samples give the
    same folds in any order. Raises `UserError` where a class has fewer patients than folds, or folds are
    given.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if any(sample.folds for sample in dataset.samples):
        raise UserError(f"{dataset.uri} has folds of its own", hint="leave out folds")
    rows = sorted(
        (i for i, s in enumerate(dataset.samples) if s.label), key=lambda i: dataset.samples[i].source
    )
    labels = [dataset.samples[i].label for i in rows]
    groups = [dataset.samples[i].patient or dataset.samples[i].source for i in rows]
    fewest = min(Counter(label for label, _ in set(zip(labels, groups, strict=True))).values(), default=0)
    if fewest < num_folds:
        raise UserError(
            f"{dataset.uri}: {num_folds} folds of a class with {counted(fewest, 'patient')} (or image)",
            hint="lower folds",
        )
    folds = [["train"] * num_folds if s.label else [""] * num_folds for s in dataset.samples]
    dealer = StratifiedGroupKFold(num_folds, shuffle=True, random_state=0)
    for fold, (_, tested) in enumerate(dealer.split(rows, labels, groups)):
        for place in tested:
            folds[rows[place]][fold] = "test"
    pairs = zip(dataset.samples, folds, strict=True)
    return replace(dataset, samples=tuple(replace(sample, folds=tuple(each)) for sample, each in pairs))


def _shared_patients(samples: Sequence[Sample], named: dict[str, list[int]]) -> list[str]:
    """A warning where the given split has patients on the learning and on the judged side."""
    judged = "test" if named["test"] else "val"
    learnt = [i for name, rows in named.items() if name != judged for i in rows]
    both = {samples[i].patient for i in learnt} & {samples[i].patient for i in named[judged]} - {""}
    if not both:
        return []
    first = first_of(sorted(both), _MAX_NAMED)
    return [f"on both sides of the given split, so figures flatter: {counted(len(both), 'patient')}, {first}"]


def _split(
    parts: dict[str, list[int]], judged: str, notes: list[str], *, val_is_drawn: bool = False
) -> Split:
    train, val, test = (tuple(sorted(parts[name])) for name in ("train", "val", "test"))
    return Split(train, val, test, judged, tuple(notes), val_is_drawn)


def _draw(
    samples: Sequence[Sample], indices: Iterable[int], shares: Shares, notes: list[str]
) -> dict[str, list[int]]:
    """`indices` dealt to train, val and test by `shares` (train takes the rest)."""
    pool = list(indices)
    patients = {samples[i].patient for i in pool}
    if "" not in patients and len(patients) >= _MIN_PATIENTS:
        return _by_patient(samples, pool, shares)
    if "" in patients and len(patients) > 1:
        unknown = sum(not samples[i].patient for i in pool)
        notes.append(
            f"{unknown} of {len(pool)} samples have no patient: drawn by image, "
            "so a patient may be on both sides"
        )
    elif len(patients) > 1:
        notes.append(f"only {len(patients)} patients: drawn by image, so a patient may be on both sides")
    return _by_sample(samples, pool, shares)


def _by_sample(samples: Sequence[Sample], pool: list[int], shares: Shares) -> dict[str, list[int]]:
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for members in _grouped(pool, lambda i: samples[i].label).values():
        members.sort(key=lambda i: _order(samples[i].source))
        start = 0
        for name, share in shares.items():
            count = round(share * len(members))
            parts[name] += members[start : start + count]
            start += count
        parts["train"] += members[start:]
    return parts


def _by_patient(samples: Sequence[Sample], pool: list[int], shares: Shares) -> dict[str, list[int]]:
    """Whole patients, largest first, each to the part that it brings nearest to its share of every class."""
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    total = Counter(samples[i].label for i in pool)
    wanted = {"train": 1 - sum(shares.values()), **shares}
    held: dict[str, Counter[str]] = {name: Counter() for name in wanted}
    groups = _grouped(pool, lambda i: samples[i].patient)
    for patient in sorted(groups, key=lambda p: (-len(groups[p]), _order(p))):
        brings = Counter(samples[i].label for i in groups[patient])
        gain = {name: _gain(held[name], brings, total, wanted[name]) for name in wanted}
        best = max(wanted, key=lambda name: (gain[name], name == "train"))
        held[best] += brings
        parts[best] += groups[patient]
    return parts


def _gain(held: Counter[str], brings: Counter[str], total: Counter[str], share: float) -> float:
    """How much nearer a part comes to `share` of every class, relative to what it should hold."""
    gain = 0.0
    for label, count in sorted(brings.items()):  # in one order: sums of floats decide ties
        goal = share * total[label]
        before, after = (held[label] - goal) / goal, (held[label] + count - goal) / goal
        gain += before * before - after * after
    return gain


def _grouped(pool: list[int], key: Callable[[int], str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for i in pool:
        groups[key(i)].append(i)
    return groups


def _order(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
