"""DICOM whole-slide images: one series, its instances the levels of one slide.

Source: DICOM PS3.3 C.8.12 (VL Whole Slide Microscopy), PS3.5 annex A.4 (encapsulated pixel data).
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pydicom
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from eosin.errors import EosinError
from eosin.slides.dicom_frames import (
    FrameGrid,
    Frames,
    Placed,
    frame_table,
    place_by_position,
    place_in_order,
    positioned,
)
from eosin.slides.errors import SlideError
from eosin.slides.model import (
    TILE_DTYPE,
    BinaryFile,
    ColorSpace,
    Compression,
    Level,
    SlideHeader,
    SlideObject,
    TileTable,
    middle_of,
    plausible_mpp,
)
from eosin.slides.table import check_grid, check_total, concatenate, same_shape
from eosin.storage import NotFound, ObjectChanged

WSI_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
_PYRAMID_UID, _SERIES_UID = Tag(0x0008, 0x0019), Tag(0x0020, 0x000E)
_MOST_UNEVEN = 0.1
_MAX_HEADER_BYTES = 512 * 2**20
_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}
_COMPRESSIONS: dict[str, Compression] = {
    **dict.fromkeys(_NATIVE, "none"),
    **dict.fromkeys(("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"), "jpeg"),
    "1.2.840.10008.1.2.5": "rle",
    **dict.fromkeys(("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"), "jpegls"),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{each}" for each in (90, 91, 201, 202, 203)), "jpeg2000"),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{each}" for each in (110, 111, 112)), "jpegxl"),
}
_TAGS = [
    "SOPClassUID", "ImageType", "SeriesInstanceUID", "PyramidUID", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated",
    "BitsStored", "PixelRepresentation",
    "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "TotalPixelMatrixFocalPlanes", "NumberOfOpticalPaths",
    "TotalPixelMatrixOriginSequence", "OpticalPathSequence", "ExtendedDepthOfField",
    "DimensionOrganizationType", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "ConcatenationUID", "ConcatenationFrameOffsetNumber", "InConcatenationTotalNumber",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "ImagedVolumeWidth", "ImagedVolumeHeight",
]  # fmt: skip
# What an image of a whole-slide series is, in the third value of its type (PS3.3 C.8.12.4.1.1).
_OTHER_PICTURES = ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER")
# Illumination (CID 8123, SRT and DCM): what shines by itself is no stained tissue in transmitted light.
_FLUORESCENCE = ("111743", "111749")

# Damage becomes one reason for the slide, not a page of warnings that quote it.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@dataclass(frozen=True)
class Instance:
    """One DICOM object: its attributes, and the tile table of its frames in the level's grid."""

    stored: SlideObject
    role: str
    """volume; or what is no level: label, overview, thumbnail, localizer, unknown."""
    grid: FrameGrid
    concatenation: str
    """Names the level of which the object is a part; empty where it holds all of it."""
    compression: Compression
    color_space: ColorSpace
    mpp_x: float | None
    mpp_y: float | None
    z_mm: float
    """Of the object's focal plane, or of the lowest of them."""
    extended_depth: bool
    """Several focal planes made into one that is sharp everywhere."""
    tiles: TileTable
    frames: Frames | None = None
    """In the place of `tiles`, where frames say their positions: absent ones are background."""
    num_planes: int = 1
    place_mm: tuple[float, float] | None = None
    """X and Y of its corner on the glass."""
    num_parts: int = 1
    """Objects of its concatenation."""
    walked: bool = False
    """Without an offset table that is right: the whole object was read to find its frames."""


def read_instance(file: BinaryFile, stored: SlideObject) -> Instance:
    """Everything but pixels of one instance. Raises `SlideError` naming what is wrong."""
    with _named_damage():
        return _read_instance(file, stored)


def read_series_uid(file: BinaryFile, stored: SlideObject) -> tuple[str, str]:
    """Series and pyramid (empty where it names none) of an instance.

    Raises `SlideError` where the header is damaged.
    """
    with _named_damage():
        bounded = _Bounded(file, stored.size_bytes)
        dataset = read_partial(bounded, stop_when=_past_series, specific_tags=[_PYRAMID_UID, _SERIES_UID])
        return str(dataset.get("SeriesInstanceUID", "")), str(dataset.get("PyramidUID", ""))


def _past_series(tag: BaseTag, value_kind: str | None, length: int) -> bool:
    """Tags ascend, and what follows may be megabytes of frame positions."""
    return int(tag) > int(_SERIES_UID)


@contextmanager
def _named_damage() -> Iterator[None]:
    """Whatever pydicom makes of a damaged element becomes one reason.

    It raises ValueError, OSError, struct.error, exceptions of its own and others, as the element has it.
    """
    try:
        yield
    except (EosinError, NotFound, ObjectChanged):
        raise
    except Exception as error:
        text = f"its DICOM header cannot be read: {type(error).__name__}: {error}"
        raise SlideError("corrupt-header", text) from error


def series_slide(instances: Sequence[Instance]) -> tuple[SlideHeader, TileTable, str]:
    """One slide from the instances of one series, finest level first, and a remark where planes were chosen.

    Raises `SlideError`: `not-a-slide` where none of them is a level, `truncated` where a level lacks parts.
    """
    volumes = [each for each in instances if each.role == "volume"]
    if not volumes:
        roles = ", ".join(sorted({each.role for each in instances}))
        raise SlideError("not-a-slide", f"its DICOM series holds only: {roles}")
    largest = max(volumes, key=lambda each: each.grid.width_px * each.grid.height_px)
    num_elsewhere = len(volumes)
    volumes = [each for each in volumes if _of_one_place(largest, each)]
    num_elsewhere -= len(volumes)
    pictures: dict[tuple[int, int], dict[str, list[int]]] = {}
    for i, each in enumerate(volumes):
        size, name = (each.grid.width_px, each.grid.height_px), each.concatenation or f"object {i}"
        pictures.setdefault(size, {}).setdefault(name, []).append(i)
    levels: list[Level] = []
    tables: list[TileTable] = []
    first_tile, most_planes, finest = 0, 1, volumes[0]
    for size in sorted(pictures, reverse=True):
        members, num_planes = _chosen(volumes, list(pictures[size].values()))
        level = volumes[members[0]]
        finest = finest if levels else level
        levels.append(_level(level, levels, first_tile))
        merged = _merged(volumes, members)
        tables.append(merged.tiles)
        first_tile += level.grid.num_tiles
        most_planes = max(most_planes, num_planes, merged.num_planes)
        check_total(first_tile)
    objects = tuple(each.stored for each in volumes)
    header = SlideHeader(objects, "dicom", "dicom", tuple(levels), finest.mpp_x, finest.mpp_y)
    elsewhere = f"{num_elsewhere} objects show another place and are left out" if num_elsewhere else ""
    return header, concatenate(tables), "; ".join(filter(None, (middle_of(most_planes), elsewhere)))


def _of_one_place(finest: Instance, other: Instance) -> bool:
    """Whether both show the same part of the glass, as the levels of a pyramid do."""
    if not same_shape(
        (finest.grid.width_px, finest.grid.height_px), (other.grid.width_px, other.grid.height_px)
    ):
        return False
    if finest.place_mm is None or other.place_mm is None or not finest.mpp_x:
        return True
    side_mm = max(finest.grid.width_px, finest.grid.height_px) * finest.mpp_x / 1e3
    return all(abs(a - b) <= 0.05 * side_mm for a, b in zip(finest.place_mm, other.place_mm, strict=True))


def _chosen(volumes: Sequence[Instance], pictures: list[list[int]]) -> tuple[list[int], int]:
    """Of several pictures of one size (each the objects that make it up) one, and how many planes there are.

    One of extended depth of field is in focus everywhere; else the middle focal plane.
    """
    for members in pictures:
        if volumes[members[0]].extended_depth:
            return members, 1
    by_plane = {volumes[members[0]].z_mm: members for members in reversed(pictures)}
    planes = sorted(by_plane)
    members = by_plane[planes[(len(planes) - 1) // 2]]
    return members, len(planes)


def _merged(volumes: Sequence[Instance], members: Sequence[int]) -> Placed:
    """One level's tiles; the parts of a concatenation fill each other's holes."""
    parts = [volumes[i] for i in members]
    grid, num_parts = parts[0].grid, parts[0].num_parts
    if len(parts) < num_parts:
        raise SlideError("truncated", f"{len(parts)} of {num_parts} parts of a level are there")
    if any(part.grid != grid or bool(part.frames) != bool(parts[0].frames) for part in parts):
        raise SlideError("corrupt-header", "parts of a concatenation have different tiles")
    for i, part in zip(members, parts, strict=True):
        (part.frames.table if part.frames else part.tiles)["object"] = i
    if frames := [part.frames for part in parts if part.frames]:
        return place_by_position(grid, frames)
    merged = np.zeros(grid.num_tiles, TILE_DTYPE)
    for part in parts:
        filled = part.tiles["size_bytes"] > 0
        merged[filled] = part.tiles[filled]
    if num_absent := int((merged["size_bytes"] == 0).sum()):
        raise SlideError("truncated", f"{num_absent} of {len(merged)} tiles lie in parts that are missing")
    return Placed(merged, parts[0].num_planes)


def _level(instance: Instance, finer: Sequence[Level], first_tile: int) -> Level:
    grid, base = instance.grid, finer[0] if finer else None
    downsample = (base.width_px / grid.width_px + base.height_px / grid.height_px) / 2 if base else 1.0
    return Level(
        width_px=grid.width_px, height_px=grid.height_px, downsample=downsample,
        tile_width_px=grid.tile_width_px, tile_height_px=grid.tile_height_px,
        compression=instance.compression, color_space=instance.color_space, first_tile=first_tile,
    )  # fmt: skip


def _read_instance(file: BinaryFile, stored: SlideObject) -> Instance:
    bounded = _Bounded(file, stored.size_bytes)
    dataset = pydicom.dcmread(bounded, stop_before_pixels=True, specific_tags=list(_TAGS))
    pixels_at = bounded.tell()
    if str(dataset.get("SOPClassUID", "")) != WSI_CLASS:
        raise SlideError("not-a-slide", "it is DICOM, but not a whole-slide image")
    instance = _attributes(dataset, stored)
    if instance.role != "volume":
        return instance
    grid = instance.grid
    check_grid(grid.width_px, grid.height_px, grid.tile_width_px, grid.tile_height_px)
    num_frames = int(dataset.get("NumberOfFrames", 1))
    table, walked = frame_table(bounded, dataset, pixels_at, num_frames, _frame_bytes(dataset, grid))
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    # Where positions are, they decide, whatever the organisation is said to be.
    if any("PlanePositionSlideSequence" in group for group in groups):
        frames = positioned(grid, table, groups, dataset)
        height_mm = instance.z_mm or float(np.median(frames.z_mm))
        return replace(instance, frames=frames, z_mm=height_mm, walked=walked)
    if str(dataset.get("DimensionOrganizationType", "")) == "TILED_SPARSE":
        raise SlideError("corrupt-header", "its frames have no positions")
    offset = dataset.get("ConcatenationFrameOffsetNumber")
    placed = place_in_order(grid, table, None if offset is None else int(offset))
    return replace(instance, tiles=placed.tiles, num_planes=placed.num_planes, walked=walked)


def _attributes(dataset: Any, stored: SlideObject) -> Instance:
    role = _role(dataset)
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if role == "volume" and syntax not in _COMPRESSIONS:
        raise SlideError("unsupported-compression", f"DICOM transfer syntax {syntax}")
    if role == "volume":
        _refuse_fluorescence(dataset)
    compression = _COMPRESSIONS.get(syntax, "other")
    mpp_x, mpp_y = _mpp(dataset)
    origin = dataset.get("TotalPixelMatrixOriginSequence")
    return Instance(
        stored=stored,
        role=role,
        grid=FrameGrid(
            int(dataset.get("TotalPixelMatrixColumns", 0)), int(dataset.get("TotalPixelMatrixRows", 0)),
            int(dataset.get("Columns", 0)), int(dataset.get("Rows", 0)),
            max(1, int(dataset.get("TotalPixelMatrixFocalPlanes") or 1)),
            max(1, int(dataset.get("NumberOfOpticalPaths") or 1)),
        ),
        concatenation=str(dataset.get("ConcatenationUID", "")),
        compression=compression,
        color_space=_color_space(dataset, compression) if role == "volume" else "rgb",
        mpp_x=mpp_x,
        mpp_y=mpp_y,
        z_mm=float((origin and origin[0].get("ZOffsetInSlideCoordinateSystem")) or 0.0),
        extended_depth=str(dataset.get("ExtendedDepthOfField", "")) == "YES",
        tiles=concatenate([]),
        place_mm=_place(origin[0]) if origin else None,
        num_parts=int(dataset.get("InConcatenationTotalNumber") or 1),
    )  # fmt: skip


def _place(origin: Any) -> tuple[float, float] | None:
    x, y = (origin.get(f"{axis}OffsetInSlideCoordinateSystem") for axis in "XY")
    return None if x is None or y is None else (float(x), float(y))


def _role(dataset: Any) -> str:
    """What the image is. What does not say that it is of the volume is none of its levels."""
    kinds = [str(part).upper() for part in dataset.get("ImageType") or []]
    other = next((kind.lower() for kind in kinds if kind in _OTHER_PICTURES), "")
    return other or ("volume" if "VOLUME" in kinds else "unknown")


def _refuse_fluorescence(dataset: Any) -> None:
    for path in dataset.get("OpticalPathSequence") or []:
        kinds = path.get("IlluminationTypeCodeSequence") or []
        if any(str(kind.get("CodeValue", "")) in _FLUORESCENCE for kind in kinds):
            raise SlideError(
                "not-brightfield", "it shows fluorescence, not stained tissue in transmitted light"
            )


def _color_space(dataset: Any, compression: Compression) -> ColorSpace:
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    samples = int(dataset.get("SamplesPerPixel", 1))
    bits = {int(dataset.get(name) or 8) for name in ("BitsAllocated", "BitsStored")}
    if bits != {8} or int(dataset.get("PixelRepresentation") or 0):
        raise SlideError("unsupported-pixels", f"its samples have {min(bits)} bits or a sign, not 8 bits")
    if samples == 1 and photometric == "MONOCHROME2":
        return "gray"
    if samples != 3:
        raise SlideError("unsupported-pixels", f"{samples} samples a pixel, photometric {photometric}")
    if compression == "none":
        if photometric != "RGB" or int(dataset.get("PlanarConfiguration", 0)) != 0:
            raise SlideError("unsupported-pixels", f"uncompressed {photometric} or separate colour planes")
        return "rgb"
    if compression == "jpeg2000" and photometric in ("YBR_ICT", "YBR_RCT"):
        return "rgb-transformed"
    if photometric == "RGB" or compression == "jpegxl":  # whatever is stored, its decoder gives RGB
        return "rgb"
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        return "ycbcr-untransformed" if compression == "jpeg2000" else "ycbcr"
    raise SlideError("unsupported-pixels", f"photometric interpretation {photometric}")


def _mpp(dataset: Any) -> tuple[float | None, float | None]:
    """(x, y) in µm: pixel measures of all frames or of the first, else the imaged volume's extent.

    PixelSpacing is (row, column) spacing in mm, ImagedVolumeWidth in mm over the whole matrix; where only one
    of the extents is there, pixels are taken for square.
    """
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or [None]
    for group in (_shared(dataset), frames[0]):
        measures = group.get("PixelMeasuresSequence") if group is not None else None
        spacing = measures[0].get("PixelSpacing") if measures else None
        if spacing is not None and len(spacing) == 2:
            y, x = (plausible_mpp(1e3 * float(value)) for value in spacing)
            if x and y:
                return x, y
    x, y = (
        plausible_mpp(1e3 * float(extent_mm) / int(pixels)) if extent_mm and pixels else None
        for extent_mm, pixels in (
            (dataset.get("ImagedVolumeWidth"), dataset.get("TotalPixelMatrixColumns")),
            (dataset.get("ImagedVolumeHeight"), dataset.get("TotalPixelMatrixRows")),
        )
    )
    # Pixels are square but for a few percent: extents that say otherwise are swapped, or of something else.
    return (None, None) if x and y and abs(x / y - 1) > _MOST_UNEVEN else (x or y, y or x)


def _shared(dataset: Any) -> Any:
    """The functional groups of all frames; None where there are none."""
    return (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]


def _frame_bytes(dataset: Any, grid: FrameGrid) -> int:
    """Bytes of an uncompressed frame."""
    return int(grid.tile_width_px * grid.tile_height_px * int(dataset.get("SamplesPerPixel", 1)))


class _Bounded:
    """A file that refuses to hand out more than a header can need, whatever an element announces."""

    def __init__(self, file: BinaryFile, size_bytes: int) -> None:
        self._file = file
        self.size_bytes = size_bytes

    def read(self, length: int = -1) -> bytes:
        if length < 0:  # pydicom wants all of what is deflated alone, to unfold it whatever its size
            raise SlideError(
                "unsupported-compression", "it is deflated as a whole, so no tile can be read alone"
            )
        wanted = min(length, self.size_bytes - self._file.tell())
        if wanted > _MAX_HEADER_BYTES:
            raise SlideError("corrupt-header", f"a DICOM element announces {length} bytes")
        return self._file.read(max(wanted, 0))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
