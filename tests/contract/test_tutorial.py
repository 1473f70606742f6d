"""What the cluster tutorial tells people to type is what eosin accepts."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from eosin.cluster.defaults import CONFIG_MAP, KEY, with_defaults
from eosin.cluster.jobset import render_jobset
from eosin.config import load_config
from eosin.config.cluster import ClusterConfig
from eosin.kubeflow.parameters import arguments_of, compiled_pipeline
from eosin.kubeflow.task_pods import place, read_pods
from tests.support.kubeflow import published_pipeline
from tests.support.tools import run

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "docs/how-to/cluster.md").read_text()
OVERLAYS = ("eks-spot", "gke", "on-prem")


def commands(verb: str) -> list[list[str]]:
    """The arguments of every `eosin VERB` in a block of the tutorial, continued lines joined."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", TUTORIAL, flags=re.S)).replace("\\\n", " ")
    blocks = re.sub(r"\$\(.*\)", "", blocks)
    return [shlex.split(line)[2:] for line in blocks.splitlines() if line.startswith(f"eosin {verb} ")]


def values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(arguments) if name == option]


def preset_of(overlay: Path) -> ClusterConfig:
    """What the chart presets for runs with the values of an overlay."""
    images = [f"--set=images.{name}=reg/i:1" for name in ("index", "train", "evaluate")]
    done = run("helm", "template", "eosin", str(ROOT / "helm/eosin"), "--values", str(overlay), *images)
    assert done.returncode == 0, done.stderr
    (text,) = [
        each["data"][KEY] for each in yaml.safe_load_all(done.stdout)
        if each and each["kind"] == "ConfigMap" and each["metadata"]["name"] == CONFIG_MAP
    ]  # fmt: skip
    return load_config(yaml.safe_dump({"cluster": yaml.safe_load(text)})).cluster


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_first_run_fits_the_pools_that_an_overlay_presets(overlay: str) -> None:
    first = commands("submit")[0]
    recipe = (ROOT / "recipes" / f"{values(first, '--recipe')[0]}.yaml").read_text()
    config = load_config(recipe, overrides=values(first, "--set"))
    site = preset_of(ROOT / "manifests/overlays" / overlay / "values.yaml")
    placed = config.model_copy(update={"cluster": with_defaults(config.cluster, site)})
    jobset = render_jobset(placed, values(first, "--run")[0].replace("BUCKET", "b"), image="i")
    assert [job["name"] for job in jobset["spec"]["replicatedJobs"]] == ["rdzv", "anchor"]
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "eosin"


def test_every_submission_shown_is_one_that_the_pipeline_takes() -> None:
    shown = commands("submit")
    assert len(shown) >= 2
    for arguments in shown:
        shown_file = Path(arguments[0])
        assert shown_file.parent == Path("dist/pipelines"), "the copy that `make publish` writes"
        path = published_pipeline(shown_file.stem)
        arguments_of(path, {"run": values(arguments, "--run")[0]}, values(arguments, "--param"))
        place(list(yaml.safe_load_all(path.read_text())), read_pods(values(arguments, "--pod")))


def test_the_file_of_pods_shown_is_one_that_is_read(tmp_path: Path) -> None:
    (text,) = [
        block for block in re.findall(r"```yaml\n(.*?)```", TUTORIAL, flags=re.S) if "decode:" in block
    ]
    file = tmp_path / "pods.yaml"
    file.write_text(text)
    pods = read_pods((), file)
    place(list(yaml.safe_load_all(compiled_pipeline("pretrain").read_text())), pods)
    assert pods.keys() == {"evaluate", "decode", "train"}
