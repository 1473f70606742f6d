"""Slides of the formats that OpenSlide alone places: Leica SCN, Trestle, Hamamatsu NDPI and VMS."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tests.support.slide_files import Pixels, halved


def write_scn(path: Path, pixels: Pixels, mpp: float = 0.5) -> Path:
    """Leica SCN: a BigTIFF whose XML says which directory is which level of which view."""
    levels = [pixels, halved(pixels), halved(pixels, 2)]
    height, width = pixels.shape[:2]
    nm_x, nm_y = round(width * mpp * 1000), round(height * mpp * 1000)
    dimensions = "".join(
        f'<dimension sizeX="{each.shape[1]}" sizeY="{each.shape[0]}" r="{i}" ifd="{i}"/>'
        for i, each in enumerate(levels)
    )
    pixels_tag = f'<pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>'
    image = (
        '<image name="i" uuid="1"><creationDate>2020-01-01T00:00:00Z</creationDate>'
        '<device model="m" version="1"/>'
        f'{pixels_tag}<view sizeX="{nm_x}" sizeY="{nm_y}" offsetX="0" offsetY="0" spacingZ="0"/>'
        "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>"
        "<illuminationSettings><numericalAperture>0.7</numericalAperture>"
        "<illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
    )
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="u">'
        f'<collection name="c" uuid="u" sizeX="{2 * nm_x}" sizeY="{2 * nm_y}">'
        f"<barcode></barcode>{image}</collection></scn>"
    )
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, each in enumerate(levels):
            writer.write(each, tile=(128, 128), photometric="rgb", compression="jpeg", metadata=None,
                         resolution=(1e4 / (mpp * 2**number),) * 2, resolutionunit="CENTIMETER",
                         description=xml if number == 0 else None, subfiletype=int(number > 0))  # fmt: skip
    return path


def write_trestle(path: Path, pixels: Pixels, mpp: float = 0.5) -> Path:
    """Trestle: tiles overlap as the description says; here by nothing. Its resolution is µm a pixel."""
    levels = [pixels, halved(pixels)]
    description = (
        "Background Color=FFFFFF;White Balance=0;Objective Power=20;JPEG Quality=80;OverlapsXY= 0 0 0 0"
    )
    with tifffile.TiffWriter(path) as writer:
        for number, each in enumerate(levels):
            writer.write(each, tile=(128, 128), photometric="rgb", compression="jpeg", metadata=None,
                         description=description, resolution=(mpp * 2**number,) * 2,
                         software="MedScan 1.0", subfiletype=int(number > 0))  # fmt: skip
    return path


def jpeg_with_restarts(pixels: Pixels, quality: int = 85) -> bytes:
    """One JPEG cut by restart markers, a row of blocks each."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0, restart_marker_rows=1)
    return buffer.getvalue()


def write_vms(folder: Path, name: str, pixels: Pixels) -> Path:
    """Hamamatsu VMS: a text file that names a JPEG with restart markers and a smaller map of it.

    Sides of `pixels` must be multiples of 64.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-0.jpg").write_bytes(jpeg_with_restarts(pixels))
    (folder / f"{name}-map.jpg").write_bytes(jpeg_with_restarts(halved(pixels, 3)))
    macro = np.full((60, 120, 3), 240, np.uint8)
    (folder / f"{name}-macro.jpg").write_bytes(jpeg_with_restarts(macro))
    height, width = pixels.shape[:2]
    lines = (
        "[Virtual Microscope Specimen]", "NoLayers=1", "NoJpegColumns=1", "NoJpegRows=1",
        f"ImageFile={name}-0.jpg", f"MapFile={name}-map.jpg", f"MacroImage={name}-macro.jpg",
        f"PhysicalWidth={width * 500}", f"PhysicalHeight={height * 500}",
        "PhysicalMacroWidth=20000000", "PhysicalMacroHeight=10000000", "SourceLens=20",
        "XOffsetFromSlideCentre=0", "YOffsetFromSlideCentre=0",
    )  # fmt: skip
    path = folder / f"{name}.vms"
    path.write_text("\r\n".join(lines) + "\r\n")
    return path


def write_ndpi(path: Path, pixels: Pixels, mpp: float = 0.5) -> Path:
    """Hamamatsu NDPI: each level one JPEG with restart markers, in a TIFF of its own tags.

    Sides of `pixels` must be multiples of 64.
    """
    data = bytearray(b"II*\0" + bytes(4))
    link = 4
    for number, level in enumerate((pixels, halved(pixels), halved(pixels, 2))):
        height, width = level.shape[:2]
        jpeg = jpeg_with_restarts(level)
        jpeg_at = len(data)
        data += jpeg + bytes(len(jpeg) % 2)
        make_at = len(data)
        data += b"Hamamatsu\0"
        resolution_at = len(data)
        data += struct.pack("<II", round(1e4 / (mpp * 2**number)), 1)
        bits_at = len(data)
        data += struct.pack("<3H", 8, 8, 8)
        lens = struct.unpack("<I", struct.pack("<f", 20 / 2**number))[0]
        entries = [
            (254, 4, 1, 0), (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 7),
            (262, 3, 1, 6), (271, 2, 10, make_at), (273, 4, 1, jpeg_at), (277, 3, 1, 3), (278, 4, 1, height),
            (279, 4, 1, len(jpeg)), (282, 5, 1, resolution_at), (283, 5, 1, resolution_at), (284, 3, 1, 1),
            (296, 3, 1, 3), (65420, 4, 1, 1), (65421, 11, 1, lens), (65422, 9, 1, 0), (65423, 9, 1, 0),
            (65424, 9, 1, 0),
        ]  # fmt: skip
        data += bytes(len(data) % 2)
        struct.pack_into("<I", data, link, len(data))
        data += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *each) for each in entries)
        link = len(data)
        data += bytes(8)
    path.write_bytes(data)
    return path
