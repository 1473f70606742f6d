"""Slides that are no TIFF and that OpenSlide alone places: MIRAX, Sakura, Zeiss CZI, Hamamatsu VMS and VMU.

Each is as small as OpenSlide's own description of the format allows.
"""

import io
import sqlite3
import struct
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image

from tests.support.slide_files import Pixels, halved

_UUID = "0123456789ABCDEF"


def jpeg_of(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


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
    own = ("NoLayers=1", "NoJpegColumns=1", "NoJpegRows=1")
    names = (f"ImageFile={name}-0.jpg", f"MapFile={name}-map.jpg")
    return _hamamatsu(folder, name, "vms", "[Virtual Microscope Specimen]", pixels, (*own, *names))


def write_vmu(folder: Path, name: str, pixels: Pixels) -> Path:
    """Hamamatsu VMU: as VMS, of plain pixels of 12 bits. Sides of `pixels` must be multiples of 128."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ngr").write_bytes(_ngr(pixels))
    (folder / f"{name}_map.ngr").write_bytes(_ngr(halved(pixels, 3)))
    own = ("BitsPerPixel=36", "PixelOrder=RGB", f"ImageFile={name}.ngr", f"MapFile={name}_map.ngr")
    return _hamamatsu(folder, name, "vmu", "[Uncompressed Virtual Microscope Specimen]", pixels, own)


def _hamamatsu(
    folder: Path, name: str, suffix: str, group: str, pixels: Pixels, own: tuple[str, ...]
) -> Path:
    (folder / f"{name}-macro.jpg").write_bytes(jpeg_with_restarts(np.full((60, 120, 3), 240, np.uint8)))
    height, width = pixels.shape[:2]
    lines = (
        group, *own, f"MacroImage={name}-macro.jpg",
        f"PhysicalWidth={width * 500}", f"PhysicalHeight={height * 500}",
        "PhysicalMacroWidth=20000000", "PhysicalMacroHeight=10000000", "SourceLens=20",
        "XOffsetFromSlideCentre=0", "YOffsetFromSlideCentre=0",
    )  # fmt: skip
    path = folder / f"{name}.{suffix}"
    path.write_text("\r\n".join(lines) + "\r\n")
    return path


def _ngr(pixels: Pixels) -> bytes:
    """Columns of 16 px, one after the other, of 12 bits a sample."""
    height, width = pixels.shape[:2]
    columns = (pixels.astype("<u2") << 4).reshape(height, width // 16, 16, 3).transpose(1, 0, 2, 3)
    return struct.pack("<2sHiiiqi", b"GN", 0, width, height, 16, 0, 28) + columns.tobytes()


def write_mirax(folder: Path, name: str, pixels: Pixels, mpp: float = 0.5) -> Path:
    """3DHISTECH MIRAX: photos that overlap, cut into JPEGs of 64 px in two data files, and their index.

    Shows the top-left part of `pixels` that whole photos cover. The coarsest level holds several photos
    in one JPEG, overlaps included, as the scanner makes it.
    """
    side, divisions, overlap = 64, 2, 16
    advance = side * divisions - overlap
    down, across = ((extent - overlap) // advance for extent in pixels.shape[:2])
    tiles = {
        (row * divisions + i, column * divisions + j): pixels[
            (y := row * advance + i * side) : y + side, (x := column * advance + j * side) : x + side
        ]
        for row in range(down) for column in range(across)
        for i in range(divisions) for j in range(divisions)
    }  # fmt: skip
    levels = [tiles, (half := _concatenated(tiles, side)), _concatenated(half, side)]
    inside = folder / name
    inside.mkdir(parents=True)
    num_x, num_y = across * divisions, down * divisions
    entries, data = _packed(levels, num_x)
    places = b"".join(
        struct.pack("<bii", 1, advance * i, advance * j) for j in range(down) for i in range(across)
    )
    place = (len(data[1]), len(places), 1)
    for number, each in enumerate((data[0], data[1] + places)):
        (inside / f"Data{number:04d}.dat").write_bytes(each)
    (inside / "Index.dat").write_bytes(_mirax_index(entries, place))
    (inside / "Slidedat.ini").write_text(_slidedat(num_x, num_y, side, overlap, mpp), encoding="utf-8-sig")
    path = folder / f"{name}.mrxs"
    path.write_bytes(jpeg_of(halved(pixels, 4)))
    return path


def _concatenated(tiles: dict[tuple[int, int], Pixels], side: int) -> dict[tuple[int, int], Pixels]:
    """Two by two halved into one; white where the slide ends."""
    white = np.full((side, side, 3), 255, np.uint8)
    found = {}
    for row, column in sorted({(row // 2, column // 2) for row, column in tiles}):
        rows = [
            np.hstack([tiles.get((2 * row + i, 2 * column + j), white) for j in range(2)]) for i in range(2)
        ]
        found[row, column] = halved(np.vstack(rows))
    return found


def _packed(
    levels: list[dict[tuple[int, int], Pixels]], num_x: int
) -> tuple[list[list[tuple[int, ...]]], list[bytes]]:
    """(image, offset, length, file) of every JPEG by level, and the bytes of the two data files."""
    data = [bytearray(b"head"), bytearray(b"head")]
    entries: list[list[tuple[int, ...]]] = []
    for number, tiles in enumerate(levels):
        entries.append([])
        for (row, column), pixels in tiles.items():
            file, jpeg = (row + column) % 2, jpeg_of(pixels)
            image = (row << number) * num_x + (column << number)
            entries[-1].append((image, len(data[file]), len(jpeg), file))
            data[file] += jpeg
    return entries, [bytes(each) for each in data]


def _mirax_index(levels: list[list[tuple[int, ...]]], place: tuple[int, int, int]) -> bytes:
    head = b"01.02" + _UUID.encode()
    roots = len(head)
    lists = roots + 8  # pointers to the pages of each level, then to those of the one other record
    body = bytearray(4 * (len(levels) + 1))
    pages_at = lists + len(body)
    pages = bytearray()
    for number, level in enumerate([*levels, None]):
        struct.pack_into("<i", body, 4 * number, pages_at + len(pages))
        pages += struct.pack("<ii", 0, pages_at + len(pages) + 8)
        if level is None:
            pages += struct.pack("<iiiiiii", 1, 0, 0, 0, *place)
        else:
            pages += struct.pack("<ii", len(level), 0) + b"".join(struct.pack("<4i", *each) for each in level)
    return head + struct.pack("<ii", lists, lists + 4 * len(levels)) + bytes(body) + bytes(pages)


def _slidedat(num_x: int, num_y: int, side: int, overlap: int, mpp: float) -> str:
    lines = [
        "[GENERAL]", f"SLIDE_ID = {_UUID}", f"IMAGENUMBER_X = {num_x}", f"IMAGENUMBER_Y = {num_y}",
        "OBJECTIVE_MAGNIFICATION = 20", "CameraImageDivisionsPerSide = 2",
        "[HIERARCHICAL]", "HIER_COUNT = 1", "NONHIER_COUNT = 1", "INDEXFILE = Index.dat",
        "HIER_0_NAME = Slide zoom level", "HIER_0_COUNT = 3",
        *(f"HIER_0_VAL_{i}_SECTION = LAYER_0_LEVEL_{i}_SECTION" for i in range(3)),
        "NONHIER_0_NAME = VIMSLIDE_POSITION_BUFFER", "NONHIER_0_COUNT = 1",
        "[DATAFILE]", "FILE_COUNT = 2", "FILE_0 = Data0000.dat", "FILE_1 = Data0001.dat",
    ]  # fmt: skip
    for i in range(3):
        lines += [
            f"[LAYER_0_LEVEL_{i}_SECTION]", f"IMAGE_CONCAT_FACTOR = {int(i > 0)}",
            f"OVERLAP_X = {overlap / 2**i}", f"OVERLAP_Y = {overlap / 2**i}",
            f"MICROMETER_PER_PIXEL_X = {mpp * 2**i}", f"MICROMETER_PER_PIXEL_Y = {mpp * 2**i}",
            "IMAGE_FILL_COLOR_BGR = 16777215", f"DIGITIZER_WIDTH = {side}", f"DIGITIZER_HEIGHT = {side}",
            "IMAGE_FORMAT = JPEG",
        ]  # fmt: skip
    return "\r\n".join(lines) + "\r\n"


def write_sakura(path: Path, pixels: Pixels, mpp: float = 0.5) -> Path:
    """Sakura SVSLIDE: an SQLite database of tiles, each colour a gray JPEG of its own."""
    side = 128
    height, width = pixels.shape[:2]
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE DataManagerSQLiteConfigXPO (TableName TEXT);"
        "INSERT INTO DataManagerSQLiteConfigXPO VALUES ('tiles');"
        "CREATE TABLE tiles (id TEXT, data BLOB);"
        "CREATE TABLE SVSlideDataXPO (OID INTEGER, SlideId TEXT, Date TEXT, Description TEXT, Creator TEXT,"
        " DiagnosisCode TEXT, Keywords TEXT);"
        "INSERT INTO SVSlideDataXPO VALUES (1, 's', '', '', '', '', '');"
        "CREATE TABLE SVHRScanDataXPO (OID INTEGER, ParentSlide INTEGER, ScanId TEXT, Date TEXT, Name TEXT,"
        " Description TEXT, ResolutionMmPerPix REAL, NominalLensMagnification REAL, FocussingMethod TEXT);"
        f"INSERT INTO SVHRScanDataXPO VALUES (1, 1, 'c', '', '', '', {mpp / 1000}, 20, 'm');"
    )
    rows: list[tuple[str, str | bytes]] = [
        ("++MagicBytes", "SVGigaPixelImage"), ("++VersionBytes", "1.0"),
        ("Header", struct.pack("<5I", side, width, height, 0, 1)),
    ]  # fmt: skip
    for down in (1, 2, 4):
        level = halved(pixels, down.bit_length() - 1)
        for y in range(0, level.shape[0], side):
            for x in range(0, level.shape[1], side):
                tile = np.full((side, side, 3), 255, np.uint8)
                part = level[y : y + side, x : x + side]
                tile[: part.shape[0], : part.shape[1]] = part
                rows += [
                    (f"T;{x * down}|{y * down};{down};{c};0", jpeg_of(tile[..., c].copy())) for c in range(3)
                ]
    connection.executemany("INSERT INTO tiles VALUES (?, ?)", rows)
    connection.commit()
    connection.close()
    return path


def write_czi(path: Path, pixels: Pixels, mpp: float = 0.5) -> Path:
    """Zeiss CZI: blocks of zstd-compressed or plain BGR, one in two, at full and at half size."""
    side, data, entries = 256, bytearray(bytes(544)), b""
    for down in (1, 2):
        level = halved(pixels, down - 1)
        for y in range(0, level.shape[0], side):
            for x in range(0, level.shape[1], side):
                part = level[y : y + side, x : x + side, ::-1]
                packed = (x + y) // side % 2
                raw = imagecodecs.zstd_encode(part.tobytes()) if packed else part.tobytes()
                entry = struct.pack("<2siqiibb4xi", b"DV", 3, len(data), 0, 5 if packed else 0, 0, 0, 2)
                for axis, start, size in (("X", x, part.shape[1]), ("Y", y, part.shape[0])):
                    entry += struct.pack("<4siifi", axis.encode(), start * down, size * down, 0.0, size)
                entries += entry
                head = struct.pack("<iiq", 0, 0, len(raw)) + entry
                data += _segment(b"ZISRAWSUBBLOCK", head.ljust(288 - 32, b"\0") + raw)
    places = []
    for sid, body in (
        (b"ZISRAWDIRECTORY", struct.pack("<i124x", entries.count(b"DV")) + entries),
        (b"ZISRAWMETADATA", _czi_xml(pixels, mpp)),
        (b"ZISRAWATTDIR", bytes(256)),
    ):
        places.append(len(data))
        data += _segment(sid, body)
    guid = bytes(range(16))
    head = struct.pack("<iiii16s16siqqiq", 1, 0, 0, 0, guid, guid, 0, places[0], places[1], 0, places[2])
    data[:544] = _segment(b"ZISRAWFILE", head.ljust(512, b"\0"))
    path.write_bytes(bytes(data))
    return path


def _segment(sid: bytes, body: bytes) -> bytes:
    return struct.pack("<16sqq", sid, len(body), len(body)) + body


def _czi_xml(pixels: Pixels, mpp: float) -> bytes:
    height, width = pixels.shape[:2]
    distances = "".join(
        f'<Distance Id="{axis}"><Value>{mpp * 1e-6!r}</Value></Distance>' for axis in ("X", "Y")
    )
    xml = (
        "<ImageDocument><Metadata><Information><Image>"
        f"<SizeX>{width}</SizeX><SizeY>{height}</SizeY></Image></Information>"
        f"<Scaling><Items>{distances}</Items></Scaling></Metadata></ImageDocument>"
    ).encode()
    return struct.pack("<ii248x", len(xml), 0) + xml
