"""Replacement of libraries that OpenCV's wheel is linked to and eosin never enters: FFmpeg, OpenBLAS, AV1.

    python images/stubs.py VENV

OpenCV does not load without them, but only video files, solvers of linear equations and AVIF pictures call
them: 80 MB of the 150 that the wheel takes. Each becomes a library of the same name with the same functions,
which say that they are not in this image and abort. Needs a C compiler and binutils; done again, it changes
nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

_LIBRARIES = "opencv_python_headless.libs"
_REPLACED = ("libopenblas", "libavcodec", "libavformat", "libavutil", "libswscale", "libaom")
_STUB_BYTES = 100_000
"""A stub is smaller, what it replaces is not."""
_C = """
extern void abort(void);
extern long write(int, const void *, unsigned long);
#define STUB(name) void name(void) { \\
  static const char text[] = #name ": not in this image, see images/stubs.py\\n"; \\
  write(2, text, sizeof text - 1); abort(); }
"""


def main(arguments: list[str]) -> int:
    """Replace the libraries in the environment named on the command line; prints what was gained."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    for packages in sorted(Path(arguments[0]).glob("lib/python3.*/site-packages")):
        print(f"stubs save {replace_libraries(packages) / 1e6:.0f} MB of OpenCV")
    return 0


def replace_libraries(packages: Path) -> int:
    """Put stubs into a site-packages folder and remove what only the replaced needed: the bytes gained."""
    folder, extension = packages / _LIBRARIES, next(packages.glob("cv2/cv2*.so"))
    before = sorted(folder.iterdir())
    size_bytes = sum(path.stat().st_size for path in before)
    replaced = [path for path in before
                if path.name.startswith(_REPLACED) and path.stat().st_size > _STUB_BYTES]  # fmt: skip
    callers = [extension, *(path for path in before if path not in replaced)]
    called = {symbol for path in callers for symbol in _symbols(path, "--undefined-only")}
    for path in replaced:
        defined = {symbol.partition("@")[0] for symbol in _symbols(path, "--defined-only")}
        _build_stub(path, sorted(symbol for symbol in called if symbol.partition("@")[0] in defined))
    reached, unread = {extension}, [extension]
    while unread:
        found = {folder / name for name in _needed(unread.pop())} & set(before) - reached
        reached |= found
        unread += found
    for path in set(before) - reached:
        path.unlink()
    return size_bytes - sum(path.stat().st_size for path in folder.iterdir())


def _build_stub(path: Path, symbols: Sequence[str]) -> None:
    """Make `path` a library of these functions, `name` or `name@VERSION`."""
    versions: dict[str, list[str]] = {}
    for symbol in symbols:
        name, _, version = symbol.partition("@")
        versions.setdefault(version, []).append(name)
    with tempfile.TemporaryDirectory() as folder:
        source, script, made = (Path(folder) / name for name in ("stub.c", "stub.map", "stub.so"))
        source.write_text(_C + "".join(f"STUB({symbol.partition('@')[0]})\n" for symbol in symbols))
        script.write_text("".join(f"{version} {{ global: {'; '.join(names)}; }};\n"
                                  for version, names in versions.items()))  # fmt: skip
        run("gcc", "-shared", "-fPIC", "-Os", "-s", "-fno-builtin", f"-Wl,-soname,{path.name}",
            f"-Wl,--version-script={script}", "-o", str(made), str(source))  # fmt: skip
        path.unlink()  # not through a hard link, which a cache of packages may share
        shutil.copy(made, path)


def _symbols(path: Path, which: str) -> set[str]:
    """Dynamic symbols of a library, as `name` or `name@VERSION`."""
    lines = run("nm", "--dynamic", "--with-symbol-versions", which, str(path)).splitlines()
    return {line.split()[-1].replace("@@", "@") for line in lines}


def _needed(path: Path) -> list[str]:
    """The libraries that a library is linked to, by their names."""
    return re.findall(r"\(NEEDED\).*\[(.*)\]", run("readelf", "--dynamic", "--wide", str(path)))


def run(*command: str) -> str:
    """What a command prints; raises CalledProcessError where it fails."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
