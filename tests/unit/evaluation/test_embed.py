"""Embeddings are read a batch ahead and made a few at a time; neither may show."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eosin.errors import TransientError
from eosin.evaluation.datasets.dataset import Dataset, MissingImage, open_folder
from eosin.evaluation.embeddings.embed import Embeddings, embed
from eosin.evaluation.judged_model import JudgedModel, find_model
from eosin.storage import open_store
from tests.support.evaluation import make_config, make_run, quiet_log, write_folder


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """13 images, of which three cannot be read."""
    uri = write_folder(tmp_path / "set", {"": {"red": 7, "blue": 6}})
    for name in ("blue/000.png", "blue/005.png", "red/006.png"):
        (tmp_path / "set" / name).write_bytes(b"no image")
    return open_folder(open_store(uri), open_store(uri).list())


@pytest.fixture
def subject(tmp_path: Path) -> JudgedModel:
    config = make_config([])
    run = make_run(tmp_path, config)
    return find_model(run, config, "random-init", open_store(run))


def _embed(folder: Path, subject: JudgedModel, dataset: Dataset, batch_size: int) -> Embeddings:
    store = open_store(f"file://{folder}/{batch_size}")
    return embed(subject, dataset, store=store, batch_size=batch_size, log=quiet_log())


@pytest.mark.parametrize("batch_size", [1, 2, 3, 13, 14])
def test_the_batch_decides_neither_order_nor_what_is_left_out(
    batch_size: int, dataset: Dataset, subject: JudgedModel, tmp_path: Path
) -> None:
    whole = _embed(tmp_path, subject, dataset, 256)
    found = _embed(tmp_path, subject, dataset, batch_size)
    assert found.rows.tolist() == whole.rows.tolist()
    assert len(found.rows) == 10
    assert found.dropped == whole.dropped
    assert [each["source"] for each in found.dropped] == ["blue/000.png", "blue/005.png", "red/006.png"]
    np.testing.assert_allclose(found.features, whole.features, rtol=1e-4, atol=1e-5)


def test_a_store_that_fails_in_a_later_batch_is_heard(
    dataset: Dataset, subject: JudgedModel, tmp_path: Path
) -> None:
    def read(indices: Sequence[int]) -> list[bytes | MissingImage]:
        if 7 in indices:
            raise TransientError("the store went away")
        return dataset.read(indices)

    with pytest.raises(TransientError, match="went away"):
        _embed(tmp_path, subject, dataclasses.replace(dataset, read=read), 3)
    assert not list(open_store(f"file://{tmp_path}/3").list()), "nothing is published of half a set"
