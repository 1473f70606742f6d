"""The wheel: all that an installed eosin needs, and nothing that an earlier build left."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[2]
_SOURCES = (
    "src", "components", "pipelines", "recipes", "pyproject.toml", "setup.py", "README.md", "LICENSE",
    "Makefile",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of `make wheel` in a copy of the repository, in which an older build has left a module."""
    root = tmp_path_factory.mktemp("wheel") / "repo"
    for name in _SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
            shutil.copytree(source, root / name, ignore=ignored)
        else:
            shutil.copy(source, root)
    (root / "build/lib/eosin").mkdir(parents=True)
    (root / "build/lib/eosin/gone.py").write_text("")
    (root / "environment").mkdir()
    (root / "environment/install.py").write_text("")  # the environment is this one
    venv = Path(sys.executable).parents[1]
    command = ["make", "wheel", f"PYTHON={sys.executable}", f"VENV={venv}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        command, cwd=root, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr, done.stderr
    return root / done.stdout.strip()


def test_holds_what_is_in_the_sources_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    names = {re.sub(r"\.cpython-.*\.so$", ".so", name) for name in names}
    places = {"src/eosin": "eosin"} | {
        name: f"eosin_{name}" for name in ("components", "pipelines", "recipes")
    }
    expected = {
        f"{package}/{path.relative_to(ROOT / place).as_posix()}"
        for place, package in places.items()
        for path in (ROOT / place).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".so", ".md")
    }
    assert names - {"eosin/slides/_jpeg_part.so"} == expected


def test_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (each for each in archive.namelist() if each.endswith("/METADATA"))
    metadata = HeaderParser().parsestr(archive.read(name).decode())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (metadata["Name"], metadata["Version"]) == ("eosin", project["version"])
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Requires-Python"] == ">=3.11"
    assert set(project["classifiers"]) == set(metadata.get_all("Classifier", []))
    assert {"train", "evaluate", "kubeflow", "demo"} <= set(metadata.get_all("Provides-Extra", []))
    built_for = {re.findall(r"cp(\d)(\d+)-", each)[0] for each in _cibuildwheel()["build"]}
    told = {
        tuple(each.rsplit(" ", 1)[1].split(".")) for each in project["classifiers"] if "Python ::" in each
    }
    assert built_for == told, "a wheel for every Python that the classifiers name"


def test_works_where_it_is_installed(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment over the packages of this one, without the repository in sight."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=120)
    python = venv / "bin/python"
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True, timeout=120)
    (own,) = venv.glob("lib/python3*/site-packages")
    (own / "beneath.pth").write_text(f"{Path(typer.__file__).parents[1]}\n")
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "eosin [OPTIONS] COMMAND" in run(str(venv / "bin/eosin"), "--help")
    assert "vits16-dinov2" in run(str(venv / "bin/eosin"), "recipes", "list")
    place = run(str(python), "-c", "import eosin; print(eosin.__file__)")
    assert place.startswith(str(venv))
    if any(Path(each, "jpeglib.h").exists() for each in ("/usr/include", "/usr/local/include")):
        assert run(
            str(python), "-c", "import eosin.slides._jpeg_part as module; print(module.__file__)"
        ).startswith(str(venv))


def _cibuildwheel() -> dict[str, list[str]]:
    found: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cibuildwheel"]
    return found
