"""From encoded images to pixels, and what is no image."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from eosin.evaluation.transform import BadImage, load_image
from tests.support.evaluation import encoded, image
from tests.support.samples import sample


def _gradient(width: int, height: int) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :, None].repeat(height, 0).repeat(3, 2)
    return Image.fromarray(x.astype(np.uint8))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_an_image_of_the_right_size_is_not_touched(format: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    assert (load_image(encoded(Image.fromarray(pixels), format), 24) == pixels).all()


def test_jpeg_is_told_by_its_bytes() -> None:
    assert load_image(encoded(_gradient(40, 40), "JPEG"), 32).shape == (32, 32, 3)


@pytest.mark.parametrize(("width", "height"), [(96, 64), (64, 96), (768, 768), (33, 32), (8, 8), (1000, 32)])
def test_the_centre_square_at_the_models_size(width: int, height: int) -> None:
    pixels = load_image(encoded(_gradient(width, height)), 32)
    assert pixels.shape == (32, 32, 3)
    assert abs(float(pixels.mean()) - 127.5) < 6, "the centre of a gradient is its middle grey"


def test_shrinking_averages_and_does_not_pick_pixels() -> None:
    checker = np.indices((128, 128)).sum(axis=0) % 2 * 255
    pixels = load_image(encoded(Image.fromarray(checker.astype(np.uint8)).convert("RGB")), 32)
    assert abs(pixels[4:-4, 4:-4].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_other_modes_become_rgb(mode: str) -> None:
    format = "JPEG" if mode == "CMYK" else "PNG"
    assert load_image(encoded(_gradient(32, 32).convert(mode), format), 32).shape == (32, 32, 3)


def test_transparency_is_white() -> None:
    assert (load_image(encoded(Image.new("RGBA", (32, 32), (255, 0, 0, 0))), 32) == 255).all()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not a PNG, JPEG or TIFF"),
        (encoded(image((9, 99, 200), 1))[:900], "damaged"),
        (encoded(_gradient(64, 64), "JPEG")[:300], "damaged"),
        (encoded(_gradient(64, 64), "BMP"), "not a PNG, JPEG or TIFF"),
    ],
)
def test_what_is_no_whole_image_is_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(BadImage, match=words):
        load_image(data, 32)


def test_sixteen_bits_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), dtype=np.uint16)).save(buffer, "PNG")
    with pytest.raises(BadImage, match="8 bits"):
        load_image(buffer.getvalue(), 32)


def test_a_picture_of_absurd_size_is_refused_before_it_is_decoded() -> None:
    header = encoded(Image.new("1", (1, 1)))
    # Width and height of the IHDR chunk, with its checksum made to fit.
    ihdr = (200_000).to_bytes(4, "big") + (200_000).to_bytes(4, "big") + header[24:29]
    crc = zlib.crc32(b"IHDR" + ihdr).to_bytes(4, "big")
    with pytest.raises(BadImage, match="pixels"):
        load_image(header[:16] + ihdr + crc + header[33:], 32)


def test_a_real_patch() -> None:
    path = next(sample("data", "patches", "lc25000", "lung_n").glob("*.jpeg"))
    pixels = load_image(path.read_bytes(), 224)
    assert pixels.shape == (224, 224, 3)
    assert pixels.std() > 20
