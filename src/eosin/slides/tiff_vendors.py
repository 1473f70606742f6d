"""TIFF dialects: the pyramid and the resolution of a slide, one hook a vendor."""

import html
import math
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from eosin.slides import tiff_ifd as tag
from eosin.slides.errors import SlideError
from eosin.slides.model import middle_of, plausible_mpp
from eosin.slides.table import same_shape
from eosin.slides.tiff_ifd import Directory, TiffFile

_UM_PER_UNIT = {"µm": 1.0, "um": 1.0, "μm": 1.0, "Å": 1e-4, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6,
                "in": 25_400.0}  # fmt: skip
_REDUCED_IMAGE, _MASK_IMAGE = 1, 4
_HEAD_BYTES = 4096
_OTHER_PICTURE = re.compile(
    r"(?:Aperio[^\n]{0,256}\n)?\s*(macro|label|overview|thumbnail|barcode|slide preview)\b", re.IGNORECASE
)
_OME = re.compile(r"<(?:\w{1,64}:)?OME\b")


class NeedsOpenSlide(Exception):
    """A format (`vendor`) whose tiles cannot be placed from the TIFF tags alone."""

    def __init__(self, vendor: str) -> None:
        super().__init__(vendor)
        self.vendor = vendor


@dataclass(frozen=True)
class Pyramid:
    """The directories that hold the levels, and what the vendor says of resolution (µm a pixel)."""

    vendor: str
    format: str
    levels: tuple[Directory, ...]
    mpp_x: float | None
    mpp_y: float | None
    downsamples: tuple[float, ...] | None = None
    """Where the vendor states them and the level sizes are padded (Philips); otherwise by size."""
    remark: str = ""
    """What was chosen among several pictures of the slide."""


def read_pyramid(tiff: TiffFile, directories: Sequence[Directory]) -> Pyramid:
    """The pyramid of the first dialect that recognises the file.

    Raises `NeedsOpenSlide` for formats only OpenSlide can place, `SlideError` (`not-tiled`) for a TIFF
    without tiles.
    """
    first = directories[0]
    if vendor := _only_openslide(first):
        raise NeedsOpenSlide(vendor)
    for recognises, read in _DIALECTS:
        if recognises(first):
            return read(tiff, directories)
    return _generic(tiff, directories)


def _only_openslide(first: Directory) -> str | None:
    description, software = first.text(tag.IMAGE_DESCRIPTION), first.text(tag.SOFTWARE)
    if first.has(tag.NDPI_FORMAT):
        return "hamamatsu"
    if "http://www.leica-microsystems.com/scn" in description:
        return "leica"
    if b"iScan" in first.raw(tag.XMP):
        return "ventana"
    if b"Argos.Scan.Metadata" in first.raw(tag.ARGOS_METADATA):  # which focal plane, only its XML tells
        return "argos"
    return "trestle" if software.startswith("MedScan") else None


def _tiled(directories: Sequence[Directory], *, padded: bool = False) -> list[Directory]:
    """The tiled directories of the finest one's picture, finest first, one of each size.

    `padded`: level sizes are filled up to whole tiles, so that their aspect says nothing.
    """
    tiled = [each for each in directories if each.has(tag.TILE_WIDTH) and each.has(tag.TILE_OFFSETS)]
    if not tiled:
        raise SlideError("not-tiled", "it is a TIFF without tiles")
    for width, height in map(_size, tiled):
        if min(width, height) <= 0:  # were it passed over, the next level would be taken for the finest
            raise SlideError("corrupt-header", f"a level is {width} × {height} px")
    tiled.sort(key=lambda each: -_area(each))
    kept: list[Directory] = []
    for each in tiled:
        if not kept or (_size(each) != _size(kept[-1]) and (padded or _same_picture(kept[0], each))):
            kept.append(each)
    return kept


def _size(directory: Directory) -> tuple[int, int]:
    return directory.integer(tag.IMAGE_WIDTH), directory.integer(tag.IMAGE_LENGTH)


def _area(directory: Directory) -> int:
    width, height = _size(directory)
    return width * height


def _same_picture(finest: Directory, other: Directory) -> bool:
    return same_shape(_size(finest), _size(other))


def _is_reduced(directory: Directory) -> bool:
    return bool(directory.integer(tag.NEW_SUBFILE_TYPE, 0) & _REDUCED_IMAGE)


def _of_the_slide(
    directories: Sequence[Directory], others: Container[tuple[int, int]] = ()
) -> list[Directory]:
    """Those that do not say that they are a macro, a label or a mask, and have none of the sizes `others`."""
    named = [
        each for each in directories
        if _size(each) not in others and not each.integer(tag.NEW_SUBFILE_TYPE, 0) & _MASK_IMAGE
        and not _OTHER_PICTURE.match(each.text(tag.IMAGE_DESCRIPTION, _HEAD_BYTES))
    ]  # fmt: skip
    return named or list(directories)


def _aperio(_: TiffFile, directories: Sequence[Directory]) -> Pyramid:
    match = re.search(r"\|\s*MPP\s*=\s*([0-9.,eE+-]+)", directories[0].text(tag.IMAGE_DESCRIPTION))
    mpp = plausible_mpp(_number(match.group(1) if match else ""))
    directories = _of_the_slide(directories)
    heights = [_aperio_height(each) for each in directories]
    planes = sorted({each for each in heights if each is not None})
    middle = planes[(len(planes) - 1) // 2] if planes else None
    shown = [each for each, z in zip(directories, heights, strict=True) if z in (None, middle)]
    return Pyramid("aperio", "svs", tuple(_tiled(shown)), mpp, mpp, remark=middle_of(len(planes)))


def _aperio_height(directory: Directory) -> float | None:
    """Of the focal plane of a level; None where it says none."""
    match = re.search(
        r"\|\s*OffsetZ\s*=\s*([0-9.,eE+-]+)", directory.text(tag.IMAGE_DESCRIPTION, _HEAD_BYTES)
    )
    return _number(match.group(1)) if match else None


@dataclass(frozen=True)
class _OmeImage:
    """Name of an image, the attributes of its <Pixels> element and of each <TiffData> in it."""

    name: str
    pixels: dict[str, str]
    parts: list[dict[str, str]]

    def number(self, name: str) -> int:
        """A size in the attributes; 1 where it is absent or none."""
        return max(1, _whole(self.pixels.get(name, "")))


def _ome(tiff: TiffFile, directories: Sequence[Directory]) -> Pyramid:
    """The largest image of the file: the macro or the label may well be the first.

    Of several focal planes the middle one, of several time points the first.
    """
    images = _ome_images(directories[0].text(tag.IMAGE_DESCRIPTION))
    others = {_ome_size(each) for each in images if _OTHER_PICTURE.match(each.name)}
    finest = _largest(_of_the_slide(directories, others))
    alike = [each for each in images if _ome_size(each) == _size(finest)]
    image = (alike or (images if len(images) == 1 else []) or [_OmeImage("", {}, [])])[0]
    samples = finest.integer(tag.SAMPLES_PER_PIXEL, 1)
    if samples == 1 and image.number("SizeC") > 1:
        raise SlideError("unsupported-layout", f"its {image.number('SizeC')} channels are separate images")
    num_planes, num_times = image.number("SizeZ"), image.number("SizeT")
    found = _ome_directory(image, samples, (num_planes - 1) // 2, directories.index(finest))
    is_there = found < len(directories) and _size(directories[found]) == _size(finest)
    shown = directories[found] if is_there else finest
    num_images = sum(not _OTHER_PICTURE.match(each.name) for each in images)
    remarks = [
        (middle_of(num_planes) if is_there else f"the first one of {num_planes} focal planes is read")
        if num_planes > 1 else "",
        f"the first of {num_times} time points is read" if num_times > 1 else "",
        f"the largest of {num_images} images is read" if num_images > 1 else "",
    ]  # fmt: skip
    subs = tiff.sub_directories(shown)
    levels = _tiled([shown, *(subs or filter(_is_reduced, directories if num_planes == 1 else ()))])
    said = _tiff_mpp(levels[0])
    mpp = [_ome_mpp(image.pixels, axis) or said[i] for i, axis in enumerate("XY")]
    remark = "; ".join(filter(None, remarks))
    return Pyramid("ome", "ome-tiff", tuple(levels), mpp[0], mpp[1], remark=remark)


def _ome_directory(image: _OmeImage, samples: int, z: int, first: int) -> int:
    """Number in the main chain of the directory that holds plane `z` of the first time point and channel.

    `first`: where the image begins if it does not say (OME model, TiffData). The first of all planes where
    no part holds that plane.
    """
    sizes = {"Z": image.number("SizeZ"), "T": image.number("SizeT"),
             "C": max(1, image.number("SizeC") // max(1, samples))}  # fmt: skip
    strides, stride = {}, 1
    for axis in [each for each in image.pixels.get("DimensionOrder", "XYCZT") if each in sizes]:
        strides[axis], stride = stride, stride * sizes[axis]
    wanted = z * strides.get("Z", 1)
    for part in image.parts:
        begin = sum(_whole(part.get(f"First{axis}", "")) * strides.get(axis, 0) for axis in "ZTC")
        num = _whole(part.get("PlaneCount", "1" if "IFD" in part else str(stride)))
        if begin <= wanted < begin + num:
            return _whole(part.get("IFD", "")) + wanted - begin
    return first if image.parts else first + wanted


def _ome_images(description: str) -> list[_OmeImage]:
    """The images of an OME-XML text, which need not be well-formed."""
    begin, *comments = description.split("<!--")
    text = begin + "".join(each.partition("-->")[2] for each in comments)
    found: list[_OmeImage] = []
    name = ""
    # Every run is bounded, so that no text takes more than linear time.
    for element, inside in re.findall(r"<(?:\w{1,64}:)?(Image|Pixels|TiffData)\b([^<>]*)", text):
        pairs = re.findall(r"(\w{1,64})\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", inside)
        attributes = {key: html.unescape(one or other) for key, one, other in pairs}
        if element == "Image":
            name = attributes.get("Name", "")
        elif element == "Pixels":
            found.append(_OmeImage(name, attributes, []))
        elif found:
            found[-1].parts.append(attributes)
    return found


def _whole(text: str) -> int:
    """A whole number; 0 for any other text."""
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _ome_size(image: _OmeImage) -> tuple[int, int]:
    return _whole(image.pixels.get("SizeX", "")), _whole(image.pixels.get("SizeY", ""))


def _ome_mpp(attributes: dict[str, str], axis: str) -> float | None:
    size = _number(attributes.get(f"PhysicalSize{axis}", ""))
    scale = _UM_PER_UNIT.get(attributes.get(f"PhysicalSize{axis}Unit", "µm"))
    return plausible_mpp(size * scale) if size is not None and scale is not None else None


def _philips(_: TiffFile, directories: Sequence[Directory]) -> Pyramid:
    """Level sizes are padded to whole tiles; each representation's pixel spacing tells its downsample."""
    levels = _tiled(directories, padded=True)
    spacings = _philips_spacings(directories[0].text(tag.IMAGE_DESCRIPTION))
    if len(spacings) < len(levels):
        mpp_y, mpp_x = (1e3 * value for value in spacings[0]) if spacings else (None, None)
        return Pyramid("philips", "philips-tiff", tuple(levels), plausible_mpp(mpp_x), plausible_mpp(mpp_y))
    y0, x0 = spacings[0]
    downsamples = tuple(max(1.0, round((y / y0 + x / x0) / 2)) for y, x in spacings[: len(levels)])
    return Pyramid(
        "philips",
        "philips-tiff",
        tuple(levels),
        plausible_mpp(1e3 * x0),
        plausible_mpp(1e3 * y0),
        downsamples,
    )


def _philips_spacings(description: str) -> list[tuple[float, float]]:
    """(row, column) spacing in mm of each whole-slide representation, finest first."""
    text = html.unescape(description)
    start = text.find('"PIM_DP_IMAGE_TYPE"')
    whole = re.search(r">\s*WSI\s*<", text[start:]) if start >= 0 else None
    scope = text[start + whole.start() :] if whole else text
    found = re.findall(r'"DICOM_PIXEL_SPACING"[^<>]{0,256}>\s*"([0-9.,eE+-]+)"\s+"([0-9.,eE+-]+)"', scope)
    pairs = {(_number(row) or 0.0, _number(column) or 0.0) for row, column in found}
    return sorted(each for each in pairs if min(each) > 1e-9 and max(each) < 1e3)


def _generic(tiff: TiffFile, directories: Sequence[Directory]) -> Pyramid:
    """The largest picture, whatever its page, its SubIFDs, and those that say they are reductions of it."""
    slide = _of_the_slide(directories)
    finest = _largest([each for each in slide if not _is_reduced(each)] or slide)
    subs = tiff.sub_directories(finest)
    levels = _tiled(_of_the_slide([finest, *subs, *filter(_is_reduced, slide)]))
    num_alike = sum(_size(each) == _size(finest) for each in slide)
    remark = f"the first of {num_alike} pictures of one size is read" if num_alike > 1 else ""
    return Pyramid("generic-tiff", "tiff", tuple(levels), *_tiff_mpp(levels[0]), remark=remark)


def _largest(directories: Sequence[Directory]) -> Directory:
    """The largest tiled picture.

    Raises `SlideError` (`not-tiled`) where there is none, or a larger one of the same shape is not tiled:
    then what is tiled is no more than its reductions.
    """
    finest = _tiled(directories, padded=True)[0]
    for each in directories:
        larger = _area(each) > _area(finest)
        if larger and _same_picture(finest, each) and not each.has(tag.TILE_WIDTH):
            raise SlideError("not-tiled", "its finest picture is a TIFF without tiles")
    return finest


def _huron(_: TiffFile, directories: Sequence[Directory]) -> Pyramid:
    """Every tiled directory is a level, though none says that it is a reduction."""
    levels = _tiled(directories)
    return Pyramid("huron", "huron", tuple(levels), *_tiff_mpp(levels[0]))


def _tiff_mpp(finest: Directory) -> tuple[float | None, float | None]:
    """What TIFF's own tags say of resolution: (x, y) in µm a pixel."""
    unit_um = {2: 25_400.0, 3: 10_000.0}.get(finest.integer(tag.RESOLUTION_UNIT, 2))
    x, y = (
        plausible_mpp(unit_um / per_unit) if unit_um and per_unit else None
        for per_unit in (finest.rational(tag.X_RESOLUTION), finest.rational(tag.Y_RESOLUTION))
    )
    return x, y


def _number(text: str) -> float | None:
    """A finite number, written with a decimal point or comma."""
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


_DIALECTS: tuple[
    tuple[Callable[[Directory], bool], Callable[[TiffFile, Sequence[Directory]], Pyramid]], ...
] = (
    (lambda first: first.text(tag.IMAGE_DESCRIPTION).startswith("Aperio"), _aperio),
    (lambda first: first.text(tag.SOFTWARE).startswith("Philips"), _philips),
    (lambda first: first.text(tag.MAKE).startswith("Huron"), _huron),
    (lambda first: bool(_OME.search(first.text(tag.IMAGE_DESCRIPTION), 0, _HEAD_BYTES)), _ome),
)
