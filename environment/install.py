"""Making of the virtual environment from the lock, and of a whole one where an install was interrupted.

    python3 environment/install.py demo|test|newest [--venv .venv]

`demo` is what `make demo` needs, `test` adds what tests and linters need, `newest` takes every package at its
newest version in place of the locked one (`make test-newest`). Only the standard library is used: nothing is
installed when this runs. Where all is there already it ends at once.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
OLDEST = (3, 11)
CPU_INDEX_URL = os.environ.get("EOSIN_TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
"""Builds of torch without CUDA, which PyPI has for macOS and Windows only."""
REACH_TIMEOUT_S = 5.0
_C_FILES = ("src/eosin/slides/_jpeg_part.c", "src/eosin/slides/_jpeg_entropy.h")
_PROJECT_FILES = ("pyproject.toml", "setup.py", *_C_FILES)


class InstallError(Exception):
    """The environment cannot be made; the text says what to do."""


def main(arguments: list[str]) -> int:
    """Exit code 0: the environment is whole; 2: what the user must change is on stderr; 130: interrupted."""
    parser = argparse.ArgumentParser(description="Make the virtual environment from the lock.")
    parser.add_argument("what", choices=("demo", "test", "newest"))
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    chosen = parser.parse_args(arguments)
    try:
        if sys.version_info < OLDEST:
            raise InstallError(
                f"{sys.executable} is Python {platform.python_version()}; eosin needs 3.11 or newer"
            )
        with _alone(chosen.venv):
            Environment(chosen.venv.absolute()).bring_to(chosen.what)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command begins anew", file=sys.stderr)
        return 130
    return 0


class PipFailed(InstallError):
    """pip ended by itself with an error, and has left every package as it was."""


class Environment:
    """A virtual environment with a record of what is whole in it.

    `.begun` lies in it while anything is being installed. pip replaces packages file by file and takes a
    half-written one for installed, so an environment in which that marker was left is thrown away.
    """

    def __init__(self, venv: Path) -> None:
        self.venv = venv
        self.python = venv / "bin" / "python"
        self._begun = venv / ".begun"
        self._record = venv / "eosin-environment.json"

    def bring_to(self, what: str) -> None:
        """Install what `what` needs and is not there."""
        if self._is_somebodys(what):
            print(f"▸ {self.venv.name} was not made by this command: it is used as it is", flush=True)
            return
        wanted = _wanted(what)
        problem = self.problem()
        if problem:
            if self.venv.is_symlink() or not self.venv.is_dir():
                raise InstallError(f"{self.venv} is not a folder that may be replaced: remove it")
            print(f"▸ {self.venv.name} {problem}: it is made anew", flush=True)
            shutil.rmtree(self.venv)
        missing = {part: digest for part, digest in wanted.items() if self.record().get(part) != digest}
        if not missing:
            return
        self.venv.mkdir(parents=True, exist_ok=True)
        for part in missing:
            self._begun.touch()
            try:
                getattr(self, f"_install_{part}")()
            except PipFailed:
                self._begun.unlink()
                raise
            self._record.write_text(json.dumps({**self.record(), part: missing[part]}, indent=1) + "\n")
            self._begun.unlink()

    def _is_somebodys(self, what: str) -> bool:
        """Whether this is an environment made by hand that has what is needed."""
        needed = "import eosin, kfp, torch" if what == "demo" else "import eosin, kfp, mypy, pytest, torch"
        return (
            not self._begun.exists() and not self._record.exists() and what != "newest" and self._runs(needed)
        )

    def problem(self) -> str:
        """Why this environment cannot be used or added to; empty where it can, or where there is none."""
        if not self.venv.exists() and not self.venv.is_symlink():
            return ""
        if self._begun.exists():
            return "was left half made"
        if not self._runs("import sys"):
            return "has no Python that starts"
        if not self._runs("import pip"):
            return "has no pip"
        packages = self._site_packages()
        if any(packages.glob("~*")) or any(not (d / "RECORD").exists() for d in packages.glob("*.dist-info")):
            return "holds a package that is half there"
        return ""

    def record(self) -> dict[str, str]:
        """Each part that is installed whole, with the digest of what it was installed from."""
        try:
            found = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def pip(self, *arguments: str, check: bool = True, **environment: str) -> bool:
        """Run pip in the environment, by the user's own settings of it; whether it succeeded."""
        command = [str(self.python), "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
        settings = {**os.environ, "PIP_USER": "0", "PIP_ROOT_USER_ACTION": "ignore", **environment}
        code = subprocess.run(command, cwd=ROOT, env=settings, check=False).returncode
        if code < 0:
            raise InstallError(f"pip was ended by signal {-code}; the same command begins anew")
        if check and code:
            raise PipFailed(f"pip failed, see above; the same command goes on. It was: {' '.join(command)}")
        return code == 0

    def _install_build(self) -> None:
        """An environment with the pip and the setuptools of the lock."""
        requirements = ["--require-hashes", "-r", str(HERE / "build.txt")]
        if self.python.exists():
            self.pip("install", *requirements)
            return
        print(f"▸ make {self.venv.name} with Python {platform.python_version()}", flush=True)
        with_pip = _has_module("ensurepip")
        command = [sys.executable, "-m", "venv", *([] if with_pip else ["--without-pip"]), str(self.venv)]
        if subprocess.run(command, check=False).returncode:
            raise InstallError("Python's venv module does not work here; on Debian: apt install python3-venv")
        if with_pip:
            self.pip("install", *requirements)
        else:
            with tempfile.TemporaryDirectory() as folder:
                wheel = fetch_pip(Path(folder))
                command = [str(self.python), f"{wheel}/pip", "install", "--quiet", *requirements]
                if subprocess.run(command, check=False).returncode:
                    raise InstallError("pip could not be installed; on Debian: apt install python3-venv")

    def _install_torch(self) -> None:
        torch, torchvision = _locked("torch.txt", "torch"), _locked("torch.txt", "torchvision")
        if sys.platform != "linux" or has_nvidia_gpu():
            self._install_locked("torch.txt", "torch")
            return
        print(f"▸ install torch {torch} without CUDA: this machine has no NVIDIA GPU", flush=True)
        more = ["--extra-index-url", CPU_INDEX_URL] if _is_reachable(CPU_INDEX_URL) else []
        wanted = [f"torch=={torch}+cpu", f"torchvision=={torchvision}"]
        if not self.pip("install", "--no-deps", "--only-binary=:all:", *more, *wanted, check=False):
            print(
                f"No build of torch {torch} without CUDA is in reach: {CPU_INDEX_URL} does not answer,\n"
                "and neither pip's index nor its find-links has one. PyPI has for Linux only that with\n"
                "CUDA, which works without a GPU too: 3 GB to download, 5 GB on disk. To spare them, stop\n"
                "here and name a mirror of that index, EOSIN_TORCH_CPU_INDEX=https://…, or put wheels of\n"
                f"torch {torch}+cpu and torchvision {torchvision} where pip's find-links looks.",
                flush=True,
            )
            self._install_locked("torch.txt", "torch with CUDA")

    def _install_demo(self) -> None:
        self._install_locked("demo.txt", "what eosin needs")

    def _install_test(self) -> None:
        self._install_locked("test.txt", "what tests and linters need")

    def _install_tools(self) -> None:
        fetch = [str(self.python), str(ROOT / "tests" / "support" / "tools.py")]
        if subprocess.run(fetch, cwd=ROOT, check=False).returncode:
            print("helm and kubectl could not be fetched: the tests that need them will skip", flush=True)

    def _install_eosin(self) -> None:
        print("▸ install eosin itself, from this folder", flush=True)
        environment = {"PYTHONWARNINGS": "ignore"}  # setuptools' advice about editable installs
        self.pip("install", "--no-deps", "--no-build-isolation", "--no-index", "-e", str(ROOT), **environment)

    def _install_newest(self) -> None:
        """Every package of `test` at its newest version; torch too where its CPU index is in reach."""
        print("▸ bring every package to its newest version", flush=True)
        if has_nvidia_gpu() or sys.platform != "linux":
            self.pip("install", "--upgrade", "torch", "torchvision")
        elif _is_reachable(CPU_INDEX_URL):
            self.pip(
                "install", "--upgrade", "--no-deps", "--index-url", CPU_INDEX_URL, "torch", "torchvision"
            )
        else:
            print(f"  torch stays as locked: {CPU_INDEX_URL} does not answer", flush=True)
        kept = [f"{name}=={self._version(name)}" for name in ("torch", "torchvision")]
        unbounded = [name for name in newest_requirements() if not name.startswith("torch")]
        self.pip("install", "--upgrade", "--upgrade-strategy=eager", *unbounded, *kept)
        # kfp holds the Kubernetes client back; what breaks with the newest is to be seen here. It asks for
        # packages that the older one does not, and pip only warns that kfp wants another.
        self.pip("install", "--upgrade", "kubernetes")

    def _install_locked(self, name: str, said: str) -> None:
        print(f"▸ install {said} (environment/{name})", flush=True)
        # A few packages have no wheel; they are built with the setuptools of the lock, not with today's.
        self.pip("install", "--no-deps", "--no-build-isolation", "--require-hashes", "-r", str(HERE / name))

    def _runs(self, code: str) -> bool:
        try:
            done = subprocess.run(
                [str(self.python), "-c", code], capture_output=True, timeout=60, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def _site_packages(self) -> Path:
        found = sorted(self.venv.glob("lib/python3.*/site-packages"))
        return found[0] if found else self.venv / "lib"

    def _version(self, name: str) -> str:
        code = f"import importlib.metadata; print(importlib.metadata.version({name!r}))"
        return subprocess.run([str(self.python), "-c", code], capture_output=True, text=True).stdout.strip()


def newest_requirements() -> list[str]:
    """What pyproject.toml asks for in `dev`, without its upper bounds: ["boto3>=1.36", …]."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    found: list[str] = list(project["dependencies"])
    pending = ["dev"]
    while pending:
        for requirement in extras[pending.pop()]:
            own = re.fullmatch(r"eosin\[(.+)\]", requirement)
            if own:
                pending += own[1].split(",")
            else:
                found.append(requirement)
    bounds_and_marker = (requirement.partition(";") for requirement in found)
    return sorted(
        {re.sub(r",?\s*<=?[^,]+", "", bounds) + sep + marker for bounds, sep, marker in bounds_and_marker}
    )


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver with a device is on this machine."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/proc/driver/nvidia/version").exists()


def fetch_pip(folder: Path) -> Path:
    """Download the locked wheel of pip into `folder` from the package index that pip would use, and check its
    digest: for a Python without ensurepip, as Debian's is without python3-venv. Raises InstallError."""
    version = _locked("build.txt", "pip")
    name = f"pip-{version}-py3-none-any.whl"
    index_url = _pip_setting("index-url") or "https://pypi.org/simple"
    page_url = f"{index_url.rstrip('/')}/pip/"
    hint = "on Debian `apt install python3-venv` brings pip another way"
    try:
        page = _download(page_url).decode()
        link = re.search(rf'href="([^"#]*{re.escape(name)})[#"]', page)
        if link is None:
            raise InstallError(f"{page_url} has no {name}; {hint}")
        content = _download(urllib.parse.urljoin(page_url, link[1]))
    except OSError as error:
        raise InstallError(f"{page_url}: {error}; {hint}") from None
    if hashlib.sha256(content).hexdigest() not in (HERE / "build.txt").read_text():
        raise InstallError(f"{name} of {index_url} is not the file that environment/build.txt names")
    wheel = folder / name
    wheel.write_bytes(content)
    return wheel


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60, context=_trusted()) as answer:
        content: bytes = answer.read()
    return content


def _trusted() -> ssl.SSLContext:
    """The authorities that pip trusts here."""
    return ssl.create_default_context(cafile=_pip_setting("cert") or None)


def _pip_setting(key: str) -> str:
    """A setting of pip from the environment or its configuration files; empty where there is none."""
    value = os.environ.get(f"PIP_{key.upper().replace('-', '_')}")
    if value:
        return value
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf", home / ".pip/pip.conf", config / "pip/pip.conf")
    parser = configparser.RawConfigParser()
    with contextlib.suppress(configparser.Error, UnicodeDecodeError):
        parser.read([*files, os.environ.get("PIP_CONFIG_FILE") or os.devnull])
    return parser.get("global", key, fallback="").strip()


def _is_reachable(url: str) -> bool:
    """Whether a server answers within seconds; pip would try for minutes."""
    try:
        page = f"{url.rstrip('/')}/torch/"
        with urllib.request.urlopen(page, timeout=REACH_TIMEOUT_S, context=_trusted()):
            return True
    except (OSError, ValueError):
        return False


def _has_module(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def _locked(file: str, name: str) -> str:
    """The version of a package in a file of the lock."""
    found = re.search(rf"^{re.escape(name)}==([^\s;\\]+)", (HERE / file).read_text(), flags=re.M)
    if found is None:
        raise InstallError(f"environment/{file} has no {name}: make lock")
    return found[1]


def _wanted(what: str) -> dict[str, str]:
    """The parts of an environment in the order of their installation, each with the digest of its sources."""
    files: dict[str, tuple[str, ...]] = {
        "build": ("environment/build.txt",),
        "torch": ("environment/torch.txt",),
        "demo": ("environment/demo.txt",),
        "eosin": _PROJECT_FILES,
    }
    if what != "demo":
        files = {
            **files,
            "test": ("environment/test.txt",),
            "tools": ("environment/tools.txt", "tests/support/tools.py"),
        }
    wanted = {part: _digest(names) for part, names in files.items()}
    if what == "newest":
        import datetime

        wanted["newest"] = datetime.date.today().isoformat()
    return wanted


def _digest(names: tuple[str, ...]) -> str:
    return hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in names)).hexdigest()


@contextlib.contextmanager
def _alone(venv: Path) -> Iterator[None]:
    """One install of an environment at a time: `make demo` and `make test` may be started side by side."""
    venv.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{venv}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
