"""HEST-Bench: patches around spots and the expression of genes there, in HDF5 files, with given splits."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, Digest, Sample
from eosin.evaluation.datasets.public.pcam import import_h5py, open_hdf5, read_images
from eosin.evaluation.datasets.public.published import Listing, list_dataset
from eosin.storage import join_uri
from eosin.words import first_of

_GENES = "var_50genes.json"


@dataclass(frozen=True, kw_only=True)
class ExpressionDataset(Dataset):
    """Patches with the logarithm of 1 + the expression of `genes`, float64 [N, G]; each sample a patient."""

    genes: tuple[str, ...]
    expression: npt.NDArray[np.float64]


def open_hest(uri: str) -> ExpressionDataset:
    """A task of HEST-Bench, such as IDC: splits/, patches/*.h5, adata/*.h5ad and var_50genes.json at `uri`.

    Spots are joined by barcode, patches in the order of their file; images are read when asked for. Raises
    `UserError` naming a file that is missing or is something else.
    """
    h5py, listing = import_h5py(), list_dataset(uri)
    genes = _genes(listing)
    files, folds = _splits(listing)
    digest, samples, expression, images = Digest(), [], [], []
    digest.add(*genes)
    for name, (patches, table) in files.items():
        for path in (patches, table):
            info = listing.one(path)
            digest.add(path, info.etag, info.size_bytes)
        file = open_hdf5(h5py, listing, listing.one(patches), "img")
        barcodes = _texts(_field(file, ("barcode", "barcodes"), patches))
        images.append(_field(file, ("img", "imgs"), patches))
        values = _expression(open_hdf5(h5py, listing, listing.one(table), "X"), table, genes, barcodes)
        expression.append(np.log1p(values))
        samples += [Sample(f"{name} {code}", patient=name, folds=folds[name]) for code in barcodes]
        digest.add(name, *folds[name], *barcodes)
    return ExpressionDataset(
        listing.uri, digest.hex(), tuple(samples), read_images(images),
        genes=genes, expression=np.concatenate(expression),
    )  # fmt: skip


def _genes(listing: Listing) -> tuple[str, ...]:
    try:
        tree = json.loads(listing.store.get(listing.one(_GENES).key))
        return tuple(map(str, tree["genes"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{join_uri(listing.uri, _GENES)} has no list of genes: {error}") from error


def _splits(listing: Listing) -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, ...]]]:
    """Of each sample its two files, and its side in each fold: train_0.csv with test_0.csv, and so on."""
    numbers = sorted({int(match["n"]) for _, match in listing.matching(r"splits/train_(?P<n>\d+)\.csv")})
    if not numbers:
        raise UserError(
            f"no splits/train_0.csv at {listing.uri}", hint="name a task of HEST-Bench, such as IDC"
        )
    files: dict[str, tuple[str, str]] = {}
    sides: dict[str, dict[int, str]] = {}
    for number in numbers:
        for side in ("train", "test"):
            rows = listing.read_table(
                f"splits/{side}_{number}.csv", ("sample_id", "patches_path", "expr_path")
            )
            for row in rows:
                name = row["sample_id"]
                files[name] = row["patches_path"], row["expr_path"]
                if sides.setdefault(name, {}).setdefault(number, side) != side:
                    raise UserError(f"{listing.uri}: sample {name} is on both sides of split {number}")
    return dict(sorted(files.items())), {
        name: tuple(each.get(n, "") for n in numbers) for name, each in sides.items()
    }


def _expression(
    file: Any, path: str, genes: Sequence[str], barcodes: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Counts [barcodes, genes] of an AnnData file, whose X is dense or compressed by rows or columns."""
    rows, columns = _index(file, "obs", path), _index(file, "var", path)
    absent = [
        name for names, known in ((barcodes, rows), (genes, columns)) for name in names if name not in known
    ]
    if absent:
        raise UserError(f"{path} has no {first_of(absent, 1)} that are asked for")
    x = _field(file, ("X",), path)
    if hasattr(x, "keys"):
        kind = {"csr_matrix": sparse.csr_matrix, "csc_matrix": sparse.csc_matrix}.get(
            str(x.attrs.get("encoding-type"))
        )
        if kind is None:
            raise UserError(f"{path}: X is {x.attrs.get('encoding-type')}, not a matrix of AnnData")
        parts = tuple(x[name][()] for name in ("data", "indices", "indptr"))
        x = kind(parts, shape=(len(rows), len(columns))).tocsr()[[rows[code] for code in barcodes]].toarray()
    else:
        x = x[()][[rows[code] for code in barcodes]]
    found = np.asarray(x[:, [columns[gene] for gene in genes]], dtype=np.float64)
    if len(bad := np.argwhere(~((found >= 0) & (found < np.inf)))):
        spot, gene = bad[0]
        raise UserError(f"{path}: {genes[gene]} of {barcodes[spot]} is {found[spot, gene]:g}, no count")
    return found


def _index(file: Any, group: str, path: str) -> dict[str, int]:
    frame = _field(file, (group,), path)
    name = frame.attrs.get("_index", "_index")
    return {text: place for place, text in enumerate(_texts(_field(frame, (name,), path)))}


def _field(file: Any, names: Sequence[str], path: str) -> Any:
    found = next((name for name in names if name in file), None)
    if found is None:
        raise UserError(f"{path} has no {names[0]}; it has {', '.join(file)}")
    return file[found]


def _texts(values: Any) -> list[str]:
    flat = np.asarray(values[()]).reshape(-1).tolist()
    return [each.decode() if isinstance(each, bytes) else str(each) for each in flat]
