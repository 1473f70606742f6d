"""The environment that `make` builds: locked whole, healed from every stage of an interrupted install."""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from environment import install as installer

ROOT = Path(__file__).resolve().parents[2]
FILES_A_WHEEL = 500
FILES = ("build", "torch", "demo", "test", "tools")
_REQUIREMENT = re.compile(r"^([a-z0-9][^\s=\[]*)==([^\s;\\]+)(.*)\n((?:    --hash=.*\n)*)", re.M)


def locked(name: str) -> dict[str, str]:
    text = (ROOT / "environment" / f"{name}.txt").read_text()
    return {package: version for package, version, _, _ in _REQUIREMENT.findall(text)}


def normal(requirement: str) -> str:
    return re.sub(r"[._]", "-", re.split(r"[\[<>=~!; ]", requirement)[0].lower())


@pytest.mark.parametrize("name", FILES)
def test_every_locked_package_has_one_version_and_hashes(name: str) -> None:
    text = (ROOT / "environment" / f"{name}.txt").read_text()
    found = _REQUIREMENT.findall(text)
    assert found and all(hashes for *_, hashes in found)
    assert len(found) == len(re.findall(r"^[a-z0-9]", text, flags=re.M))
    assert "://" not in text


def test_lock_covers_what_pyproject_asks_for() -> None:
    newest = installer.newest_requirements()
    have = {name for file in FILES for name in locked(file)}
    missing = {normal(requirement) for requirement in newest} - have
    assert not missing, f"the lock lacks {missing}: make lock"
    assert not any("<" in requirement.partition(";")[0] for requirement in newest)


def test_locked_versions_are_within_the_bounds_of_pyproject() -> None:
    packaging = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    versions = {**locked("torch"), **locked("demo"), **locked("test"), **locked("build")}
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    for line in (*project["dependencies"], *extras):
        wanted = packaging.Requirement(line)
        if wanted.name not in ("eosin", "mlflow-skinny"):  # why the latter is not locked: pyproject.toml
            assert wanted.specifier.contains(versions[normal(wanted.name)]), f"{line}: make lock"


def test_nothing_of_cuda_is_installed_where_torch_has_none() -> None:
    """torch.txt is left out on a machine without a GPU; the other files must not bring CUDA in again."""
    others = {**locked("demo"), **locked("test")}
    assert [name for name in others if name.startswith(("cuda", "nvidia", "cupy", "triton"))] == [
        "nvidia-nvimgcodec-cu13"
    ]
    assert {"torch", "torchvision", "triton", "nvidia-cudnn-cu13"} <= set(locked("torch"))


def test_every_upper_bound_stands_in_pyproject_with_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    bounded = [n for n, line in enumerate(lines) if re.search(r'"[\w.-]+(\[[^]]*\])?[^"]*<=?\d', line)]
    assert bounded
    for number in bounded:
        assert lines[number - 1].startswith("#"), f"{lines[number]} has no reason above it"
    for path in (ROOT / "environment").glob("*.in"):
        assert "<" not in re.sub(r"#.*", "", path.read_text()), f"{path.name} has a bound of its own"


def wheel(folder: Path, name: str, version: str) -> str:
    """A wheel with one package of many files; returns its requirement with its hash."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": "WHOLE = 1\n",
        **{f"{name}/part{n}.py": "\n" for n in range(FILES_A_WHEEL)},
    }
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    records = []
    for key, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        records.append(f"{key},sha256={digest},{len(text)}")
    files[f"{info}/RECORD"] = "\n".join([*records, f"{info}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        for key, text in files.items():
            archive.writestr(key, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project with the same install.py, whose packages are wheels in a folder."""
    root, wheels = tmp_path / "repo", tmp_path / "wheels"
    for folder in (root / "environment", root / "tests" / "support", root / "src/eosin/slides", wheels):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "environment" / "install.py", root / "environment")
    torch, torchvision = wheel(wheels, "torch", "2.0+cpu"), wheel(wheels, "torchvision", "2.0")
    lock = {"build": "", "torch": torch.replace("+cpu", "") + torchvision, "tools": ""}
    lock |= {"demo": wheel(wheels, "needed", "1.0"), "test": wheel(wheels, "checked", "1.0")}
    for name, text in lock.items():
        (root / "environment" / f"{name}.txt").write_text(text)
    (root / "tests/support/tools.py").write_text("print('fetched')\n")
    for name in ("_jpeg_part.c", "_jpeg_entropy.h"):
        (root / "src/eosin/slides" / name).write_text("")
    (root / "setup.py").write_text("")
    # Without a build backend's packages, a file named as pip accepts it is enough to stand for the project.
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "eosin"\nversion = "0"\n'
    )
    made = wheel(tmp_path, "eosin", "0").split()[0].replace("==", "-") + "-py3-none-any.whl"
    (root / "backend.py").write_text(
        "import shutil\n"
        "def build_editable(folder, config_settings=None, metadata_directory=None):\n"
        f"    shutil.copy({str(tmp_path / made)!r}, folder)\n    return {made!r}\n"
    )
    return root


def command(root: Path, what: str = "demo") -> tuple[list[str], dict[str, str]]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment |= {
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(root.parent / "wheels"), "PIP_CONFIG_FILE": os.devnull,
        "EOSIN_TORCH_CPU_INDEX": "http://127.0.0.1:9",
    }  # fmt: skip
    return [sys.executable, str(root / "environment/install.py"), what], environment


def install(root: Path, what: str = "demo") -> subprocess.CompletedProcess[str]:
    line, environment = command(root, what)
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)


def is_whole(root: Path, *modules: str) -> bool:
    code = "".join(f"import {name}; assert {name}.WHOLE\n" for name in ("torch", "needed", "eosin", *modules))
    done = subprocess.run([root / ".venv/bin/python", "-c", code], capture_output=True, text=True)
    files = [*(root / ".venv").glob("lib/python3*/site-packages/needed/part*.py")]
    return done.returncode == 0 and len(files) == FILES_A_WHEEL


_no_gpu = pytest.mark.skipif(installer.has_nvidia_gpu(), reason="this machine has an NVIDIA GPU")


@_no_gpu
def test_installs_once_and_then_adds(checkout: Path) -> None:
    first = install(checkout)
    assert (first.returncode, is_whole(checkout)) == (0, True), first.stdout + first.stderr
    assert "without CUDA" in first.stdout
    again = install(checkout)
    assert (again.returncode, again.stdout) == (0, "")
    more = install(checkout, "test")
    assert (more.returncode, is_whole(checkout, "checked")) == (0, True), more.stderr
    assert "torch" not in more.stdout and "fetched" in more.stdout


@_no_gpu
def test_environment_made_by_hand_is_left_alone(checkout: Path) -> None:
    assert install(checkout).returncode == 0
    (packages,) = (checkout / ".venv").glob("lib/python3*/site-packages")
    (packages / "kfp.py").write_text("")
    (checkout / ".venv/eosin-environment.json").unlink()
    done = install(checkout)
    assert done.returncode == 0 and "used as it is" in done.stdout
    assert not (checkout / ".venv/eosin-environment.json").exists()


STAGES = {
    "before Python is in it": ".begun",
    "before pip is in it": "bin/python",
    "inside pip itself": "lib/python3*/site-packages/pip/_vendor",
    "inside the first package": "lib/python3*/site-packages/torch/__init__.py",
    "inside the second package": "lib/python3*/site-packages/needed/__init__.py",
}


_often = ("before pip is in it", "inside the second package")


@_no_gpu
@pytest.mark.parametrize(
    ("stage", "signal_number"),
    [
        *(
            pytest.param(stage, signal.SIGKILL, marks=() if stage in _often else pytest.mark.long)
            for stage in STAGES
        ),
        pytest.param(_often[1], signal.SIGINT, marks=pytest.mark.long),
    ],
)
def test_interrupted_install_is_healed(checkout: Path, stage: str, signal_number: int) -> None:
    line, environment = command(checkout)
    process = subprocess.Popen(
        line, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 200
    while not any((checkout / ".venv").glob(STAGES[stage])) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal_number)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None), "it ended before it could be interrupted"
    healed = install(checkout)
    assert (healed.returncode, is_whole(checkout)) == (0, True), healed.stdout + healed.stderr


@_no_gpu
@pytest.mark.parametrize(
    "damage",
    [
        "no pip",
        "half a package",
        pytest.param("python gone", marks=pytest.mark.long),
        pytest.param("record torn", marks=pytest.mark.long),
    ],
)
def test_damaged_environment_is_healed(checkout: Path, damage: str) -> None:
    if damage == "no pip":  # what `python3 -m venv` leaves on Debian without python3-venv
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    else:
        assert install(checkout).returncode == 0
        (packages,) = (checkout / ".venv").glob("lib/python3*/site-packages")
    if damage == "python gone":  # the system's Python was upgraded
        (checkout / ".venv/bin/python").unlink()
        (checkout / ".venv/bin/python").symlink_to("/usr/bin/python3.0")
    if damage == "half a package":
        (packages / "needed-1.0.dist-info/RECORD").unlink()
    if damage == "record torn":
        (checkout / ".venv/eosin-environment.json").write_text("{")
    healed = install(checkout)
    assert (healed.returncode, is_whole(checkout)) == (0, True), healed.stdout + healed.stderr


@_no_gpu
def test_refused_download_says_so_and_the_next_command_goes_on(checkout: Path) -> None:
    lock = checkout / "environment/demo.txt"
    right = lock.read_text()
    lock.write_text(re.sub(r"sha256:..", "sha256:00", right))
    refused = install(checkout)
    assert refused.returncode == 2 and "DO NOT MATCH THE HASHES" in refused.stderr.upper()
    lock.write_text(right)
    needed = checkout.parent / "wheels/needed-1.0-py3-none-any.whl"
    needed.rename(needed.with_suffix(".away"))
    failed = install(checkout)
    assert failed.returncode == 2 and "the same command goes on" in failed.stderr
    needed.with_suffix(".away").rename(needed)
    done = install(checkout)
    assert (done.returncode, is_whole(checkout)) == (0, True)
    assert "install torch" not in done.stdout, "what was whole is not installed again"


@_no_gpu
def test_torch_with_cuda_is_taken_only_where_no_other_is_in_reach(checkout: Path) -> None:
    wheels = checkout.parent / "wheels"
    (wheels / "torch-2.0+cpu-py3-none-any.whl").unlink()
    line = wheel(wheels, "torch", "2.0")
    lock = checkout / "environment/torch.txt"
    lock.write_text(line + next(row for row in lock.read_text().splitlines(True) if "torchvision" in row))
    done = install(checkout)
    assert (done.returncode, is_whole(checkout)) == (0, True), done.stderr
    assert "No build of torch 2.0 without CUDA is in reach" in done.stdout


def test_pip_without_ensurepip_is_the_locked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's Python has no ensurepip without python3-venv: pip then comes from the package index."""
    site = tmp_path / "pip"
    site.mkdir()
    content = b"the wheel of pip"
    (tmp_path / "environment").mkdir()
    (tmp_path / "environment/build.txt").write_text(
        f"pip==26.3 \\\n    --hash=sha256:{hashlib.sha256(content).hexdigest()}\n"
    )
    monkeypatch.setattr(installer, "HERE", tmp_path / "environment")
    name = "pip-26.3-py3-none-any.whl"
    pages = {
        "http://index.example/simple/pip/": f'<a href="../../files/{name}#sha256=00">{name}</a>'.encode(),
        f"http://index.example/files/{name}": content,
    }
    monkeypatch.setattr(installer, "_download", pages.__getitem__)
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.example/simple/")
    assert installer.fetch_pip(tmp_path).read_bytes() == content
    pages[f"http://index.example/files/{name}"] = b"another"
    with pytest.raises(installer.InstallError, match="is not the file"):
        installer.fetch_pip(tmp_path)


def test_record_is_json(tmp_path: Path) -> None:
    environment = installer.Environment(tmp_path)
    assert environment.record() == {}
    (tmp_path / "eosin-environment.json").write_text(json.dumps({"demo": "x"}))
    assert environment.record() == {"demo": "x"}
