"""Public datasets whose masks are published in other forms than one class index a pixel."""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.config.presets import MaskLayout
from eosin.evaluation.datasets.dataset import Digest, MissingImage, ReadImages, Sample, reader, tcga_patient
from eosin.evaluation.datasets.masks import IGNORE, Classes, MaskedDataset, load_mask
from eosin.evaluation.datasets.public.published import Listing, PublicDataset
from eosin.evaluation.transform import BadImage, decode_image, decode_raw
from eosin.storage import ObjectInfo
from eosin.words import first_of

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
    listing: Listing, images: str, masks: str, sample: Callable[[str, re.Match[str]], Sample]
) -> tuple[list[Pair], list[dict[str, str]]]:
    """Images with the masks of the same `name` (and `part`), and those that have none: source and reason.

    `images` and `masks` are regular expressions with those groups, `sample` makes a sample of key and match.
    """

    def name(match: re.Match[str]) -> tuple[str, str]:
        return match.groupdict().get("part") or "", match["name"]

    mask_of = {name(match): info for info, match in listing.matching(masks)}
    pairs, alone = [], []
    for info, match in listing.matching(images):
        if name(match) in mask_of:
            pairs.append(Pair(info, mask_of[name(match)], sample(info.key, match)))
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
        raise BadImage(f"{what} {first_of([*map(str, unknown)], 5)} is not one of 0 to {len(groups) - 1}")
    return np.asarray(groups, dtype=np.uint8)[values]


@dataclass(frozen=True)
class Outlines:
    """The regions of one annotation layer, vertices (x, y) in pixels of the image."""

    label: str
    regions: tuple[npt.NDArray[np.float64], ...]


def parse_outlines(data: bytes) -> list[Outlines]:
    """The layers of an annotation file, in order. Raises `BadImage`."""
    try:
        root = ElementTree.fromstring(data)
        return [_layer(layer) for layer in root.iter("Annotation")]
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise BadImage(f"not an annotation file: {error}") from error


def _layer(layer: ElementTree.Element) -> Outlines:
    label = next((each.attrib.get("Name", "") for each in layer.findall("./Attributes/Attribute")), "")
    regions = (
        np.array([(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")])
        for region in layer.iter("Region")
    )
    return Outlines(label, tuple(region for region in regions if len(region) > 2))


def paint(layers: list[Outlines], image: bytes, class_of: Callable[[str], int]) -> Classes:
    """uint8 [h, w], the size of the encoded `image`: later regions over earlier ones, 0 elsewhere.

    A pixel belongs to a region where its place lies inside the outline or on it, as in the challenge's own
    masks. Raises `BadImage`.
    """
    width, height = decode_raw(image).size
    classes = np.zeros((height, width), dtype=np.uint8)
    for layer in layers:
        for region in layer.regions:
            left, top = np.maximum(np.ceil(region.min(axis=0)), 0).astype(int)
            right, bottom = np.floor(region.max(axis=0)).astype(int) + 1
            part = classes[top:bottom, left:right]
            part[_inside(region - (left, top), *part.shape)] = class_of(layer.label)
    return classes


def _inside(outline: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Which places (x, y) of [height, width] lie inside the polygon, or on its edge or a vertex.

    By the parities of crossings to the right and to the left, which differ on an edge (O'Rourke,
    "Computational Geometry in C", 7.4), as `skimage.draw.polygon` has it.
    """
    y, x = np.mgrid[:height, :width].astype(np.float64)
    to_right, to_left, vertex = np.zeros((3, height, width), dtype=bool)
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, 1, axis=0), strict=True):
        above0, above1 = y0 - y, y1 - y
        with np.errstate(invalid="ignore", divide="ignore"):
            crossing = ((x0 - x) * above1 - (x1 - x) * above0) / (y1 - y0)
        to_right ^= ((above0 > 0) != (above1 > 0)) & (crossing > 0)
        to_left ^= ((above0 < 0) != (above1 < 0)) & (crossing < 0)
        vertex |= (x == x0) & (y == y0)
    return np.asarray(to_right | to_left | vertex)


# CoNSeP: colorectal nuclei. Background, other, inflammatory, healthy and malignant epithelial as one, then
# three spindle-shaped as one, as in HoVer-Net.
_CONSEP_SPLITS = {"Train": "train", "Test": "val"}
_CONSEP_GROUPS = (0, 1, 2, 3, 3, 4, 4, 4)


def _read_consep(listing: Listing) -> MaskedDataset:
    pairs, alone = pair_up(
        listing,
        r"(?P<part>Train|Test)/Images/(?P<name>[^/]+)\.png",
        r"(?P<part>Train|Test)/Labels/(?P<name>[^/]+)\.mat",
        lambda key, match: Sample(key, split=_CONSEP_SPLITS[match["part"]]),
    )
    return as_masked(listing, pairs, lambda mask, _: _consep(mask), unpaired=alone)


def _consep(data: bytes) -> Classes:
    from scipy.io import loadmat

    try:
        values = np.asarray(loadmat(io.BytesIO(data), variable_names=["type_map"])["type_map"])
    except Exception as error:  # whatever the parser makes of damaged bytes
        raise BadImage(f"not a MATLAB file with type_map: {type(error).__name__}: {error}") from error
    if values.ndim != 2 or not np.array_equal(values, np.round(values)):
        raise BadImage(f"type_map is {values.dtype} {values.shape}, not a class for each pixel")
    return regrouped(values.astype(np.int64), _CONSEP_GROUPS, "type")


# MoNuSAC 2020: nuclei of four organs; what is of another type (Ambiguous) is neither learned nor judged.
_MONUSAC_SPLITS = {"MoNuSAC_images_and_annotations": "train", "MoNuSAC Testing Data and Annotations": "val"}
_MONUSAC_TYPES = {"epithelial": 1, "lymphocyte": 2, "neutrophil": 3, "macrophage": 4}
_MONUSEG_SPLITS = {"MoNuSeg 2018 Training Data": "train", "MoNuSegTestData": "test"}


def _outlined(
    splits: dict[str, str], inner: str, class_of: Callable[[str], int], *notes: str
) -> Callable[[Listing], MaskedDataset]:
    """Reads images whose masks are outlines: `inner` matches the path between the part's folder and .tif."""

    def read(listing: Listing) -> MaskedDataset:
        pattern = rf"(?P<part>{'|'.join(splits)})/{inner}\."
        pairs, alone = pair_up(
            listing, pattern + "tif", pattern + "xml",
            lambda key, match: Sample(key, "", splits[match["part"]], tcga_patient(key)),
        )  # fmt: skip
        return as_masked(
            listing,
            pairs,
            lambda mask, image: paint(parse_outlines(mask), image, class_of),
            unpaired=alone,
            notes=notes,
        )

    return read


# BCSS: breast tumour regions in 21 tissue types, grouped into five; split by institute.
_VAL_INSTITUTES = frozenset({"BH", "C8", "A8", "A1", "E9"})
_TEST_INSTITUTES = frozenset({"OL", "LL", "E2", "EW", "GM", "S3"})
_TUMOR, _STROMA, _INFLAMMATORY, _NECROSIS, _OTHER = range(5)
# By published value: what is outside the region of interest does not count; 10 and 11 are plasma and other
# immune cells, 19 and 20 angioinvasion and carcinoma in situ.
_BCSS_GROUPS = (
    IGNORE, _TUMOR, _STROMA, _INFLAMMATORY, _NECROSIS, *[_OTHER] * 5, _INFLAMMATORY, _INFLAMMATORY,
    *[_OTHER] * 7, _TUMOR, _TUMOR, _OTHER,
)  # fmt: skip
_BCSS_NOTE = (
    "the published class tumor is tumor here; kaiko-eva 0.4.5 takes it for other, and learns what is outside "
    "the regions as a class of its own, so its figures are of other classes"
)
# The images are published at 0.25 mpp.
_BCSS_SCALE = 0.5


def _read_bcss(listing: Listing) -> MaskedDataset:
    pairs, alone = pair_up(
        listing,
        r"rgbs_colorNormalized/(?P<name>TCGA-(?P<institute>\w\w)-[^/]+)\.png",
        r"masks/(?P<name>[^/]+)\.png",
        lambda key, match: Sample(key, "", _institute_split(match["institute"]), tcga_patient(key)),
    )
    return as_masked(
        listing,
        pairs,
        lambda mask, _: regrouped(load_mask(mask), _BCSS_GROUPS, "type"),
        unpaired=alone,
        scale=_BCSS_SCALE,
        notes=(_BCSS_NOTE,),
    )


def _institute_split(institute: str) -> str:
    if institute in _TEST_INSTITUTES:
        return "test"
    return "val" if institute in _VAL_INSTITUTES else "train"


MASKS: dict[MaskLayout, PublicDataset[MaskedDataset]] = {
    "bcss": PublicDataset(
        title="BCSS",
        tree="rgbs_colorNormalized/TCGA-….png and masks/TCGA-….png",
        num_images={"train": 76, "val": 30, "test": 45},
        read=_read_bcss,
    ),
    "consep": PublicDataset(
        title="CoNSeP",
        tree="Train/Images/train_1.png and Train/Labels/train_1.mat",
        num_images={"train": 27, "val": 14},
        read=_read_consep,
    ),
    "monusac": PublicDataset(
        title="MoNuSAC 2020",
        tree="MoNuSAC_images_and_annotations/TCGA-…/….tif and ….xml",
        num_images={"train": 209, "val": 85},
        read=_outlined(
            _MONUSAC_SPLITS,
            "(?P<name>.+)",
            lambda label: _MONUSAC_TYPES.get(label.strip().lower(), IGNORE),
            "the test part also chooses the step, as in kaiko-eva: there is no other",
        ),
    ),
    "monuseg": PublicDataset(
        title="MoNuSeg 2018",
        tree="MoNuSeg 2018 Training Data/Tissue Images/TCGA-….tif and Annotations/TCGA-….xml",
        num_images={"train": 37, "test": 14},
        read=_outlined(_MONUSEG_SPLITS, "(?:.+/)?(?P<name>[^/]+)", lambda label: 1),
    ),
}
