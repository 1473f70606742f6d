"""Building of the images, and their publication with the chart and the pipelines that name them by digest.

    images/publish.sh                        build for this machine (`make images`)
    images/publish.sh registry.example/lab   build, push, write images/digests.yaml (`make publish`)

Environment variables:

    BUILDER        docker (with buildx), podman or buildah; without it the first of them that works
    BASE           `debian`: a base made of Debian's packages, without a container registry; else the name of
                   an image with Python 3.11 on Debian (docker.io/library/python:3.11-slim-bookworm)
    IMAGES         which of the three: "index train evaluate"
    BUILD_OPTIONS  more options of the builder's build command, such as --isolation=chroot
    PUSH_OPTIONS   more options of its push command, such as --tls-verify=false

Only the standard library is used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
ALL_IMAGES = ("index", "train", "evaluate")
PYTHON_IMAGE = "docker.io/library/python:3.11-slim-bookworm"
DEBIAN_IMAGE = "localhost/eosin/python:3.11-bookworm"
DIST = ROOT / "dist"
DIGESTS = ROOT / "images" / "digests.yaml"
_BUILT_OF = (
    "src", "components", "pipelines", "recipes", "images", "environment/build.txt", "pyproject.toml",
    "setup.py",
)  # fmt: skip
_LARGEST_JSON_BYTES = 1 << 20
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")


class PublishError(Exception):
    """It cannot go on; the text says what to do."""


class Builder:
    """docker buildx, podman or buildah behind one face."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._options = shlex.split(os.environ.get("BUILD_OPTIONS", ""))
        self._push_options = shlex.split(os.environ.get("PUSH_OPTIONS", ""))

    def build(self, *arguments: str) -> None:
        """Build with the arguments that all three take; the image stays on this machine."""
        command = {
            "docker": ["docker", "buildx", "build", "--load"],
            "podman": ["podman", "build", "--format=docker", "--layers"],
            "buildah": ["buildah", "build", "--format=docker", "--layers"],
        }[self.name]
        run(*command, *self._options, *arguments, ".")

    def push(self, local: str, remote: str, *arguments: str) -> str:
        """Push an image that was built with `arguments`; returns its digest in the registry.

        buildx adds a bill of materials and provenance of its own.
        """
        DIST.mkdir(exist_ok=True)
        answer = DIST / f"{local.rpartition('/')[2].partition(':')[0]}.push"
        if self.name == "docker":
            more = ["--push", "--sbom=true", "--provenance=mode=max", f"--metadata-file={answer}"]
            run("docker", "buildx", "build", *self._options, *more, f"--tag={remote}", *arguments, ".")
            return str(json.loads(answer.read_text())["containerimage.digest"])
        run(self.name, "push", f"--digestfile={answer}", *self._push_options, local, remote)
        return answer.read_text().strip()

    def import_root(self, archive: Path, name: str) -> None:
        """Make an image of a root file system."""
        if self.name != "buildah":
            run(self.name, "import", str(archive), name)
            return
        container = answer_of("buildah", "from", "scratch")
        run("buildah", "add", "--quiet", container, str(archive), "/")
        run("buildah", "config", "--env=PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
        # Of one date, so that the same root is the same image and what stands on it is not built again.
        run("buildah", "commit", "--quiet", "--format=docker", "--timestamp=0", "--rm", container, name)

    def layers(self, name: str) -> dict[str, int]:
        """Each layer of an image by its digest, with its bytes on a node's disk."""
        save = [self.name, "save", name]
        if self.name == "buildah":
            save = ["buildah", "push", "--quiet", name, "docker-archive:/dev/stdout"]
        with subprocess.Popen(save, cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                found = archive_layers(process.stdout)
            except (tarfile.TarError, LookupError) as error:
                raise PublishError(
                    f"{' '.join(save[:2])} {name}: its archive cannot be read: {error}"
                ) from None
            while process.stdout.read(1 << 20):  # the archive's padding: a saver must not meet a closed pipe
                pass
        return found


def archive_layers(archive: IO[bytes]) -> dict[str, int]:
    """The layers of an image archive in Docker's format: {digest of the unpacked layer: its bytes}.

    It is read as a stream: an image of gigabytes is never written to the disk again.
    """
    sizes, links, texts = {}, {}, {}
    with tarfile.open(fileobj=archive, mode="r|") as opened:
        for member in opened:
            if member.issym():
                links[member.name] = os.path.normpath(str(Path(member.name).parent / member.linkname))
                continue
            sizes[member.name] = member.size
            # Manifest and configuration, whatever the latter is called; a layer is larger, or is no JSON.
            if member.size < _LARGEST_JSON_BYTES and (content := opened.extractfile(member)) is not None:
                texts[member.name] = content.read()
    manifest = json.loads(texts["manifest.json"])[0]
    digests = json.loads(texts[manifest["Config"]])["rootfs"]["diff_ids"]
    layers = [links.get(layer, layer) for layer in manifest["Layers"]]
    return {digest: sizes[layer] for digest, layer in zip(digests, layers, strict=True)}


def choose_builder() -> Builder:
    """The builder that BUILDER names, or the first that works here. Raises PublishError for none."""
    named = os.environ.get("BUILDER")
    if named:
        if named not in ("docker", "podman", "buildah"):
            raise PublishError(f"BUILDER is {named}: docker, podman or buildah are known")
        return Builder(named)
    for name, probes in {
        "docker": (["docker", "buildx", "version"], ["docker", "info"]),
        "podman": (["podman", "info"],),
        "buildah": (["buildah", "--version"],),
    }.items():
        if shutil.which(name) and all(succeeds(*probe) for probe in probes):
            return Builder(name)
    raise PublishError("docker with buildx, podman or buildah is needed; on Debian: apt install buildah")


class Build:
    """One build of the images: their base, and what every target is given."""

    def __init__(self, builder: Builder, version: str, revision: str) -> None:
        self.builder = builder
        self.version, self.revision = version, revision
        self.base = os.environ.get("BASE") or PYTHON_IMAGE
        if self.base == "debian":
            self.base = DEBIAN_IMAGE
            self._make_debian()

    def _make_debian(self) -> None:
        print("▸ base image of Debian's packages", flush=True)
        DIST.mkdir(exist_ok=True)
        archive = DIST / "debian.tar"
        run("sh", "images/debian.sh", str(archive))
        self.builder.import_root(archive, DEBIAN_IMAGE)
        archive.unlink()

    @contextlib.contextmanager
    def arguments(self, image: str) -> Iterator[list[str]]:
        """The arguments of one image's build. pip's settings travel as secrets, which no layer keeps."""
        with tempfile.TemporaryDirectory() as folder:
            settings, certificates = pip_settings()
            config = Path(folder) / "pip.conf"
            config.write_text(settings)
            secrets = [f"--secret=id=pip.conf,src={config}"]
            if certificates:
                secrets.append(f"--secret=id=certificates,src={certificates}")
            values = {"PYTHON_IMAGE": self.base, "VERSION": self.version, "REVISION": self.revision,
                      "SOURCES": digest_of_sources()}  # fmt: skip
            given = [f"--build-arg={key}={value}" for key, value in values.items()]
            chosen = [f"--target={image}", "--file=images/Dockerfile", "--platform=linux/amd64"]
            yield [*chosen, *given, *secrets]

    def name(self, image: str) -> str:
        """The image's name on this machine."""
        return f"localhost/eosin/{image}:{self.version}"

    def build(self, images: list[str]) -> None:
        """Build each image and print what it takes of a node's disk."""
        seen: set[str] = set()
        for image in images:
            print(f"▸ {image}", flush=True)
            with self.arguments(image) as arguments:
                self.builder.build(f"--tag={self.name(image)}", *arguments)
            layers = self.builder.layers(self.name(image))
            fresh = sum(size for digest, size in layers.items() if digest not in seen)
            print(f"  {self.name(image)}: {sum(layers.values()) / 1e6:,.0f} MB", end="")
            print(f", {fresh / 1e6:,.0f} MB more for a node that has those above" if seen else "", flush=True)
            seen |= set(layers)


def pip_settings() -> tuple[str, str]:
    """A pip.conf with what reaching the package index takes on this machine; its certificates' file or "".

    Wheels on this machine's disk and versions it holds back stay out: an image is what its lock says.
    """
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    found = re.findall(r"^(:env:|\w+)\.([\w-]+)='(.*)'$", listed, flags=re.M)
    found.sort(key=lambda row: row[0] == ":env:")  # the environment counts more than a file
    values = {key.removeprefix("default-"): value for _, key, value in found if value}
    lines = ["[global]"]
    for key in _PIP_SETTINGS:
        words = values.get(key, "").replace("\\n", " ").split()
        words = [word for word in words if not word.startswith("file:")]
        if words:
            lines.append(f"{key} = {' '.join(words)}")
    certificates = values.get("cert", "")
    if certificates:
        lines.append("cert = /run/secrets/certificates")
    return "\n".join(lines) + "\n", certificates


def digest_of_sources() -> str:
    """Of every file that eosin's own layers are made of."""
    digest = hashlib.sha256()
    for top in _BUILT_OF:
        place = ROOT / top
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and path.suffix not in (".pyc", ".so") and path != DIGESTS:
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def publish(build: Build, registry: str, images: list[str]) -> None:
    """Push the images; write their digests, a chart and copies of the pipelines that name them."""
    digests = {}
    for image in images:
        with build.arguments(image) as arguments:
            print(f"▸ push {registry}/{image}", flush=True)
            remote = f"{registry}/{image}"
            digest = build.builder.push(build.name(image), f"{remote}:{build.version}", *arguments)
        digests[image] = f"{remote}@{digest}"
    lines = [
        f"# Written by `make publish` at {build.revision} on {build.base}",
        "# The bill of materials of each lies in it: /usr/share/sbom/eosin.cdx.json",
        "images:",
        *(f"  {image}: {name}" for image, name in digests.items()),
    ]
    write(DIGESTS, "\n".join(lines) + "\n")
    print(DIGESTS.read_text(), end="")
    for path in pipelines_with_images(digests, DIST / "pipelines"):
        print(f"  {path.relative_to(ROOT)}")
    push_chart(registry, build.version, digests)
    chart = f"oci://{registry}/charts/eosin --version {build.version}"
    print(f"next: helm install eosin {chart} --namespace eosin --create-namespace")
    print(
        "      eosin submit dist/pipelines/pretrain.yaml --run s3://BUCKET/runs/NAME --slides s3://BUCKET/SLIDES"
    )


def pipelines_with_images(digests: dict[str, str], folder: Path) -> list[Path]:
    """Copies of the compiled pipelines whose image parameters have these digests as their defaults, so that
    `kfp run create -f` needs no image."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sorted((ROOT / "pipelines").glob("*.yaml")):
        text = source.read_text()
        for image, name in digests.items():
            if f"\n      {image}_image:\n" in text:  # patch sets and features need one of the three
                text = with_default(text, f"{image}_image", name)
        write(folder / source.name, text)
        written.append(folder / source.name)
    return written


def with_default(pipeline: str, parameter: str, value: str) -> str:
    """A compiled pipeline, as text, with another default of one of its own parameters."""
    head, root, tail = pipeline.partition("\nroot:\n")
    entry = re.compile(rf"^(      {parameter}:\n)((?:        .*\n)+)", flags=re.M)
    found = entry.search(tail)
    if not root or found is None:
        raise PublishError(f"a pipeline has no parameter {parameter}: make compile")
    lines = [line for line in found[2].splitlines(keepends=True)
             if not line.startswith(("        defaultValue:", "        isOptional:"))]  # fmt: skip
    body = "".join([f"        defaultValue: {value}\n", *lines, "        isOptional: true\n"])
    return head + root + tail[: found.start()] + found[1] + body + tail[found.end() :]


def push_chart(registry: str, version: str, digests: dict[str, str]) -> None:
    """Package the chart with the images in its values and push it; the repository's chart names none."""
    helm = os.environ.get("HELM", "helm")
    chart = DIST / "chart" / "eosin"
    shutil.rmtree(chart.parent, ignore_errors=True)
    shutil.copytree(ROOT / "helm" / "eosin", chart)
    values = (chart / "values.yaml").read_text()
    for image, name in digests.items():
        values, count = re.subn(rf'^  {image}: ""$', f"  {image}: {name}", values, flags=re.M)
        if count != 1:
            raise PublishError(f"helm/eosin/values.yaml has no empty images.{image}")
    (chart / "values.yaml").write_text(values)
    versions = ["--version", version, "--app-version", version]
    run(helm, "package", str(chart), *versions, "--destination", str(DIST))
    plain = ["--plain-http"] if "--tls-verify=false" in os.environ.get("PUSH_OPTIONS", "") else []
    run(helm, "push", str(DIST / f"eosin-{version}.tgz"), f"oci://{registry}/charts", *plain)


def write(path: Path, text: str) -> None:
    """Replace a file whole."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def run(*command: str) -> None:
    """Run a command in the repository's root. Raises PublishError where it fails."""
    try:
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
    except OSError as error:
        raise PublishError(f"{command[0]}: {error.strerror}") from None
    if code:
        raise PublishError(f"{' '.join(command[:3])} ended with {code}, see above")


def answer_of(*command: str) -> str:
    """What a command prints; empty where it fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def succeeds(*command: str) -> bool:
    """Whether a command ends with 0."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def main(arguments: list[str]) -> int:
    """Exit code 0: done; 2: what the user must change is on stderr."""
    registry = arguments[0].rstrip("/") if arguments else ""
    version = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.M)[0]
    images = os.environ.get("IMAGES", " ".join(ALL_IMAGES)).split()
    try:
        if unknown := set(images) - set(ALL_IMAGES):
            raise PublishError(f"IMAGES has {', '.join(unknown)}: {', '.join(ALL_IMAGES)} are known")
        builder = choose_builder()
        if registry and not shutil.which(os.environ.get("HELM", "helm")):
            raise PublishError("helm is needed to publish the chart; HELM names it")
        if registry and answer_of("git", "status", "--porcelain"):
            raise PublishError("the working tree has changes: commit them, so that the images can be traced")
        build = Build(builder, version, answer_of("git", "rev-parse", "HEAD") or "unknown")
        build.build(images)
        if registry:
            publish(build, registry, images)
    except PublishError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
