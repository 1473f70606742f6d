"""Images built with buildah into a storage of their own, and run as a restricted pod runs them."""

import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from eosin import __version__

ROOT = Path(__file__).resolve().parents[2]
USER_ID = 10001
MIRROR = os.environ.get("MIRROR", "http://deb.debian.org/debian")
# The container's root is read-only and nothing but /tmp can be written. Devices, shared memory and the host's
# name as every runtime gives them; no capability, and none to be gained.
_RUN = """
set -e
root=$1; shift
echo "127.0.0.1 localhost $(uname -n)" > "$root/etc/hosts"
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for each in null zero full random urandom; do
  touch "$root/dev/$each"
  mount --bind "/dev/$each" "$root/dev/$each"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777,size=64m tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
exec chroot "$root" setpriv --reuid=10001 --regid=10001 --clear-groups --no-new-privs --bounding-set=-all \
  --inh-caps=-all env -i "$@"
"""


def missing() -> str:
    """What this machine lacks to build images on a base of Debian's packages and run them; else ""."""
    if os.geteuid() != 0:
        return "only root builds and runs images with buildah's chroot isolation"
    for tool in ("buildah", "mmdebstrap", "unshare", "setpriv"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed: apt-get install buildah mmdebstrap util-linux"
    probe = ["unshare", "--mount", "--pid", "--fork", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "this machine does not let root mount anything"
    try:
        urllib.request.urlopen(f"{MIRROR}/dists/bookworm/InRelease", timeout=5).close()
    except OSError:
        return f"{MIRROR} is not in reach: name a mirror of Debian in MIRROR"
    return ""


def _takes_overlay(folder: Path) -> bool:
    """Whether layers of an overlay can lie in `folder`."""
    parts = [folder / "probe" / name for name in ("lower", "upper", "work", "merged")]
    for part in parts:
        part.mkdir(parents=True)
    options = "lowerdir={},upperdir={},workdir={}".format(*parts[:3])
    mount = ["unshare", "--mount", "mount", "-t", "overlay", "overlay", "-o", options, str(parts[3])]
    taken = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    shutil.rmtree(folder / "probe")
    return taken


class ImageStore:
    """Images in a folder of their own, which `close` removes; other images of the machine are not touched."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # In a container the folder often lies on an overlay itself, and on that the kernel puts no other.
        driver = "overlay" if _takes_overlay(folder) else "vfs"
        config = folder / "storage.conf"
        places = f'graphroot = "{folder / "graph"}"\nrunroot = "{folder / "run"}"\n'
        config.write_text(f'[storage]\ndriver = "{driver}"\n{places}')
        self._environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(config)}

    def build(self, *images: str) -> str:
        """`make images BASE=debian` with buildah; returns what it prints."""
        settings = {"BUILDER": "buildah", "BASE": "debian", "IMAGES": " ".join(images)}
        done = subprocess.run(
            ["sh", "images/publish.sh"], cwd=ROOT, text=True, check=False,
            env={**self._environment, **settings, "BUILD_OPTIONS": "--isolation=chroot"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-8000:]
        return done.stdout

    @contextmanager
    def container(self, image: str) -> "Iterator[Container]":
        """A container of an image that was built here."""
        name = self._buildah("from", "--pull=never", f"localhost/eosin/{image}:{__version__}")
        try:
            yield Container(Path(self._buildah("mount", name)), self._variables(name))
        finally:
            self._buildah("umount", name)
            self._buildah("rm", name)

    def close(self) -> None:
        """Remove containers, images and layers."""
        self._buildah("rm", "--all")
        self._buildah("rmi", "--all", "--force")
        shutil.rmtree(self._folder / "graph")
        shutil.rmtree(self._folder / "run", ignore_errors=True)

    def _variables(self, container: str) -> list[str]:
        """The environment that the image sets: ["PATH=…", …]."""
        template = "{{range .OCIv1.Config.Env}}{{println .}}{{end}}"
        return self._buildah("inspect", "--format", template, container).split()

    def _buildah(self, *arguments: str) -> str:
        done = subprocess.run(
            ["buildah", *arguments], env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"buildah {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()


class Container:
    """A root file system of an image, and commands in it: as user 10001, on the network of this machine."""

    def __init__(self, root: Path, variables: Sequence[str]) -> None:
        self._root = root
        self._variables = variables

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, timeout_s: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, each in a fresh /tmp."""
        given = [*self._variables, *(f"{name}={value}" for name, value in (env or {}).items())]
        alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _RUN, "sh"]
        return subprocess.run(
            [*alone, str(self._root), *given, *command], capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )  # fmt: skip
