"""Models from elsewhere: weights in a file, weights on the hub, and weights of something else."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eosin.errors import UserError
from eosin.evaluation.embeddings.forward import Forward
from eosin.evaluation.evaluate import evaluate
from eosin.models.arch import import_timm
from eosin.models.timm_model import load_timm_file
from tests.support.evaluation import make_config, make_run, quiet_log, write_folder

ARCH = "test_vit"


def _model(seed: int = 1, arch: str = ARCH) -> Any:
    torch.manual_seed(seed)
    return import_timm().create_model(arch, num_classes=0).eval()


def _save(model: Any, path: Path, name: Callable[[str], str] = lambda key: key, **more: torch.Tensor) -> str:
    save_file({**{name(key): value.contiguous() for key, value in model.state_dict().items()}, **more}, path)
    return f"file://{path}"


@pytest.mark.parametrize("prefix", ["", "module.", "teacher.backbone."])
def test_a_file_gives_the_network_it_was_saved_from(prefix: str, tmp_path: Path) -> None:
    model = _model()
    head = torch.zeros(3, model.num_features)
    uri = _save(model, tmp_path / "w.safetensors", lambda key: prefix + key, **{f"{prefix}head.weight": head})
    loaded, card = load_timm_file(ARCH, uri)
    images = torch.randn(2, 3, card.img_px, card.img_px, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), model(images))
    assert card.num_features == model.num_features
    assert len(card.weights_sha256) == 64


def test_a_network_sees_images_of_another_size(tmp_path: Path) -> None:
    module, card = load_timm_file(ARCH, _save(_model(), tmp_path / "w.safetensors"))
    pixels = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    other = card.model_copy(update={"img_px": 64})
    assert Forward(module, other)(pixels).shape == (1, card.num_features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if "blocks.1." not in k}, "blocks.1.*is missing"),
        (lambda w: w | {"blocks.99.norm1.weight": torch.zeros(8)}, r"blocks.99.norm1.weight is too much"),
        (lambda w: {k: v[:8] if k.endswith("norm.weight") else v for k, v in w.items()}, "size mismatch"),
    ],
)
def test_weights_of_another_architecture_are_refused_by_name(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    save_file({k: v.clone() for k, v in change(_model().state_dict()).items()}, path)
    with pytest.raises(UserError, match=message) as caught:
        load_timm_file(ARCH, f"file://{path}")
    assert str(path) in str(caught.value) and ARCH in str(caught.value)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_a_pickle_is_never_opened(tmp_path: Path, as_zip: bool) -> None:
    """A `.pth` is read by torch's weights-only reader, which calls nothing that the file names."""

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    file, weights = tmp_path / "w.pth", {**_model().state_dict(), "payload": Payload()}
    torch.save(weights, file, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(UserError) as caught:
        load_timm_file(ARCH, f"file://{file}")
    assert caught.value.message == (
        f"weights: file://{file} cannot be read safely: beside tensors it names posix.mkdir"
    )
    assert caught.value.hint == (
        "nothing of it was run; where you trust it, save its state_dict alone as safetensors"
    )
    assert not (tmp_path / "sprung").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "sprung").exists(), "the payload works where a pickle is opened"


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_a_pytorch_file_of_tensors_gives_the_network_it_was_saved_from(tmp_path: Path, as_zip: bool) -> None:
    model = _model()
    saved = {"teacher": {f"module.{key}": value for key, value in model.state_dict().items()}, "epoch": 7}
    torch.save(saved, tmp_path / "w.pth", _use_new_zipfile_serialization=as_zip)
    loaded, card = load_timm_file(ARCH, f"file://{tmp_path}/w.pth")
    images = torch.randn(2, 3, card.img_px, card.img_px, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    uri = _save(_model(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no architecture vit_gigantic"):
        load_timm_file("vit_gigantic", uri)


def test_a_baseline_in_a_file_is_judged_and_a_bad_one_is_a_record(tmp_path: Path) -> None:
    good = f"timm:{ARCH}@{_save(_model(), tmp_path / 'w.safetensors')}"
    bad = f"timm:resnet10t@file://{tmp_path}/w.safetensors"
    gone = f"timm:{ARCH}@file://{tmp_path}/gone.safetensors"
    dataset = write_folder(tmp_path / "set", {"": {"red": 10, "blue": 10}})
    config = make_config([{"kind": "knn", "name": "knn", "dataset": dataset}], baselines=[good, bad, gone])
    run = make_run(tmp_path, config)
    record = evaluate(run, good, "knn", log=quiet_log())
    assert (record.status, record.step, record.model) == ("ok", None, good), record.reason
    failed = evaluate(run, bad, "knn", log=quiet_log())
    assert failed.status == "failed" and "resnet10t" in failed.reason
    lost = evaluate(run, gone, "knn", log=quiet_log())
    assert lost.status == "failed" and "no weights at" in lost.reason
    with pytest.raises(UserError, match="no weights at"):
        evaluate(run, f"{gone}x", "knn", log=quiet_log())
    # Other weights under the same name are another model.
    _save(_model(seed=9), tmp_path / "w.safetensors")
    assert evaluate(run, good, "knn", log=quiet_log()).model_digest != record.model_digest


def test_hub_weights_come_from_a_filled_cache_and_without_one_it_says_what_to_do(tmp_path: Path) -> None:
    revision = "0" * 40
    cache = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    snapshot = cache / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    weights = import_timm().create_model(ARCH, num_classes=1000).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, snapshot / "model.safetensors")
    code = (
        "from eosin.models.timm_model import load_timm\n"
        "from eosin.errors import EosinError\n"
        f"print(load_timm('{ARCH}')[1].img_px)\n"
        "try:\n"
        "    load_timm('test_vit2')\n"
        "except EosinError as error:\n"
        "    print(type(error).__name__, error, error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    size, _, refusal = done.stdout.partition("\n")
    assert size == "160"
    assert refusal.startswith("TransientError model test_vit2: the weights could not be fetched")
    assert "HF_HOME" in refusal
