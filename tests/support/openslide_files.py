"""TIFF dialects that OpenSlide knows: Leica SCN, Trestle, Hamamatsu NDPI, Ventana BIF, Argos, Huron."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from tests.support.openslide_containers import jpeg_with_restarts
from tests.support.slide_files import Pixels, halved


def write_scn(path: Path, pixels: Pixels, mpp: float = 0.5, at_px: tuple[int, int] = (0, 0)) -> Path:
    """Leica SCN: a BigTIFF whose XML says which directory is which level of which view, and where it lies."""
    levels = [pixels, halved(pixels), halved(pixels, 2)]
    height, width = pixels.shape[:2]
    x_nm, y_nm = (round(each * mpp * 1000) for each in at_px)
    nm_x, nm_y = round(width * mpp * 1000), round(height * mpp * 1000)
    dimensions = "".join(
        f'<dimension sizeX="{each.shape[1]}" sizeY="{each.shape[0]}" r="{i}" ifd="{i}"/>'
        for i, each in enumerate(levels)
    )
    pixels_tag = f'<pixels sizeX="{width}" sizeY="{height}">{dimensions}</pixels>'
    image = (
        '<image name="i" uuid="1"><creationDate>2020-01-01T00:00:00Z</creationDate>'
        '<device model="m" version="1"/>'
        f'{pixels_tag}<view sizeX="{nm_x}" sizeY="{nm_y}" offsetX="{x_nm}" offsetY="{y_nm}"'
        ' spacingZ="0"/>'
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


def write_ventana(path: Path, pixels: Pixels, mpp: float = 0.5, *, overlap_px: int = 8) -> Path:
    """Ventana BIF: a label that says what scanner it was, then levels whose tiles overlap as XML tells.

    Without `overlap_px`, levels of a Ventana TIFF, which have no such XML. Shows the top-left part of
    `pixels` that whole tiles cover.
    """
    side = 128
    advance = side - overlap_px
    down, across = ((extent - overlap_px) // advance for extent in pixels.shape[:2])
    rows = [
        np.hstack([pixels[y * advance :, x * advance :][:side, :side] for x in range(across)])
        for y in range(down)
    ]
    stitched = np.vstack(rows)
    scanner = f'<iScan Magnification="20" ScanRes="{mpp}" UnitNumber="1"/>'
    stitching = _stitching(across, down, side, overlap_px) if overlap_px else None
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        label = np.full((60, 40, 3), 250, np.uint8)
        writer.write(label, photometric="rgb", metadata=None, description="Label_Image",
                     extratags=[(700, 1, None, scanner.encode(), True)])  # fmt: skip
        for number in range(3):
            xmp = [(700, 1, None, stitching.encode(), True)] if stitching and number == 0 else []
            writer.write(halved(stitched, number), tile=(side, side), photometric="rgb", compression="jpeg",
                         description=f"level={number} mag={20 / 2**number:g} quality=90", metadata=None,
                         extratags=xmp)  # fmt: skip
    return path


def _stitching(across: int, down: int, side: int, overlap_px: int) -> str:
    """Tiles are numbered from the bottom, odd rows from right to left; a joint lies between two of them."""
    number = {
        (row, column): 1 + r * across + (column if r % 2 == 0 else across - 1 - column)
        for r, row in enumerate(reversed(range(down))) for column in range(across)
    }  # fmt: skip
    joint = (
        '<TileJointInfo FlagJoined="1" Confidence="100" Direction="{}" Tile1="{}" Tile2="{}"'
        ' OverlapX="{}" OverlapY="{}"/>'
    )
    joints = [
        joint.format("RIGHT", number[row, column], number[row, column + 1], overlap_px, 0)
        for row in range(down) for column in range(across - 1)
    ] + [
        joint.format("UP", number[row + 1, column], number[row, column], 0, overlap_px)
        for row in range(down - 1) for column in range(across)
    ]  # fmt: skip
    return (
        f'<EncodeInfo Ver="2"><SlideStitchInfo><ImageInfo AOIScanned="1" AOIIndex="0" Width="{side}"'
        f' Height="{side}" NumRows="{down}" NumCols="{across}" Pos-X="0" Pos-Y="0">{"".join(joints)}'
        '</ImageInfo></SlideStitchInfo><AoiOrigin><AOI0 OriginX="0" OriginY="0"/></AoiOrigin></EncodeInfo>'
    )


def write_argos(path: Path, pixels: Pixels, mpp: float = 0.5) -> Path:
    """Argos AVS: three focal planes, one after the other; the middle one, `pixels`, is the picture."""
    xml = "<Argos.Scan.Metadata><MinZ>0</MinZ><MaxZ>2</MaxZ></Argos.Scan.Metadata>"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for plane in range(3):
            for number in range(2):
                level = halved(pixels if plane == 1 else 255 - pixels, number)
                tags = [(65000, 2, None, xml, True)] if plane == number == 0 else []
                writer.write(level, tile=(128, 128), photometric="rgb", compression="jpeg", metadata=None,
                             resolution=(1e4 / (mpp * 2**number),) * 2, resolutionunit="CENTIMETER",
                             extratags=tags)  # fmt: skip
    return path


def write_huron(path: Path, levels: Sequence[Pixels], mpp: float = 0.5) -> Path:
    """Huron: every tiled directory is a level, though none says that it is a reduction."""
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for number, each in enumerate(levels):
            writer.write(each, tile=(128, 128), photometric="rgb", compression="jpeg", metadata=None,
                         description="Scanner = LE120\nMagnification = 20",
                         resolution=(1e4 / (mpp * 2**number),) * 2, resolutionunit="CENTIMETER",
                         extratags=[(271, 2, None, "Huron Digital Pathology", True)])  # fmt: skip
            if number == 0:
                writer.write(halved(each, 3), photometric="rgb", metadata=None)
    return path
