"""Description of a public dataset before it is opened, and the check that all of it is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, Sample
from eosin.evaluation.datasets.public.listing import Listing, list_dataset

AnyDataset = TypeVar("AnyDataset", bound=Dataset)


@dataclass(frozen=True)
class PublicDataset(Generic[AnyDataset]):
    """A public dataset: how many images each split has, and how it is read from its folder."""

    title: str
    tree: str
    """The path of one of its images, as published: shown where nothing is found."""
    num_images: Mapping[str, int]
    """Images of each split."""
    read: Callable[[Listing], AnyDataset]
    classes: tuple[str, ...] = ()
    """Labels that each split has; none for masks."""
    unit: str = "images"

    def open(self, uri: str, *, allow_subset: bool = False) -> AnyDataset:
        """The dataset at `uri`, whole.

        With `allow_subset` it may have fewer images than published, which becomes a note. Raises
        `UserError` naming what is expected and what is found.
        """
        dataset = self.read(list_dataset(uri))
        missing = self.check(uri, dataset.samples, allow_subset)
        return replace(dataset, notes=(*dataset.notes, *missing), is_whole=not missing)

    def check(self, uri: str, samples: tuple[Sample, ...], allow_subset: bool) -> list[str]:
        """Notes on what is missing where that is allowed. Raises `UserError` where it is not."""
        if not samples:
            raise UserError(
                f"no {self.unit} of {self.title} at {uri}",
                hint=f"the folder must hold {self.tree}, as published",
            )
        found = Counter(sample.split for sample in samples)
        wrong = [
            f"{split} has {found[split]} {self.unit}, {expected} expected"
            for split, expected in self.num_images.items()
            if found[split] != expected
        ]
        wrong += [
            f"{found[split]} {self.unit} are in no known split" for split in found.keys() - self.num_images
        ]
        too_many = any(found[split] > expected for split, expected in self.num_images.items())
        if wrong and (not allow_subset or too_many):
            raise UserError(
                f"{uri} is not the whole of {self.title}: {'; '.join([*wrong, *self._absent(samples)])}",
                hint="fetch it whole; or set allow_subset: true for a part, whose figures stand alone",
            )
        part = f"a part of {self.title} only, not to be set beside others' figures"
        return [f"{part}: {'; '.join(wrong)}"] if wrong else []

    def _absent(self, samples: tuple[Sample, ...]) -> list[str]:
        absent = set(self.classes) - {sample.label for sample in samples}
        return [f"no {self.unit} of {', '.join(sorted(absent))}"] if absent else []
