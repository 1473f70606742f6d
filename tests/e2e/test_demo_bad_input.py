"""What the demo says of input that cannot serve: one line, exit code 2, no traceback."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin.demo.synthetic import SyntheticConfig
from tests.support import demo
from tests.support.patches import write_slide

pytestmark = pytest.mark.e2e


def refused(folder: Path, *arguments: str, settings: tuple[str, ...] = demo.TINY) -> str:
    finished = demo.run(folder, *arguments, settings=settings)
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    return finished.stderr[finished.stderr.index("error:") :]


def test_absent_folder(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refused(tmp_path / "demo", "--slides", str(tmp_path / "none"))
    assert not (tmp_path / "demo").exists()


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    assert "holds no file" in refused(tmp_path / "demo", "--slides", str(tmp_path / "slides"))


def test_only_broken_files_are_each_named(tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / "empty.svs").touch()
    (slides / "noise.tif").write_bytes(bytes(range(256)) * 40)
    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(slides / "picture.png")
    (slides / "picture.png").rename(slides / "picture.svs")
    message = refused(tmp_path / "demo", "--slides", str(slides))
    assert all(name in message for name in ("empty.svs", "noise.tif", "picture.svs"))


def test_configuration_typo(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.svs", seed=1, config=SyntheticConfig(width_px=1024, height_px=1024))
    message = refused(tmp_path / "demo", "--slides", str(tmp_path / "a.svs"), settings=("train.num_setps=3",))
    assert "train.num_steps" in message


def test_steps_that_end_within_the_warm_up_are_refused_before_slides_are_drawn(tmp_path: Path) -> None:
    message = refused(tmp_path / "demo", settings=("train.num_steps=20",))
    assert "warmup_steps 30 is not below train.num_steps 20" in message
    assert not (tmp_path / "demo").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_write_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot be used" in refused(tmp_path / "demo")


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    assert "cannot be used" in refused(tmp_path / "demo")
