"""The contact sheet: every slide on one page that needs nothing else."""

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from eosin.cli.app import app
from eosin.errors import UserError
from eosin.index.sheet import write_sheet
from eosin.layout import IndexLayout
from eosin.storage import open_store
from tests.support.indexing import config_for, index, make_slides, rows_of
from tests.support.slide_files import write_aperio


@pytest.fixture
def indexed(tmp_path: Path) -> str:
    slides = make_slides(tmp_path / "slides", 4)
    (slides / "<b>&.svs").write_bytes(b"")
    shutil.copy(slides / "slide-0.svs", slides / '"x" <i>.svs')
    glass = np.full((600, 600, 3), 243, np.uint8)
    write_aperio(slides / "glass.svs", [glass], compression="jpeg")
    index(config_for(slides, tmp_path / "index"))
    return str(tmp_path / "index")


def pictures(page: str) -> list[bytes]:
    return [base64.b64decode(each) for each in re.findall(r"data:image/jpeg;base64,([^\"]+)", page)]


def test_every_slide_is_there_least_tissue_first_and_nothing_is_fetched(indexed: str, tmp_path: Path) -> None:
    result = write_sheet(indexed, str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    shown = re.findall(r'data-slide="([^"]*)"', page)
    assert shown[0] == "glass.svs" and set(shown[1:]) == {
        *(f"slide-{i}.svs" for i in range(4)), "&#34;x&#34; &lt;i&gt;.svs"
    }  # fmt: skip
    assert (result.num_slides, result.num_shown) == (7, 6)
    assert len(pictures(page)) == 6 and result.num_bytes == len(page.encode())
    assert not re.search(r"https?://|src=\"(?!data:)|href=", page), "the page needs no network"
    assert "<td>&lt;b&gt;&amp;.svs</td><td>empty-file</td>" in page and "<i>" not in page


def test_the_outline_is_where_the_tissue_ends(indexed: str, tmp_path: Path) -> None:
    write_sheet(indexed, str(tmp_path / "page.html"), side_px=80)
    page = (tmp_path / "page.html").read_text()
    jpeg = dict(zip(re.findall(r'data-slide="([^"]*)"', page), pictures(page), strict=True))["slide-2.svs"]
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), np.int16)
    tissue = rows_of(indexed)["slide-2.svs"].tissue
    assert tissue is not None and max(pixels.shape) <= 80
    green = (pixels[..., 1] - np.maximum(pixels[..., 0], pixels[..., 2])) > 20
    mask_rows, mask_columns = (np.flatnonzero(tissue.array.any(axis)) for axis in (1, 0))
    to_picture = tissue.pixel_x_px / 700 * pixels.shape[1]
    x0, y0, x1, y1 = to_picture * np.array(
        (mask_columns[0], mask_rows[0], mask_columns[-1] + 1, mask_rows[-1] + 1)
    )
    rows, columns = np.flatnonzero(green.any(1)), np.flatnonzero(green.any(0))
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert found == pytest.approx((x0, y0, x1, y1), abs=3)


def test_a_large_index_is_sampled_and_the_page_says_so(indexed: str, tmp_path: Path) -> None:
    assert write_sheet(indexed, str(tmp_path / "page.html"), max_slides=3).num_shown == 3
    assert "An even sample of 3 of 6 is shown." in (tmp_path / "page.html").read_text()


def test_a_thumbnail_that_is_gone_leaves_a_gap(indexed: str, tmp_path: Path) -> None:
    digest = rows_of(indexed)["slide-1.svs"].digest
    open_store(indexed).delete([IndexLayout.tiles(digest)])
    assert write_sheet(indexed, str(tmp_path / "page.html")).num_shown == 6
    page = (tmp_path / "page.html").read_text()
    assert len(pictures(page)) == 5 and page.count("no picture") == 1


def test_the_command_writes_to_a_path_or_uri(
    indexed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["index", "sheet", indexed])
    assert result.exit_code == 0 and "slides.html: 6 of 7 slides" in result.output
    assert (tmp_path / "slides.html").is_file()
    uri = (tmp_path / "sub" / "there.html").as_uri()
    assert CliRunner().invoke(app, ["index", "sheet", indexed, "--out", uri]).exit_code == 0
    assert (tmp_path / "sub" / "there.html").is_file()


@pytest.mark.parametrize("wrong", [{"side_px": 4}, {"side_px": 9999}, {"max_slides": 0}])
def test_sizes_that_cannot_be_are_refused(indexed: str, tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError):
        write_sheet(indexed, str(tmp_path / "page.html"), **wrong)  # type: ignore[arg-type]
