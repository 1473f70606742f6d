"""Small slides in every format eosin reads, written for the tests."""

import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import tifffile
import wsidicom.uid  # noqa: F401  # names JPEG XL's transfer syntax to pydicom, which does not know it yet
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence as DicomSequence

Pixels = npt.NDArray[np.uint8]
APERIO = "Aperio Image Library v11.2.1 \r\n{w}x{h} (128x128) test|AppMag = 20|MPP = {mpp}|ScanScope ID = T1"
WSI_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
JPEG, JPEG2000 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
JPEGLS, HTJ2K = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.201"
RLE, JPEGXL = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.110"


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """Smooth blobs of colour with grain: every codec has something to get wrong."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    pixels: Pixels = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
    return pixels


def tissue_picture(height: int, width: int, seed: int = 0) -> Pixels:
    """A pink disc with purple dots on glass, its middle at the picture's, its radius a third of the side."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2
    drawn = np.full((height, width, 3), 243, np.int16)
    drawn[inside] = (214, 130, 180)
    drawn[inside & (rng.random((height, width)) < 0.1)] = (90, 50, 130)
    pixels: Pixels = np.clip(drawn + rng.integers(-4, 5, drawn.shape), 0, 255).astype(np.uint8)
    return pixels


def halved(pixels: Pixels, times: int = 1) -> Pixels:
    """`pixels` averaged down by 2 ** `times`, an odd last row or column dropped."""
    height, width = (side >> times for side in pixels.shape[:2])
    smaller: Pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    return smaller


def write_tiff(
    path: Path, levels: Sequence[Pixels], *, description: str | None = None, tile_px: int = 128,
    mpp: float = 0.5, byteorder: Any = "<", big: bool = False, photometric: str = "rgb",
    software: str = "tests", **write_args: Any,
) -> Path:  # fmt: skip
    """A tiled pyramid: the first picture, and reductions of it."""
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=byteorder) as writer:
        for number, pixels in enumerate(levels):
            per_cm = 1e4 / (mpp * 2**number)
            writer.write(
                pixels, tile=(tile_px, tile_px), photometric=photometric, description=description,
                metadata=None, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
                software=software, subfiletype=int(number > 0), **write_args,
            )  # fmt: skip
    return path


def write_aperio(path: Path, levels: Sequence[Pixels], mpp: float | str = 0.5, **write_args: Any) -> Path:
    """As an Aperio scanner describes it."""
    height, width = levels[0].shape[:2]
    return write_tiff(path, levels, description=APERIO.format(w=width, h=height, mpp=mpp), **write_args)


def write_sparse_bigtiff(
    path: Path, side_px: int = 100_000, downs: Sequence[int] = (1, 4, 16, 64), mpp: float = 0.25
) -> Path:
    """A BigTIFF pyramid of `side_px`² pixels in a few MB: its many tiles share the bytes of 32 JPEGs."""
    tile_px, rng, data = 240, np.random.default_rng(0), bytearray(16)
    stored = []
    for seed in range(32):
        jpeg = imagecodecs.jpeg8_encode(tissue_picture(tile_px, tile_px, seed), level=80)
        stored.append((len(data), len(jpeg)))
        data += jpeg
    description = f"Aperio Image Library\r\nsparse|AppMag = 40|MPP = {mpp}\0".encode()
    description_at, link_at = len(data), 8
    data += description
    for number, down in enumerate(downs):
        width_px = side_px // down
        tiles = np.array(stored)[rng.integers(0, 32, (-(-width_px // tile_px)) ** 2)]
        offsets_at = len(data)
        data += tiles[:, 0].astype("<u8").tobytes()
        sizes_at = len(data)
        data += tiles[:, 1].astype("<u4").tobytes()
        struct.pack_into("<Q", data, link_at, len(data))
        entries = [
            (254, 4, 1, int(number > 0)), (256, 4, 1, width_px), (257, 4, 1, width_px),
            (258, 3, 3, 8 | 8 << 16 | 8 << 32), (259, 3, 1, 7), (262, 3, 1, 6),
            (270, 2, len(description), description_at), (277, 3, 1, 3), (322, 4, 1, tile_px),
            (323, 4, 1, tile_px), (324, 16, len(tiles), offsets_at), (325, 4, len(tiles), sizes_at),
        ]  # fmt: skip
        data += struct.pack("<Q", len(entries)) + b"".join(struct.pack("<HHQQ", *each) for each in entries)
        link_at = len(data)
        data += bytes(8)
    struct.pack_into("<2sHHH", data, 0, b"II", 43, 8, 0)
    path.write_bytes(data)
    return path


def write_ome(path: Path, levels: Sequence[Pixels], mpp: float = 0.25, **write_args: Any) -> Path:
    """OME-TIFF with the pyramid in SubIFDs."""
    size = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, ome=True) as writer:
        common = {"tile": (128, 128), "photometric": "rgb", **write_args}
        writer.write(levels[0], subifds=len(levels) - 1, metadata={"axes": "YXS", **size}, **common)
        for pixels in levels[1:]:
            writer.write(pixels, subfiletype=1, **common)
    return path


_SCANNED = (
    '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
    '<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array>'
    '<DataObject ObjectType="DPScannedImage">'
    '<Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301D" Element="0x1004" PMSVR="IString">WSI</Attribute>'
    "{spacing}"
    '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01"'
    ' PMSVR="IDataObjectArray"><Array>{levels}</Array></Attribute>'
    "</DataObject></Array></Attribute></DataObject>"
)
_SPACING = (
    '<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">'
    "&quot;{y:.9f}&quot; &quot;{x:.9f}&quot;</Attribute>"
)
_REPRESENTATION = (
    '<DataObject ObjectType="PixelDataRepresentation">{spacing}'
    '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER" Group="0x1001" Element="0x8B02"'
    ' PMSVR="IUInt16">{number}</Attribute></DataObject>'
)


def write_philips(
    path: Path, levels: Sequence[Pixels], mpp_x: float = 0.226, mpp_y: float = 0.227, tile_px: int = 128
) -> Path:
    """Philips TIFF: every level padded to whole tiles, its downsample told by pixel spacing in XML."""
    spacings = [_SPACING.format(x=mpp_x * 2**i / 1e3, y=mpp_y * 2**i / 1e3) for i in range(len(levels))]
    parts = "".join(_REPRESENTATION.format(spacing=s, number=i) for i, s in enumerate(spacings))
    padded = [
        np.pad(each, ((0, -each.shape[0] % tile_px), (0, -each.shape[1] % tile_px), (0, 0)))
        for each in levels
    ]
    return write_tiff(
        path, padded, description=_SCANNED.format(spacing=spacings[0], levels=parts), tile_px=tile_px,
        software="Philips DP v1.0", compression="jpeg",
    )  # fmt: skip


def write_dicom(
    path: Path, pixels: Pixels, *, level: int = 0, syntax: str = JPEG, table: str = "basic",
    sparse: bool = False, skip: Sequence[int] = (), tile_px: int = 128,
    mpp: tuple[float, float] = (0.5, 0.52),
    series: str = "1.2.826.0.1.3680043.8.498.1", kind: str = "VOLUME", planes: int = 1,
    change: Callable[[Dataset], None] = lambda dataset: None,
) -> Path:  # fmt: skip
    """One instance of a whole-slide series; `table` is basic, extended or none; mpp is (x, y).

    `skip`: row-major tiles that a sparse instance leaves out. `change` is done to the dataset last.
    """
    height, width = pixels.shape[:2]
    num_x, num_y = -(-width // tile_px), -(-height // tile_px)
    padded = np.pad(
        pixels, ((0, num_y * tile_px - height), (0, num_x * tile_px - width), (0, 0)), mode="edge"
    )
    places = [(i // num_x, i % num_x) for i in range(num_x * num_y) if i not in skip]
    tiles = [
        np.ascontiguousarray(padded[r * tile_px :, c * tile_px :][:tile_px, :tile_px]) for r, c in places
    ] * planes
    dataset = _dicom_attributes(width, height, tile_px, len(tiles), level, mpp, series, kind, path.stem)
    dataset.TotalPixelMatrixFocalPlanes = planes
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    if sparse:
        dataset.PerFrameFunctionalGroupsSequence = DicomSequence(
            [_position(r * tile_px + 1, c * tile_px + 1) for r, c in places]
        )
    _put_pixels(dataset, tiles, syntax, table)
    change(dataset)
    dataset.save_as(path, enforce_file_format=True)
    return path


def _dicom_attributes(
    width: int, height: int, tile_px: int, num_frames: int, level: int, mpp: tuple[float, float],
    series: str, kind: str, name: str,
) -> Dataset:  # fmt: skip
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    uid = f"{series}.{level + 1}.{sum(name.encode())}"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = WSI_CLASS
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
    dataset.ImageType = [
        "DERIVED" if level else "ORIGINAL",
        "PRIMARY",
        kind,
        "RESAMPLED" if level else "NONE",
    ]
    dataset.Modality = "SM"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = series + ".7", series
    dataset.FrameOfReferenceUID = series + ".8"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = num_frames, tile_px, tile_px
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.TotalPixelMatrixColumns, dataset.TotalPixelMatrixRows = width, height
    dataset.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    measures = Dataset()
    measures.PixelSpacing = [mpp[1] * 2**level / 1e3, mpp[0] * 2**level / 1e3]
    shared = Dataset()
    shared.PixelMeasuresSequence = DicomSequence([measures])
    dataset.SharedFunctionalGroupsSequence = DicomSequence([shared])
    return dataset


RLE_ENCODED: dict[str, Any] = {
    "rows": 128, "columns": 128, "samples_per_pixel": 3, "bits_allocated": 8, "bits_stored": 8,
    "pixel_representation": 0, "photometric_interpretation": "RGB", "number_of_frames": 1,
    "planar_configuration": 0,
}  # fmt: skip


def _position(row: int, column: int) -> Dataset:
    position = Dataset()
    position.ColumnPositionInTotalImagePixelMatrix = column
    position.RowPositionInTotalImagePixelMatrix = row
    group = Dataset()
    group.PlanePositionSlideSequence = DicomSequence([position])
    return group


def _put_pixels(dataset: Dataset, tiles: Sequence[Pixels], syntax: str, table: str) -> None:
    if syntax in (IMPLICIT, EXPLICIT):
        dataset.PixelData = b"".join(tile.tobytes() for tile in tiles)
        dataset["PixelData"].VR = "OB" if syntax == EXPLICIT else "OW"
        return
    if syntax == JPEG:
        dataset.PhotometricInterpretation = "YBR_FULL_422"
        frames = [imagecodecs.jpeg8_encode(tile, level=85, subsampling="422") for tile in tiles]
    elif syntax == JPEGLS:
        frames = [imagecodecs.jpegls_encode(tile) for tile in tiles]
    elif syntax == RLE:
        frames = [RLELosslessEncoder.encode(tile, **RLE_ENCODED) for tile in tiles]
    elif syntax == JPEGXL:
        frames = [imagecodecs.jpegxl_encode(tile, lossless=True) for tile in tiles]
    elif syntax == HTJ2K:
        dataset.PhotometricInterpretation = "YBR_RCT"
        frames = [imagecodecs.htj2k_encode(tile) for tile in tiles]
    else:
        dataset.PhotometricInterpretation = "YBR_RCT"
        frames = [imagecodecs.jpeg2k_encode(tile, codecformat="j2k", mct=True) for tile in tiles]
    if table == "extended":
        data, offsets, lengths = encapsulate_extended(frames)
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
        dataset.PixelData = data
    else:
        dataset.PixelData = encapsulate(frames, has_bot=table == "basic")
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True


def read_dicom(path: Path) -> Dataset:
    return pydicom.dcmread(path)


def as_tiff_too(path: Path) -> Path:
    """Let the preamble begin a TIFF whose directory lies behind the DICOM object."""
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, np.zeros((64, 64, 3), np.uint8), photometric="rgb", tile=(64, 64))
    data, dataset = tiff.getvalue(), path.read_bytes()
    shift = len(dataset)
    moved = bytearray(data)
    at = int.from_bytes(data[4:8], "little")
    for i in range(int.from_bytes(data[at : at + 2], "little")):
        entry = at + 2 + 12 * i
        tag, kind = (int.from_bytes(data[entry + k : entry + k + 2], "little") for k in (0, 2))
        count = int.from_bytes(data[entry + 4 : entry + 8], "little")
        size = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8}[kind] * count
        if size > 4 or tag in (273, 324):
            value = int.from_bytes(data[entry + 8 : entry + 12], "little") + shift
            moved[entry + 8 : entry + 12] = value.to_bytes(4, "little")
    head = b"II*\0" + (at + shift).to_bytes(4, "little")
    path.write_bytes(head + dataset[8:] + bytes(moved))
    return path
