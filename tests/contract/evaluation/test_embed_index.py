"""`eosin embed` and `eosin decode --index`: features and patch sets from an index alone."""

import importlib
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import openslide
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from PIL import Image

from eosin.dry_run import plan_decoding, plan_embedding, plan_tiles_pipeline
from eosin.errors import PermanentError, UserError
from eosin.evaluation.embed_index import EmbedRequest, embed_index
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.layout import FeaturesLayout
from eosin.models.arch import define_missing_ops
from eosin.records import load_record
from eosin.records.index import FeaturesManifest
from eosin.steps import decode_index
from eosin.storage import Store, open_store
from eosin.storage.ranged_reads import GAP_BYTES
from tests.support.counting import CountingStore
from tests.support.evaluation import write_timm_network
from tests.support.indexing import LOG, config_for, index, make_slides
from tests.support.patches import read_patch_set

ARCH = "test_vit"
define_missing_ops()
timm = importlib.import_module("timm")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of three slides and one that cannot be read, and the weights of a tiny network of timm."""
    folder = tmp_path_factory.mktemp("material")
    slides = make_slides(folder / "slides" / "case", 3).parent
    (slides / "broken.svs").write_bytes(b"II*\0" + bytes(100))
    index(config_for(slides, folder / "index"))
    write_timm_network(folder, ARCH)
    return folder


def request(material: Path, out: Path, mpp: float = 0.5, patch_px: int = 96, **changes: Any) -> EmbedRequest:
    settings = (f"mpp={mpp}", f"patch_px={patch_px}", "min_foreground=0.3")
    wanted = {"batch_size": 8, "settings": settings, **changes}
    return EmbedRequest(model_of(material), str(out), str(material / "index"), **wanted)


def model_of(material: Path) -> str:
    return f"timm:{ARCH}@{material / 'weights.safetensors'}"


def test_hdf5_as_clam_reads_it_and_the_features_are_timms(material: Path, tmp_path: Path) -> None:
    manifest = embed_index(request(material, tmp_path), 0, 1, LOG)
    assert manifest is not None and manifest.num_slides == 3
    assert [each.slide for each in manifest.left_out] == ["broken.svs"] and manifest.left_out[0].reason
    network = timm.create_model(ARCH, pretrained=False, num_classes=0)
    network.load_state_dict(safetensors.torch.load_file(material / "weights.safetensors"))
    network.eval()
    with h5py.File(tmp_path / FeaturesLayout.slide("case/slide-1", "h5")) as file:
        features, coords = np.asarray(file["features"]), np.asarray(file["coords"])
        attributes = dict(file["coords"].attrs)
    assert features.dtype == np.float32 and features.shape == (len(coords), network.num_features)
    assert coords.shape[1] == 2 and len(coords) > 3
    assert (attributes["patch_size"], attributes["patch_size_level0"], attributes["overlap"]) == (96, 96, 0)
    assert attributes["target_magnification"] == 20 and attributes["name"] == "slide-1"
    with openslide.OpenSlide(material / "slides" / "case" / "slide-1.svs") as slide:
        x, y = coords[2].tolist()
        patch = slide.read_region((x, y), 0, (96, 96)).convert("RGB")
    side = network.default_cfg["input_size"][1]
    pixels = np.asarray(patch.resize((side, side), 3), np.float32) / 255
    mean, std = (np.array(network.default_cfg[name], np.float32) for name in ("mean", "std"))
    with torch.inference_mode():
        right = network(torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1)[None])).numpy()[0]
    cosine = float(right @ features[2] / np.linalg.norm(right) / np.linalg.norm(features[2]))
    assert cosine > 0.99


def test_every_slide_has_a_file_of_its_own(material: Path, tmp_path: Path) -> None:
    """Where one's name without its end is another's whole name; the end of a UID is none."""
    slides = tmp_path / "slides"
    slides.mkdir()
    for number, name in enumerate(("S1.svs", "S1.tif", "S1.svs.tif", "1.2.840.7")):
        shutil.copy(material / "slides" / "case" / f"slide-{number % 3}.svs", slides / name)
    index(config_for(slides, tmp_path / "index"))
    wanted = replace(request(material, tmp_path / "out"), index_uri=str(tmp_path / "index"))
    manifest = embed_index(wanted, 0, 1, LOG)
    assert manifest is not None and manifest.num_slides == 4
    found = {}
    for name in ("S1.svs", "S1.tif", "S1.svs.tif", "1.2.840.7"):
        with h5py.File(tmp_path / "out" / FeaturesLayout.slide(name, "h5")) as file:
            found[name] = str(file["coords"].attrs["slide"])
    assert all(name == slide for name, slide in found.items())


def test_features_by_another_read_out_are_wider_and_never_mixed(material: Path, tmp_path: Path) -> None:
    embed_index(request(material, tmp_path, read_out="cls_last_2_mean_patch"), 0, 1, LOG)
    width = timm.create_model(ARCH, pretrained=False, num_classes=0).num_features
    with h5py.File(tmp_path / FeaturesLayout.slide("case/slide-1", "h5")) as file:
        assert file["features"].shape[1] == 3 * width
    with pytest.raises(UserError, match="read_out cls_last_2_mean_patch → last"):
        embed_index(request(material, tmp_path), 0, 1, LOG)
    with pytest.raises(UserError, match=r"unknown read-out 'cls'"):
        embed_index(request(material, tmp_path, read_out="cls"), 0, 1, LOG)


def test_shards_make_up_the_whole_and_what_is_there_is_left_alone(material: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    embed_index(request(material, whole), 0, 1, LOG)
    assert embed_index(request(material, parts), 1, 2, LOG) is None
    before = {path: path.stat().st_mtime_ns for path in parts.rglob("*.h5")}
    assert embed_index(request(material, parts), 0, 2, LOG) is not None
    assert embed_index(request(material, parts), 1, 2, LOG) is not None
    assert all(path.stat().st_mtime_ns == at for path, at in before.items()) and before
    for path in whole.rglob("*.h5"):
        with h5py.File(path) as one, h5py.File(parts / path.relative_to(whole)) as other:
            np.testing.assert_array_equal(one["coords"], other["coords"])
            np.testing.assert_allclose(one["features"], other["features"], rtol=1e-4, atol=1e-5)


def test_parquet_and_safetensors_hold_the_same(material: Path, tmp_path: Path) -> None:
    found = {}
    for format, suffix in (("parquet", "parquet"), ("safetensors", "safetensors")):
        embed_index(request(material, tmp_path / format, format=format, slides=("*slide-0*",)), 0, 1, LOG)
        found[format] = (tmp_path / format / FeaturesLayout.slide("case/slide-0", suffix)).read_bytes()
    tensors = safetensors.numpy.load(found["safetensors"])
    table = pq.read_table(io.BytesIO(found["parquet"]))
    np.testing.assert_array_equal(np.stack(table["features"].to_numpy()), tensors["features"])
    np.testing.assert_array_equal(table["x_px"].to_numpy(), tensors["coords"][:, 0])


def test_a_folder_of_other_features_and_wrong_names_are_refused(material: Path, tmp_path: Path) -> None:
    embed_index(request(material, tmp_path, slides=("*slide-0*",)), 0, 1, LOG)
    with pytest.raises(UserError, match="begun as other features: mpp"):
        embed_index(request(material, tmp_path, mpp=1.0, slides=("*slide-0*",)), 0, 1, LOG)
    with pytest.raises(UserError, match="unknown format"):
        embed_index(request(material, tmp_path / "x", format="csv"), 0, 1, LOG)
    with pytest.raises(UserError, match="no shard 2 of 2"):
        embed_index(request(material, tmp_path / "x"), 2, 2, LOG)
    manifest = load_record(FeaturesManifest, open_store(str(tmp_path)), FeaturesLayout.MANIFEST)
    assert manifest is not None and manifest.spec.mpp == 0.5


def plain_timm(material: Path, images: list[bytes]) -> np.ndarray:
    """Embeddings by timm's own transform, in a loop: eight at a time, as eosin feeds a CPU."""
    network = timm.create_model(ARCH, pretrained=False, num_classes=0).eval()
    network.load_state_dict(safetensors.torch.load_file(material / "weights.safetensors"))
    settings = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**{**settings, "crop_pct": 1.0, "interpolation": "bilinear"})
    tensors = torch.stack([transform(Image.open(io.BytesIO(each)).convert("RGB")) for each in images])
    with torch.inference_mode():
        return torch.cat([network(part) for part in tensors.split(8)]).numpy()


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_a_patch_set_is_embedded_as_by_a_plain_loop_over_it(
    material: Path, tmp_path: Path, format: str
) -> None:
    side = timm.create_model(ARCH, pretrained=False).default_cfg["input_size"][1]
    sets, settings = str(tmp_path / "sets"), ["mpp=0.5", f"patch_px={side}", "patches_per_shard=3"]
    decode_index(str(material / "index"), sets, 0, 1, "tiles", [*settings, f"format={format}"])
    uri, out = f"{sets}/patches/tiles", str(tmp_path / "out")
    asked = EmbedRequest(model_of(material), out, patches_uri=uri, batch_size=8)
    assert embed_index(asked, 1, 2, LOG) is None
    manifest = embed_index(asked, 0, 2, LOG)
    assert manifest is not None and manifest.num_slides == 3 and manifest.spec.patches_uri == uri
    assert [(each.slide, each.reason[:15]) for each in manifest.left_out] == [
        ("broken.svs", "corrupt-header:")
    ]
    rows = [row for row in read_patch_set(uri)[1] if row.slide == "case/slide-2.svs"]
    with h5py.File(Path(out, FeaturesLayout.slide("case/slide-2", "h5"))) as file:
        np.testing.assert_array_equal(file["coords"], [(row.x_px, row.y_px) for row in rows])
        # The kernels that some processors take for a whole batch round otherwise than those for a part.
        plain = plain_timm(material, [row.image for row in rows])
        np.testing.assert_allclose(file["features"], plain, rtol=0, atol=5e-6)
        attributes = dict(file["coords"].attrs)
    assert (attributes["patch_size"], attributes["target_magnification"]) == (side, 20)
    with openslide.OpenSlide(material / "slides" / "case" / "slide-2.svs") as slide:
        assert (attributes["level0_width"], attributes["level0_height"]) == slide.dimensions


def test_a_sampled_set_of_two_magnifications_says_which_patch_has_which(
    material: Path, tmp_path: Path
) -> None:
    settings = ["kind=sampled", "num_patches=40", "patches_per_shard=16", "patches.patch_px=224",
                "patches.mpp=[0.5,1.0]"]  # fmt: skip
    decode_index(str(material / "index"), str(tmp_path), 0, 1, "mixed", settings)
    uri = str(tmp_path / "patches" / "mixed")
    out = tmp_path / "out"
    asked = EmbedRequest(model_of(material), str(out), patches_uri=uri, format="parquet")
    manifest = embed_index(asked, 0, 1, LOG)
    assert manifest is not None and manifest.spec.mpp is None
    tables = {path: pq.read_table(path) for path in out.rglob("*.parquet")}
    assert sum(len(table) for table in tables.values()) == 40
    found = [(row["x_px"], row["mpp"]) for table in tables.values() for row in table.to_pylist()]
    assert sorted(found) == sorted((row.x_px, row.mpp) for row in read_patch_set(uri)[1])
    assert all(b"patch_size_level0" not in table.schema.metadata for table in tables.values())


def test_what_a_patch_set_is_cannot_be_asked_for_otherwise(material: Path, tmp_path: Path) -> None:
    decode_index(str(material / "index"), str(tmp_path), 0, 1, "tiles", ["mpp=1.0", "patch_px=64"])
    uri, out = str(tmp_path / "patches" / "tiles"), str(tmp_path / "out")

    def refused(reason: str, **wanted: Any) -> None:
        with pytest.raises(UserError, match=reason):
            embed_index(EmbedRequest(model_of(material), out, **wanted), 0, 1, LOG)

    refused("own mpp", patches_uri=uri, settings=("mpp=0.5",))
    refused("from an index or from a patch set")
    refused("from an index or from a patch set", patches_uri=uri, index_uri=str(material / "index"))
    refused("no slide of .* matches nothing", patches_uri=uri, slides=("nothing*",))
    refused("no patch set at", patches_uri=str(tmp_path / "patches"))
    with pytest.raises(UserError, match="does not say its architecture"):
        embed_index(EmbedRequest(str(material / "weights.safetensors"), out, patches_uri=uri), 0, 1, LOG)
    shard = next(Path(uri).glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(PermanentError, match="its digest differs"):
        embed_index(EmbedRequest(model_of(material), out, patches_uri=uri), 0, 1, LOG)


def test_every_slide_that_a_set_leaves_out_is_named(material: Path, tmp_path: Path) -> None:
    settings = ["mpp=0.5", "patch_px=96", "min_foreground=1.0"]
    index_uri = str(material / "index")
    manifest = decode_index(index_uri, str(tmp_path), 0, 1, "some", settings)
    assert manifest is not None
    named = [*manifest.slides, *(each.slide for each in manifest.left_out)]
    assert sorted(named) == sorted(open_snapshot(index_uri).rows.column("slide"))
    part = decode_index(index_uri, str(tmp_path), 0, 1, "part", ["mpp=0.5", "patch_px=96"], ["case/*-0*"])
    assert part is not None and part.slides == ("case/slide-0.svs",) and not part.left_out


def test_a_patch_set_of_an_index_alone(material: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "sets")
    manifest = decode_index(str(material / "index"), out, 0, 1, "tiles", ["mpp=1.0", "patch_px=64"])
    assert manifest is not None and len(manifest.slides) == 3 and manifest.patch_px == 64
    again, rows = read_patch_set(f"{out}/patches/tiles")
    assert again == manifest and len(list(rows)) == manifest.num_patches
    with pytest.raises(UserError, match="held-out set is a run's"):
        decode_index(str(material / "index"), out, 0, 1, "heldout")


@pytest.mark.parametrize("settings", [["mpp=0.5", "patch_px=96"], ["kind=sampled", "num_patches=40"]])
def test_a_dry_run_tells_what_a_patch_set_reads_and_writes_nothing(
    material: Path, tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, index_uri, slides = str(tmp_path / "sets"), str(material / "index"), ["case/slide-[01]*"]
    told = plan_decoding(out, index_uri, "tiles", settings, slides)
    asked = {"run": out, "index": index_uri, "name": "tiles", "settings": settings, "slide_patterns": slides}
    assert plan_tiles_pipeline("decode", asked) == told
    assert not list(tmp_path.iterdir())
    counted: list[CountingStore] = []

    def slide_store(snapshot: Snapshot) -> Store:
        counted.append(CountingStore(open_store(snapshot.manifest.slides_uri)))
        return cast(Store, counted[-1])

    monkeypatch.setattr(Snapshot, "slide_store", slide_store)
    manifest = decode_index(index_uri, out, 0, 1, "tiles", settings, slides)
    assert manifest is not None and told.writes == f"file://{out}/patches/tiles/"
    assert (told.figures["num_slides"], told.figures["num_patches"]) == (2, manifest.num_patches)
    num_bytes = sum(each.length for store in counted for each in store.ranges)
    if "kind=sampled" not in settings:  # every tile that a patch needs, once
        assert num_bytes <= told.figures["read_bytes"] <= 1.1 * num_bytes + GAP_BYTES * len(counted[0].ranges)
    assert 0 < told.figures["read_requests"] <= sum(len(store.ranges) for store in counted)
    with pytest.raises(UserError, match="begun as another"):
        plan_decoding(out, index_uri, "tiles", ["mpp=2.0"], slides)
    with pytest.raises(UserError, match="held-out set is a run's"):
        plan_decoding(out, index_uri, "heldout", [], slides)


def test_a_dry_run_of_features_tells_them_and_writes_nothing(material: Path, tmp_path: Path) -> None:
    out = tmp_path / "features"
    wanted = request(material, out)
    told = plan_embedding(wanted)
    asked = {"run": str(out), "model": wanted.model, "index": wanted.index_uri, "settings": wanted.settings}
    assert plan_tiles_pipeline("embed", asked) == told
    assert not out.exists() and told.writes == str(out)
    assert embed_index(request(material, out), 0, 1, LOG)
    files = [np.asarray(h5py.File(path)["coords"]) for path in out.rglob("*.h5")]
    assert told.figures["num_patches"] == sum(map(len, files)) and told.figures["num_slides"] == len(files)
    with pytest.raises(UserError, match="begun as other features"):
        plan_embedding(request(material, out, mpp=1.0))
    with pytest.raises(UserError, match="is a file"):
        plan_embedding(request(material, material / "weights.safetensors"))
    tiles = str(tmp_path / "sets")
    manifest = decode_index(str(material / "index"), tiles, 0, 1, "tiles", ["mpp=1.0", "patch_px=64"])
    assert manifest is not None
    of_set = EmbedRequest(model_of(material), str(tmp_path / "f"), patches_uri=f"{tiles}/patches/tiles")
    figures = plan_embedding(of_set).figures
    sizes = [(Path(of_set.patches_uri) / each.key).stat().st_size for each in manifest.shards]
    assert figures == {"num_slides": 3, "num_patches": manifest.num_patches, "read_bytes": sum(sizes),
                       "read_requests": len(sizes)}  # fmt: skip


def test_what_no_grid_can_be_is_refused_by_its_key(material: Path, tmp_path: Path) -> None:
    for settings, reason in (
        (["mpp=-1"], "mpp"), (["mmp=1.0"], "mpp"), (["overlap_px=x"], "overlap_px"),
        (["kind=sampled"], "a grid over each slide"),
    ):  # fmt: skip
        asked = EmbedRequest(
            model_of(material), str(tmp_path), str(material / "index"), settings=tuple(settings)
        )
        with pytest.raises(UserError, match=reason):
            embed_index(asked, 0, 1, LOG)
    with pytest.raises(UserError, match="batches of 0"):
        embed_index(request(material, tmp_path, batch_size=0), 0, 1, LOG)
