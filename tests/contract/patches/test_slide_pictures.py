"""A picture a slide: the patches drawn in are those that the sampler draws, in tissue, at their places."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin.config import load_config
from eosin.errors import UserError
from eosin.index.snapshot import open_snapshot
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.slide_pictures import write_slide_pictures
from tests.support.indexing import config_for, index, make_slides

CONFIG = load_config("", overrides=["patches.mpp=[0.5]"]).patches


@pytest.fixture(scope="module")
def index_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("index")
    slides = make_slides(folder / "slides" / "case", 2).parent
    (slides / "broken.svs").write_bytes(b"II*\0" + bytes(100))
    index(config_for(slides, folder / "index"))
    return str(folder / "index")


def blue_of(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB"), np.int16)
    return (pixels[..., 2] - pixels[..., 0] > 120) & (pixels[..., 2] > 150)


def test_boxes_are_where_patches_are_drawn(index_uri: str, tmp_path: Path) -> None:
    result = write_slide_pictures(index_uri, str(tmp_path), CONFIG, num_patches=1)
    assert (result.num_pictures, result.num_without) == (2, 1)
    snapshot = open_snapshot(index_uri)
    number = snapshot.rows.find("case/slide-1.svs")
    assert number is not None
    (drawn,) = Sampler(snapshot, CONFIG, seed=0).patches_of(number, 1)
    finest = snapshot.rows[number].header.levels[0]
    picture = tmp_path / "case" / "slide-1.svs.jpg"
    lines, columns = np.nonzero(blue_of(picture))
    width_px = 512 // (finest.width_px // 16) * (finest.width_px // 16)
    found = np.array([columns.min(), lines.min(), columns.max(), lines.max()]) * finest.width_px / width_px
    right = [drawn.x_px, drawn.y_px, drawn.x_px + 256, drawn.y_px + 256]
    np.testing.assert_allclose(found, right, atol=16)


def test_pictures_are_the_same_again_and_those_asked_for(index_uri: str, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_slide_pictures(index_uri, str(tmp_path / name), CONFIG, ["case/*-0*"])
    (made,) = (tmp_path / "one").rglob("*.jpg")
    assert made.read_bytes() == (tmp_path / "two" / "case" / "slide-0.svs.jpg").read_bytes()
    with pytest.raises(UserError, match="matches nothing"):
        write_slide_pictures(index_uri, str(tmp_path), CONFIG, ["nothing"])


def test_a_slide_that_gives_no_patch_says_so(index_uri: str, tmp_path: Path) -> None:
    wanted = load_config("", overrides=["patches.mpp=[0.1]"]).patches
    write_slide_pictures(index_uri, str(tmp_path / "none"), wanted)
    path = tmp_path / "none" / "case" / "slide-0.svs.jpg"
    assert not blue_of(path).any() and path.stat().st_size > 1000
