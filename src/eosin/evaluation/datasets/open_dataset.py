"""Datasets by URI: a patch set, a table, or a folder of class folders."""

from __future__ import annotations

from eosin.config.presets import ImageLayout
from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.datasets.folder import open_folder
from eosin.evaluation.datasets.patch_set import MANIFEST, open_patch_set
from eosin.evaluation.datasets.public.registry import IMAGES
from eosin.evaluation.datasets.table import open_table
from eosin.storage import open_store


def open_dataset(uri: str, layout: ImageLayout | None = None, *, allow_subset: bool = False) -> Dataset:
    """The dataset at `uri`: a public one where `layout` names it, else what follows from what lies there.

    - `….csv`, `….parquet`: a table of images, see `open_table`;
    - a folder with a `manifest.json`: a patch set;
    - else: a folder of class folders, perhaps under train/, val/ and test/.

    Raises `UserError` where nothing usable is there, or a public dataset is not whole.
    """
    if layout is not None:
        return IMAGES[layout].open(uri, allow_subset=allow_subset)
    if uri.lower().endswith((".csv", ".parquet")):
        return open_table(uri)
    if uri.lower().endswith("/" + MANIFEST):
        uri = uri[: -len(MANIFEST) - 1]
    store = open_store(uri)
    dataset = open_patch_set(store) if store.exists(MANIFEST) else open_folder(store)
    if not dataset.samples:
        raise UserError(
            f"no images at {uri}",
            hint="give a patch set, a folder of class folders (perhaps under train/ val/ test/), or a CSV",
        )
    return dataset
