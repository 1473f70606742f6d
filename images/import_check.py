"""Import everything an image is for, and nothing it must not carry. Run while the image is built.

python images/import_check.py index|train|evaluate
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import subprocess
import sys

_COMMON = ("errors", "layout", "runs", "observability", "config", "records", "storage", "slides", "index")
_PACKAGES = {
    "index": (*_COMMON, "summary", "cluster", "registry"),
    "train": (*_COMMON, "patches", "models", "metrics", "training", "cluster"),
    "evaluate": (*_COMMON, "patches", "models", "metrics", "evaluation"),
}
_LIBRARIES = {
    "index": ("boto3", "cv2", "kfp", "kubernetes", "onnxruntime", "openslide", "pyarrow", "pycurl"),
    "train": ("kfp", "kubernetes", "pycurl", "timm", "torch", "torchvision"),
    "evaluate": ("h5py", "kfp", "pycurl", "scipy", "sklearn", "timm", "torch", "torchvision"),
}
# GPU libraries look for a driver when they are imported, which a build machine lacks.
_PRESENT = {"index": (), "train": ("cucim", "nvidia.nvimgcodec", "eosin.slides._jpeg_part"), "evaluate": ()}
_ABSENT = {"index": ("scipy", "tifffile", "torch", "timm", "torchvision"), "train": (), "evaluate": ()}


def check(image: str) -> list[str]:
    """What is wrong with the environment for `image`; empty where nothing is."""
    problems = [problem for name in _LIBRARIES[image] if (problem := _import(name))]
    for package in _PACKAGES[image]:
        problems += [problem for name in _modules(f"eosin.{package}") if (problem := _import(name))]
    problems += [f"{name} is missing" for name in _PRESENT[image] if not _is_there(name)]
    problems += [f"{name} must not be in this image" for name in _ABSENT[image] if _is_there(name)]
    answer = subprocess.run([sys.executable, "-m", "eosin", "--help"], capture_output=True, text=True)
    if answer.returncode:
        problems.append(f"eosin --help: {answer.stderr.strip()[-200:]}")
    return problems


def _modules(package: str) -> list[str]:
    """A package and every module under it."""
    found = importlib.import_module(package)
    below = pkgutil.walk_packages(getattr(found, "__path__", []), f"{package}.")
    return [package, *(module.name for module in below)]


def _import(name: str) -> str:
    try:
        importlib.import_module(name)
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    return ""


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in _PACKAGES:
        print(__doc__, file=sys.stderr)
        return 2
    problems = check(arguments[0])
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
