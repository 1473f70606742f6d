"""Transform of an encoded image into the pixels a model sees: part of every protocol."""

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

TRANSFORM = "resize-shorter-side-centre-crop"
TRANSFORM_VERSION = 2

_MAX_PIXELS = 100_000_000
_FORMATS = ("PNG", "JPEG", "TIFF")


class BadImage(ValueError):
    """Bytes that are not a whole PNG, JPEG or TIFF image; the message says what is wrong."""


def load_image(data: bytes, img_px: int) -> npt.NDArray[np.uint8]:
    """RGB pixels [img_px, img_px, 3] of an encoded image, told by its first bytes, not its name.

    The shorter side is resized to `img_px` (bilinear with antialiasing) and the centre square kept, as
    eva does: the model sees the whole patch, at a coarser mpp where the patch is larger than `img_px`.
    An image that has the size already is not touched. Raises `BadImage`.
    """
    return fit(decode_image(data), img_px)


def fit(image: Image.Image, img_px: int) -> npt.NDArray[np.uint8]:
    """The centre square of an RGB image whose shorter side is resized to `img_px`, [img_px, img_px, 3]."""
    width, height = image.size
    shorter = min(width, height)
    if shorter != img_px:
        # The long side is cut to a whole number, as torchvision does: 298 px of 2048 × 1536, not 299.
        size = int(img_px * width / shorter), int(img_px * height / shorter)
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((image.width - img_px) / 2), round((image.height - img_px) / 2)
    return np.asarray(image.crop((left, top, left + img_px, top + img_px)), dtype=np.uint8)


def decode_image(data: bytes) -> Image.Image:
    """An encoded image in RGB at its own size. Raises `BadImage`."""
    return _rgb(decode_raw(data))


def decode_raw(data: bytes) -> Image.Image:
    """An encoded image with the samples it is stored with. Raises `BadImage`."""
    if not data:
        raise BadImage("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            if image.width * image.height > _MAX_PIXELS:
                raise BadImage(f"{image.width} × {image.height} pixels are too many for a patch")
            image.load()
            return image
    except UnidentifiedImageError:
        raise BadImage(f"not a PNG, JPEG or TIFF (begins {data[:8].hex(' ')})") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, BadImage):
            raise
        raise BadImage(f"damaged: {error}") from None


def _rgb(image: Image.Image) -> Image.Image:
    """Palette and grey images as RGB; transparency over white, as a viewer shows it."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        raise BadImage(f"{image.mode} samples: only 8 bits a channel are read")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
