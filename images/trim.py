"""Removal of what no image needs from a virtual environment: test suites, headers, static libraries, symbols.

python images/trim.py VENV
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

_TEST_FOLDERS = ("test", "tests", "test_files")
# Folders that bear such a name and are imported by the library itself.
_KEPT = ("torch/testing", "numpy/_core/tests", "torch/distributed/elastic/rendezvous")
_REMOVED: tuple[str, ...] = (
    "cv2/data",  # cascades of face detection
    "cv2/typing/__pycache__",
    "onnxruntime/capi/libonnxruntime.so*",  # a second copy, for programs in C
    "onnxruntime/datasets",
    "onnxruntime/quantization",
    "onnxruntime/tools",
    "onnxruntime/transformers",
    "PIL/_avif.*",
    "pillow.libs/libavif*",
    "nvidia/*/include",  # for compiling against CUDA, which nothing here does: Triton has its own header
    "nvidia/cu13/lib/*.a",
    "nvidia/**/*.a",
    "pyarrow/include",
    "pyarrow/libarrow*_flight*",  # a server of its own
    "pyarrow/_flight*",
    "pyarrow/libarrow_s3*",  # eosin.storage reads and writes buckets, Arrow only what lies in memory
    "pyarrow/_s3fs*",
    "pyarrow/libarrow_python*.so",  # three copies each, as a wheel has no links; *.so.N is what is linked to
    "pyarrow/libarrow_python*.so.*.*",
    "pyarrow/_pyarrow_cpp_tests*",
    "pyarrow/src",
    "pydicom/sr",  # codes of structured reports
    "pygments/lexers/*",  # colours of source code
    "numpy/_core/_simd.*",  # of NumPy's own tests
    "numpy/_core/include",
    "numpy/_core/lib/*.a",
    "torch/lib/*.a",
    "torch/share",
    "torch/bin/*test*",
    "[!c]*/**/*.pyi",  # for type checkers, but cuCIM, which reads its own when it is imported
    "cv2/**/*.pyi",
    "**/*.px[di]",  # for compiling against a library
    "**/*.pyx",
)
# Pictures of the web and arrays of numbers, which no slide is made of, with the libraries of those alone.
_CODECS = (
    "apng avif aec bcn bitshuffle blosc blosc2 bmp brotli bz2 ccitt deflate gif h5checksum jpegxr lerc lz4 "
    "lz4f lzf lzfse lzham lzma lzo meshopt pcodec pglz pixarlog qoi quantize rcomp rgbe snappy sperr spng "
    "sz3 szip tiff ultrahdr zfp zlibng zopfli"
)
_CODEC_LIBRARIES = (
    "aec aom avif blosc cpcodec gif gomp jpegxr jxrglue Lerc lz4 lzfse lzham lzma lzokay meshoptimizer "
    "snappy SPERR sz SZ3 tiff uhdr zfp zopfli"
)
_REMOVED += tuple(f"imagecodecs/_{name}.*" for name in _CODECS.split())
_REMOVED += tuple(f"imagecodecs.libs/lib{name}*" for name in _CODEC_LIBRARIES.split())
# Of the 400 services that the AWS client describes, an object store and the ways to its credentials.
_ALL_BUT = {"botocore/data": ("s3", "sts", "sso", "sso-oidc", "signin")}


def main(arguments: list[str]) -> int:
    """Trim the environment named on the command line; prints what was gained."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    for packages in sorted(Path(arguments[0]).glob("lib/python3.*/site-packages")):
        before = size_bytes(packages)
        trim(packages)
        print(f"trimmed {packages} from {before / 1e6:.0f} to {size_bytes(packages) / 1e6:.0f} MB")
    return 0


def trim(packages: Path) -> None:
    """Remove from a site-packages folder what running does not need. Done again, it changes nothing."""
    for pattern in _REMOVED:
        for path in packages.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if not (packages / "scipy").exists():  # it imports whatever NumPy offers
        shutil.rmtree(packages / "numpy" / "f2py", ignore_errors=True)  # for compiling Fortran
    for name, kept in _ALL_BUT.items():
        for path in (packages / name).glob("*/"):
            if path.name not in kept:
                shutil.rmtree(path)
    _keep_slides_alone(packages / "idc_index_data")
    for folder in [path for path in packages.rglob("*") if path.name in _TEST_FOLDERS and path.is_dir()]:
        within = folder.relative_to(packages).as_posix()
        if folder.exists() and not within.startswith(_KEPT):
            shutil.rmtree(folder)


def _keep_slides_alone(index: Path) -> None:
    """Of a million series of Imaging Data Commons, CT and MR most of them, the 76,300 of slides; of those
    that earlier versions had, none: a run is of one version."""
    kept = {"idc_index": [("Modality", "=", "SM")], "prior_versions_index": [("Modality", "=", "no such")]}
    for name, chosen in kept.items():
        path = index / f"{name}.parquet"
        if path.exists():
            import pyarrow.parquet as pq

            rows = pq.read_table(path, filters=chosen)
            path.unlink()  # not through a hard link, which a cache of packages may share
            pq.write_table(rows, path, compression="zstd")


def size_bytes(folder: Path) -> int:
    """Sum of the files below `folder`, each once."""
    files = (path.lstat() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return sum({(status.st_dev, status.st_ino): status.st_size for status in files}.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
