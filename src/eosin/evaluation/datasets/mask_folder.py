"""Images and masks in two folders as a dataset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, Digest, ReadImages, Sample
from eosin.evaluation.datasets.folder import SPLIT_FOLDERS, may_be_image, reader
from eosin.storage import ObjectInfo, open_store

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
        notes=(f"{alone} mask(s) without an image are ignored",) if alone else (),
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
    split = SPLIT_FOLDERS.get(path.parts[0].lower(), "") if has_splits else ""
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
