"""Images whose masks are published in another form than one class index a pixel."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.evaluation.datasets.dataset import Digest, MissingImage, ReadImages, Sample
from eosin.evaluation.datasets.folder import reader
from eosin.evaluation.datasets.mask_folder import MaskedDataset
from eosin.evaluation.datasets.masks import Classes
from eosin.evaluation.datasets.public.listing import Listing
from eosin.evaluation.transform import BadImage, decode_image
from eosin.storage import ObjectInfo

# A version changes whenever the classes of a pixel could.
_MASKS_VERSION = 1


@dataclass(frozen=True)
class Pair:
    """An image and what its mask is made of."""

    image: ObjectInfo
    mask: ObjectInfo
    sample: Sample


ToClasses = Callable[[bytes, bytes], Classes]
"""From the encoded mask and image to the class of each pixel, uint8 [h, w]. Raises `BadImage`."""


def pair_up(
    images: Iterable[tuple[ObjectInfo, str, Sample]], masks: dict[str, ObjectInfo]
) -> tuple[list[Pair], list[dict[str, str]]]:
    """Images with the masks of the same name, and those that have none: source and reason."""
    pairs, alone = [], []
    for info, name, sample in images:
        if name in masks:
            pairs.append(Pair(info, masks[name], sample))
        else:
            alone.append({"source": info.key, "reason": "no mask of the same name"})
    return pairs, alone


def as_masked(
    listing: Listing,
    pairs: Iterable[Pair],
    to_classes: ToClasses,
    *,
    unpaired: Sequence[dict[str, str]] = (),
    scale: float = 1.0,
    notes: tuple[str, ...] = (),
) -> MaskedDataset:
    """Pairs sorted by the image's key. With a `scale` below 1 images and masks are made smaller by it."""
    kept = sorted(pairs, key=lambda pair: pair.image.key)
    digest = Digest()
    digest.add("masks", _MASKS_VERSION, scale)
    for pair in kept:
        for each in (pair.image, pair.mask):
            digest.add(each.key, each.etag, each.size_bytes, pair.sample.split)
    for left_out in unpaired:
        digest.add(left_out["source"], left_out["reason"])
    images = reader(listing.store, [pair.image for pair in kept])
    masks = reader(listing.store, [pair.mask for pair in kept])
    return MaskedDataset(
        uri=listing.uri,
        digest=digest.hex(),
        samples=tuple(pair.sample for pair in kept),
        read=images if scale == 1 else _scaled(images, scale),
        notes=notes,
        read_masks=_converted(masks, images, to_classes, scale),
        unpaired=tuple(unpaired),
    )


def _converted(masks: ReadImages, images: ReadImages, to_classes: ToClasses, scale: float) -> ReadImages:
    def convert(mask: bytes | MissingImage, image: bytes | MissingImage) -> bytes | MissingImage:
        for data in (mask, image):
            if isinstance(data, MissingImage):
                return data
        assert isinstance(mask, bytes) and isinstance(image, bytes)
        try:
            classes = to_classes(mask, image)
        except BadImage as error:
            return MissingImage(str(error))
        picture = Image.fromarray(classes)
        return png(picture.resize(_size(picture, scale), Image.Resampling.NEAREST))

    def read(indices: Sequence[int]) -> list[bytes | MissingImage]:
        return [convert(*each) for each in zip(masks(indices), images(indices), strict=True)]

    return read


def _scaled(images: ReadImages, scale: float) -> ReadImages:
    def smaller(data: bytes | MissingImage) -> bytes | MissingImage:
        if isinstance(data, MissingImage):
            return data
        try:
            picture = decode_image(data)
        except BadImage as error:
            return MissingImage(str(error))
        return png(picture.resize(_size(picture, scale), Image.Resampling.BOX))

    return lambda indices: [smaller(data) for data in images(indices)]


def _size(picture: Image.Image, scale: float) -> tuple[int, int]:
    return max(1, round(picture.width * scale)), max(1, round(picture.height * scale))


def png(picture: Image.Image) -> bytes:
    """The picture as PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def regrouped(values: npt.NDArray[np.int64], groups: Sequence[int], what: str) -> Classes:
    """`groups[v]` for each value v. Raises `BadImage` for a value without a group."""
    unknown = sorted(set(np.unique(values).tolist()) - set(range(len(groups))))
    if unknown:
        raise BadImage(f"{what} {', '.join(map(str, unknown[:5]))} is not one of 0 to {len(groups) - 1}")
    return np.asarray(groups, dtype=np.uint8)[values]
