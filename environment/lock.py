"""Resolution of every package that demo, tests and images install; `make lock` runs it.

One resolution for Python 3.11 to 3.13 on every platform, cut into files with hashes:

    environment/build.txt   pip and setuptools
    environment/torch.txt   torch as PyPI has it: on Linux with CUDA and the libraries of that
    environment/demo.txt    the rest of what `make demo` needs
    environment/test.txt    what tests, linters and docs need besides
    environment/tools.txt   the package that carries helm and kubectl

and the images' requirements, for their one platform and held to the same versions. Upper bounds and their
reasons stand in pyproject.toml. Nothing is installed: resolving needs neither a GPU nor torch's wheels.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = os.environ.get("UV", str(Path(sys.executable).with_name("uv")))
OLDEST = "3.11"
_CUDA = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)$")
# What decodes on a GPU has a way on a CPU too, which the tests take.
_DECODERS = ("cucim-cu13", "nvidia-nvimgcodec-cu13")
IMAGES = {
    # idc: an open archive's index; onnx: tissue models of one's own; datasets: public sets published as
    # HDF5 or MATLAB files.
    "index": ("idc", "onnx", "kubeflow"),
    "torch": ("evaluate", "kubeflow"),  # the layer under train and evaluate
    "train": ("train", "gpu", "tensorboard", "kubeflow"),
    "evaluate": ("evaluate", "datasets", "kubeflow"),
}
"""The extras that each image installs."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "all.txt"
        compile_requirements(whole, "pyproject.toml", "--extra", "dev", "--extra", "gpu", "--universal")
        blocks = split(whole.read_text())
        demo = Path(folder) / "demo.txt"
        compile_requirements(demo, "pyproject.toml", "--extra", "demo", "--universal", "-c", str(whole))
        in_demo = split(demo.read_text())
        cuda = {name for name in blocks if _CUDA.match(name) and name not in _DECODERS}
        write("torch", {name: blocks[name] for name in cuda})
        write("demo", {name: blocks[name] for name in in_demo if name not in cuda})
        rest = {name for name in blocks if name not in in_demo and name not in cuda}
        write("test", {name: blocks[name] for name in rest})
        for name in ("build", "tools"):
            output = ROOT / "environment" / f"{name}.txt"
            compile_requirements(output, f"environment/{name}.in", "--universal", "--no-deps")
            write(name, split(output.read_text()))
        for image, extras in IMAGES.items():
            output = ROOT / "images" / f"requirements-{image}.txt"
            chosen = [word for extra in extras for word in ("--extra", extra)]
            platform = ("--python-platform", "x86_64-manylinux_2_28")
            compile_requirements(output, "pyproject.toml", *chosen, *platform, "-c", str(whole))
            print(f"images/requirements-{image}.txt: {len(split(output.read_text()))} packages")


def compile_requirements(output: Path, *arguments: str) -> None:
    """Resolve into `output`, from nothing: a version that the file already names is not preferred."""
    output.unlink(missing_ok=True)
    command = [UV, "pip", "compile", "--quiet", "--generate-hashes", "--no-emit-index-url", "--no-annotate",
               "--python-version", OLDEST, "--fork-strategy", "fewest",
               "--custom-compile-command", "make lock", "--output-file", str(output), *arguments]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)


def split(text: str) -> dict[str, str]:
    """A requirements file as {package: its lines, with marker and hashes}."""
    blocks: dict[str, str] = {}
    for name, rest in re.findall(r"^([a-z0-9][^\s=\[]*)(.*\n(?:    --hash=.*\n?)*)", text, flags=re.M):
        # Twice where no one version suits every Python; then each has its marker.
        blocks[name] = blocks.get(name, "") + name + rest
    return blocks


def write(name: str, blocks: dict[str, str]) -> None:
    """Write a file of the lock, sorted by package."""
    header = "# Written by `make lock`; the sources are pyproject.toml and environment/*.in.\n"
    path = ROOT / "environment" / f"{name}.txt"
    path.write_text(header + "".join(blocks[package] for package in sorted(blocks)))
    print(f"environment/{name}.txt: {len(blocks)} packages")


if __name__ == "__main__":
    main()
