"""DICOM whole-slide images: one series, its instances the levels of one slide.

Source: DICOM PS3.3 C.8.12 (VL Whole Slide Microscopy), PS3.5 annex A.4 (encapsulated pixel data).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pydicom
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from eosin.errors import EosinError
from eosin.slides.dicom_frames import frame_table, has_offset_table
from eosin.slides.dicom_grid import place_frames
from eosin.slides.errors import SlideError
from eosin.slides.files import BinaryFile
from eosin.slides.model import ColorSpace, Compression, Level, SlideHeader, SlideObject, TileTable
from eosin.slides.table import check_grid, check_total, concatenate
from eosin.storage import NotFound, ObjectChanged

WSI_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
_SERIES_UID = Tag(0x0020, 0x000E)
_MAX_HEADER_BYTES = 512 * 2**20
_NATIVE = {"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"}
_COMPRESSIONS: dict[str, Compression] = {
    **dict.fromkeys(_NATIVE, "none"),
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
}
_TAGS = [
    "SOPClassUID", "ImageType", "SeriesInstanceUID", "SOPInstanceUID", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated",
    "TotalPixelMatrixColumns", "TotalPixelMatrixRows", "TotalPixelMatrixFocalPlanes", "NumberOfOpticalPaths",
    "DimensionOrganizationType", "SharedFunctionalGroupsSequence", "ConcatenationFrameOffsetNumber",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "ImagedVolumeWidth", "ImagedVolumeHeight",
]  # fmt: skip

# Damage becomes one reason for the slide, not a page of warnings that quote it.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@dataclass(frozen=True)
class Instance:
    """One DICOM object: its attributes, and the tile table of its frames in the level's grid."""

    stored: SlideObject
    series: str
    role: str
    """volume, or label, overview, thumbnail: pictures that are no level."""
    width_px: int
    height_px: int
    tile_width_px: int
    tile_height_px: int
    frame_offset: int | None
    """Of the first frame, in a part of a concatenation; None: the object holds the whole level."""
    compression: Compression
    color_space: ColorSpace
    mpp_x: float | None
    mpp_y: float | None
    tiles: TileTable
    walked: bool = False
    """Without an offset table: the whole object was read to find its frames."""


def read_instance(file: BinaryFile, stored: SlideObject) -> Instance:
    """Everything but pixels of one instance. Raises `SlideError` naming what is wrong."""
    with _named_damage():
        return _read_instance(file, stored)


def read_series_uid(file: BinaryFile, stored: SlideObject) -> str:
    """The series an instance belongs to. Raises `SlideError` where the header cannot be read."""
    with _named_damage():
        bounded = _Bounded(file, stored.size_bytes)
        dataset = read_partial(bounded, stop_when=_past_series, specific_tags=[_SERIES_UID])
        return str(dataset.get("SeriesInstanceUID", ""))


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


def _read_tags(file: _Bounded, tags: list[str]) -> Any:
    return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))


def series_slide(instances: Sequence[Instance]) -> tuple[SlideHeader, TileTable]:
    """One slide from the instances of one series, finest level first.

    Raises `SlideError` (`not-a-slide`) where none of them is a level.
    """
    volumes = [each for each in instances if each.role == "volume"]
    if not volumes:
        roles = ", ".join(sorted({each.role for each in instances}))
        raise SlideError("not-a-slide", f"its DICOM series holds only: {roles}")
    objects = tuple(each.stored for each in volumes)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, each in enumerate(volumes):
        groups.setdefault((each.width_px, each.height_px), []).append(i)
    levels: list[Level] = []
    tables: list[TileTable] = []
    first_tile = 0
    for size in sorted(groups, reverse=True):
        members = sorted(groups[size], key=lambda i: volumes[i].frame_offset or 0)
        table = _merge(volumes, members)
        levels.append(_level(volumes[members[0]], levels, first_tile))
        tables.append(table)
        first_tile += len(table)
        check_total(first_tile)
    finest = volumes[groups[max(groups)][0]]
    header = SlideHeader(objects, "dicom", "dicom", tuple(levels), finest.mpp_x, finest.mpp_y)
    return header, concatenate(tables)


def _merge(volumes: Sequence[Instance], members: Sequence[int]) -> TileTable:
    """One level's table; the parts of a concatenation fill each other's holes."""
    merged: TileTable | None = None
    for i in members:
        part = volumes[i].tiles.copy()
        part["object"] = i
        if merged is None:
            merged = part
        elif len(part) == len(merged):
            holes = merged["size_bytes"] == 0
            merged[holes] = part[holes]
    assert merged is not None
    return merged


def _level(instance: Instance, finer: Sequence[Level], first_tile: int) -> Level:
    base = finer[0] if finer else None
    downsample = (
        (base.width_px / instance.width_px + base.height_px / instance.height_px) / 2 if base else 1.0
    )
    return Level(
        width_px=instance.width_px, height_px=instance.height_px, downsample=downsample,
        tile_width_px=instance.tile_width_px, tile_height_px=instance.tile_height_px,
        compression=instance.compression, color_space=instance.color_space, first_tile=first_tile,
    )  # fmt: skip


def _read_instance(file: BinaryFile, stored: SlideObject) -> Instance:
    bounded = _Bounded(file, stored.size_bytes)
    dataset = _read_tags(bounded, _TAGS)
    pixels_at = bounded.tell()
    if str(dataset.get("SOPClassUID", "")) != WSI_CLASS:
        raise SlideError("not-a-slide", "it is DICOM, but not a whole-slide image")
    instance = _attributes(dataset, stored)
    if instance.role != "volume":
        return instance
    check_grid(instance.width_px, instance.height_px, instance.tile_width_px, instance.tile_height_px)
    num_frames = int(dataset.get("NumberOfFrames", 1))
    frames = frame_table(bounded, dataset, pixels_at, num_frames, _frame_bytes(dataset, instance))
    sparse = str(dataset.get("DimensionOrganizationType", "")) == "TILED_SPARSE"
    groups = _per_frame_groups(bounded) if sparse else None
    walked = not has_offset_table(bounded, dataset, pixels_at)
    return replace(instance, tiles=place_frames(instance, frames, groups), walked=walked)


def _attributes(dataset: Any, stored: SlideObject) -> Instance:
    kinds = [str(part).upper() for part in dataset.get("ImageType", [])]
    role = next((kind.lower() for kind in kinds if kind in ("LABEL", "OVERVIEW", "THUMBNAIL")), "volume")
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if role == "volume" and syntax not in _COMPRESSIONS:
        raise SlideError("unsupported-compression", f"DICOM transfer syntax {syntax}")
    compression = _COMPRESSIONS.get(syntax, "other")
    mpp_x, mpp_y = _mpp(dataset)
    return Instance(
        stored=stored,
        series=str(dataset.get("SeriesInstanceUID", "")),
        role=role,
        width_px=int(dataset.get("TotalPixelMatrixColumns", 0)),
        height_px=int(dataset.get("TotalPixelMatrixRows", 0)),
        tile_width_px=int(dataset.get("Columns", 0)),
        tile_height_px=int(dataset.get("Rows", 0)),
        frame_offset=_optional_int(dataset.get("ConcatenationFrameOffsetNumber")),
        compression=compression,
        color_space=_color_space(dataset, compression) if role == "volume" else "rgb",
        mpp_x=mpp_x,
        mpp_y=mpp_y,
        tiles=concatenate([]),
    )


def _optional_int(value: Any) -> int | None:
    return None if value is None else int(value)


def _color_space(dataset: Any, compression: Compression) -> ColorSpace:
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    samples = int(dataset.get("SamplesPerPixel", 1))
    if int(dataset.get("BitsAllocated", 8)) != 8:
        raise SlideError("unsupported-pixels", f"its samples have {dataset.BitsAllocated} bits, not 8")
    if samples == 1 and photometric == "MONOCHROME2":
        return "gray"
    if samples != 3:
        raise SlideError("unsupported-pixels", f"{samples} samples a pixel, photometric {photometric}")
    if compression == "none":
        if photometric != "RGB" or int(dataset.get("PlanarConfiguration", 0)) != 0:
            raise SlideError("unsupported-pixels", f"uncompressed {photometric} or separate colour planes")
        return "rgb"
    if photometric in ("RGB", "YBR_ICT", "YBR_RCT"):
        return "rgb"
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        return "ycbcr"
    raise SlideError("unsupported-pixels", f"photometric interpretation {photometric}")


def _mpp(dataset: Any) -> tuple[float | None, float | None]:
    """(x, y) in µm; PixelSpacing is (row, column) spacing in mm."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
    measures = shared[0].get("PixelMeasuresSequence") if shared[0] is not None else None
    spacing = measures[0].get("PixelSpacing") if measures else None
    if spacing is None or len(spacing) != 2:
        return None, None
    y, x = (1e3 * float(value) for value in spacing)
    return (x, y) if all(math.isfinite(v) and v > 0 for v in (x, y)) else (None, None)


def _frame_bytes(dataset: Any, instance: Instance) -> int:
    """Bytes of an uncompressed frame."""
    return int(instance.tile_width_px * instance.tile_height_px * int(dataset.get("SamplesPerPixel", 1)))


def _per_frame_groups(file: _Bounded) -> Any:
    file.seek(0)
    dataset = _read_tags(file, ["PerFrameFunctionalGroupsSequence"])
    return dataset.get("PerFrameFunctionalGroupsSequence") or []


class _Bounded:
    """A file that refuses to hand out more than a header can need, whatever an element announces."""

    def __init__(self, file: BinaryFile, size_bytes: int) -> None:
        self._file = file
        self.size_bytes = size_bytes

    def read(self, length: int = -1) -> bytes:
        left = self.size_bytes - self._file.tell()
        wanted = left if length < 0 else min(length, left)
        if wanted > _MAX_HEADER_BYTES:
            raise SlideError("corrupt-header", f"a DICOM element announces {length} bytes")
        return self._file.read(max(wanted, 0))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
