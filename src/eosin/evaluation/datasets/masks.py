"""Masks as a class for every pixel, and images with masks in two folders as a dataset."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import (
    Dataset,
    Digest,
    ReadImages,
    Sample,
    may_be_image,
    reader,
    split_of,
)
from eosin.evaluation.transform import BadImage, decode_raw
from eosin.storage import ObjectInfo, open_store
from eosin.words import first_of

IGNORE = 255
"""Class of pixels that are neither learned nor judged."""
MAX_CLASSES = 64
_BINARY = 255
_MAX_NAMED = 8

Classes = npt.NDArray[np.uint8]


def load_mask(data: bytes) -> npt.NDArray[np.int64]:
    """The values [h, w] of a mask: indices of a palette, or grey; colours are refused. Raises `BadImage`."""
    image = decode_raw(data)
    values = np.asarray(image)
    if values.ndim == 3:
        if image.mode not in ("RGB", "RGBA", "LA") or not _is_grey(values, image.mode):
            raise BadImage(f"a mask in colours ({image.mode}): one channel of class indices is needed")
        values = values[..., 0]
    if values.dtype.kind == "f":
        raise BadImage("a mask of fractions: whole class indices are needed")
    return values.astype(np.int64)


def _is_grey(values: npt.NDArray[np.uint8], mode: str) -> bool:
    colors = values[..., : 1 if mode == "LA" else 3]
    return bool((colors == colors[..., :1]).all())


@dataclass(frozen=True)
class MaskCoding:
    """What the values of a dataset's masks mean."""

    num_classes: int
    is_binary: bool
    """0 and 255 stand for the classes 0 and 1."""
    ignore_value: int | None = None

    def unknown(self, values: Iterable[int]) -> str:
        """Why a mask with these values cannot be used; empty where it can."""
        kept = set(values) - {self.ignore_value}
        known_values = {*range(self.num_classes), *([_BINARY] if self.is_binary else [])}
        bad = sorted(kept - known_values) or _mixed(kept)
        if not bad:
            return ""
        named = first_of(list(map(str, bad)), _MAX_NAMED)
        known = f"0 to {self.num_classes - 1}" + (" or 255" if self.is_binary else "")
        return f"values in its mask: {named}; known are {known}, and ignore_value where it is set"

    def classes(self, values: npt.NDArray[np.int64]) -> Classes:
        """uint8 [h, w]: the class of each pixel, or `IGNORE`. `values` must be known."""
        ignored = (
            values == self.ignore_value if self.ignore_value is not None else np.zeros_like(values, bool)
        )
        classes = np.where(values == _BINARY, 1, values) if self.is_binary else values
        return np.where(ignored, IGNORE, classes).astype(np.uint8)


def infer_coding(
    masks: Iterable[frozenset[int]], *, num_classes: int | None, ignore_value: int | None
) -> MaskCoding:
    """The coding that the values of all masks speak for.

    0 and 255 are two classes where no mask has a value from 2 to 63; else values are class indices.
    A mask that is neither (anti-aliased, of instances, with 255 beside class indices) has no say.
    """
    seen: set[int] = set()
    for values in masks:
        kept = values - {ignore_value}
        if all(0 <= v < MAX_CLASSES or v == _BINARY for v in kept) and not _mixed(kept):
            seen |= kept
    if not seen:
        return MaskCoding(num_classes or MAX_CLASSES, is_binary=False, ignore_value=ignore_value)
    is_binary = _BINARY in seen and max(seen - {_BINARY}, default=0) <= 1 and num_classes in (None, 2)
    found = 2 if is_binary else max(seen - {_BINARY}, default=0) + 1
    return MaskCoding(num_classes or found, is_binary, ignore_value)


def _mixed(values: Collection[int]) -> list[int]:
    """255 where it stands beside class indices: it may mean class 1 or nothing, so nobody guesses."""
    return [_BINARY] if _BINARY in values and any(v not in (0, _BINARY) for v in values) else []


_IMAGES, _MASKS = "images", "masks"

_Name = tuple[str, str]
"""Split (or empty) and path below images/ or masks/ without its ending."""


@dataclass(frozen=True, kw_only=True)
class MaskedDataset(Dataset):
    """Images that have a mask; `read_masks` gives the encoded masks as `read` gives the images."""

    read_masks: ReadImages
    unpaired: tuple[dict[str, str], ...] = ()
    """Images left out before any was opened: source and reason."""


def open_mask_folder(uri: str) -> MaskedDataset:
    """The pairs `images/NAME.*` and `masks/NAME.*` under `uri`, or under its train/, val/ and test/.

    Where one of the top folders is a split, only split folders count. An image without a mask, or with
    two, is left out and named. Raises `UserError` where no pair is there.
    """
    store = open_store(uri)
    found = _found(store.list())
    samples, objects, masks, unpaired = [], [], [], []
    digest = Digest()
    for name in sorted(found[_IMAGES]):
        images, of_name = found[_IMAGES][name], found[_MASKS].get(name, [])
        reason = _unpaired(images, of_name)
        if reason:
            unpaired.append({"source": images[0].key, "reason": reason})
            continue
        image, mask = images[0], of_name[0]
        for each in (image, mask):
            digest.add(each.key, each.etag, each.size_bytes)
        samples.append(Sample(source=image.key, split=name[0]))
        objects.append(image)
        masks.append(mask)
    if not samples:
        raise UserError(_none(uri, unpaired), hint="put images/NAME.png beside masks/NAME.png")
    for left_out in unpaired:
        digest.add(left_out["source"], left_out["reason"])
    alone = len(set(found[_MASKS]) - set(found[_IMAGES]))
    return MaskedDataset(
        uri=store.uri,
        digest=digest.hex(),
        samples=tuple(samples),
        read=reader(store, objects),
        notes=(f"masks without an image, ignored: {alone}",) if alone else (),
        read_masks=reader(store, masks),
        unpaired=tuple(unpaired),
    )


def _found(listed: Iterable[ObjectInfo]) -> dict[str, dict[_Name, list[ObjectInfo]]]:
    """Objects below images/ and masks/ by their name."""
    files = [info for info in listed if may_be_image(info.key)]
    has_splits = any(_place(info.key, has_splits=True) for info in files)
    found: dict[str, dict[_Name, list[ObjectInfo]]] = {_IMAGES: defaultdict(list), _MASKS: defaultdict(list)}
    for info in files:
        place = _place(info.key, has_splits=has_splits)
        if place:
            kind, name = place
            found[kind][name].append(info)
    return found


def _place(key: str, *, has_splits: bool) -> tuple[str, _Name] | None:
    """Whether `key` is an image or a mask, and its name; None for what is neither."""
    path = PurePosixPath(key)
    split = split_of(path.parts[0]) if has_splits else ""
    inner = path.parts[1:] if split else path.parts
    if (has_splits and not split) or len(inner) < 2 or inner[0].lower() not in (_IMAGES, _MASKS):
        return None
    return inner[0].lower(), (split, str(PurePosixPath(*inner[1:]).with_suffix("")))


def _unpaired(images: list[ObjectInfo], masks: list[ObjectInfo]) -> str:
    if len(images) > 1:
        return f"{len(images)} images share this name: {', '.join(info.key for info in images)}"
    if not masks:
        return "no mask of the same name"
    if len(masks) > 1:
        return f"{len(masks)} masks share its name: {', '.join(info.key for info in masks)}"
    return ""


def _none(uri: str, unpaired: list[dict[str, str]]) -> str:
    if not unpaired:
        return f"no images/ with masks/ at {uri}"
    first = unpaired[0]
    reason = f"the first, {first['source']}: {first['reason']}"
    return f"none of the {len(unpaired)} images of {uri} has a mask; {reason}"
