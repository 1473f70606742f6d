"""Rows and their Parquet form: nothing lost, the same bytes, made only when asked for."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eosin.errors import PermanentError
from eosin.index.columns import MappedRows, MasksApart, write_columns
from eosin.index.rows import SlideRow, decode_rows, encode_rows, write_rows
from eosin.index.tissue_mask import TissueMask
from eosin.slides.model import Level, SlideHeader, SlideObject
from eosin.storage import open_store
from tests.support.counting import CountingStore
from tests.support.indexing import as_plain


def read_rows(path: Path, source: str) -> MappedRows:
    folder = path.with_suffix(".columns")
    folder.mkdir()
    write_columns(path, folder, source=source)
    return MappedRows(folder)


def row(number: int) -> SlideRow:
    """Every third without a mask, every fifth without levels."""
    rng = np.random.default_rng(number)
    level = Level(1000, 900, 1.0, 240, 240, "jpeg", "rgb", 0, b"\xff\xd8tables", 1)
    readable = number % 5 > 0
    mask = TissueMask.from_array(rng.random((13, 17)) < 0.5, 58.8, 69.2) if readable and number % 3 else None
    return SlideRow(
        slide=f"folder ü/{number:05d}.svs", status="ok" if mask else "no-tissue", detail="",
        header=SlideHeader(
            (SlideObject(f"{number}.svs", f'"{number}"', 2**40),), "aperio", "svs",
            (level,) if readable else (), 0.25 if readable else None, 0.26 if readable else None,
        ),
        mpp_source="header", tissue=mask, tissue_mm2=number / 7, patient=f"P{number // 2}", cohort="A",
        labels={"grade": "G2"}, extra={"site": "Bern"}, digest="d", reuse_digest="r", read_status="ok",
        read_detail="", has_thumbnail=True,
    )  # fmt: skip


def test_rows_come_back_as_they_were_whatever_their_order() -> None:
    rows = [row(number) for number in range(1300)]
    data = encode_rows(reversed(rows))
    assert data == encode_rows(rows)
    found = decode_rows(data, source="test")
    assert len(found) == 1300
    assert [as_plain(each) for each in found] == [as_plain(each) for each in rows]
    assert as_plain(found[-1]) == as_plain(rows[-1])
    assert [each.slide for each in found[510:515]] == [each.slide for each in rows[510:515]]
    assert encode_rows(found) == data


def test_a_column_is_read_without_the_rows() -> None:
    found = decode_rows(encode_rows(row(number) for number in range(20)), source="test")
    assert found.column("status") == [each.status for each in found]


def test_a_row_that_is_not_there_is_an_index_error() -> None:
    found = decode_rows(encode_rows([row(1)]), source="test")
    for index in (1, -2):
        with pytest.raises(IndexError):
            found[index]


def test_no_rows_are_rows_too() -> None:
    assert list(decode_rows(encode_rows([]), source="test")) == []


@pytest.mark.parametrize("data", [b"", b"rubbish", encode_rows([row(1)])[:-20]])
def test_what_is_not_rows_is_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(PermanentError, match="s3://x does not hold index rows"):
        decode_rows(data, source="s3://x")
    (path := tmp_path / "rows.parquet").write_bytes(data)
    with pytest.raises(PermanentError, match="s3://x does not hold index rows"):
        read_rows(path, source="s3://x")


def test_rows_whose_masks_lie_on_the_disk_are_the_same_rows(tmp_path: Path) -> None:
    rows = [row(number) for number in range(1300)]
    (path := tmp_path / "rows.parquet").write_bytes(encode_rows(rows))
    found = read_rows(path, source="test")
    path.unlink()
    assert [as_plain(each) for each in found] == [as_plain(each) for each in rows]
    assert as_plain(found.alone(1299)) == as_plain(rows[1299])
    assert encode_rows(found) == encode_rows(rows)
    assert found.column("patient") == [each.patient for each in rows]
    assert dict(found.objects()) == {each.header.objects[0].key: i for i, each in enumerate(rows)}
    masks = [(each.tissue, other.tissue) for each, other in zip(found, rows, strict=True)]
    assert all(np.array_equal(ours.array, theirs.array) for ours, theirs in masks if ours and theirs)


def test_masks_that_lie_apart_are_read_when_they_are_wanted_and_kept_for_the_node(tmp_path: Path) -> None:
    rows = [row(number) for number in range(1300)]
    path, masks = tmp_path / "rows.parquet", tmp_path / "masks.bin"
    with path.open("wb") as file, masks.open("wb") as apart:
        write_rows(rows, file, apart)
    store = CountingStore(open_store(str(tmp_path)))
    (folder := tmp_path / "columns").mkdir()
    write_columns(path, folder, source="test")

    def opened() -> MappedRows:
        return MappedRows(folder, MasksApart(store, "masks.bin", folder, len(rows)))

    found = opened()
    assert as_plain(found[7]) == as_plain(rows[7]) and len(store.ranges) == 1
    found.prefetch(np.arange(100, 200))
    num_read = len(store.ranges)
    assert [as_plain(each) for each in opened()[100:200]] == [as_plain(each) for each in rows[100:200]]
    assert len(store.ranges) == num_read, "another worker finds them on the node"
    assert [as_plain(each) for each in found] == [as_plain(each) for each in rows]
    masks.unlink()
    assert [as_plain(each) for each in opened()] == [as_plain(each) for each in rows]


def test_a_table_of_other_columns_is_not_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"slide": [1, 2], "x": [1.0, 2.0]}), tmp_path / "other.parquet")
    with pytest.raises(PermanentError, match="does not hold index rows"):
        read_rows(tmp_path / "other.parquet", source="test")
    with pytest.raises(PermanentError, match="does not hold index rows"):
        decode_rows((tmp_path / "other.parquet").read_bytes(), source="test")
