"""`eosin curate` and `patches.curation`: rare tissue is drawn as often as common, by arithmetic alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from eosin.config.patches import PatchesConfig
from eosin.errors import UserError
from eosin.evaluation.curate import CurateRequest, curate, nearest
from eosin.evaluation.embed_index import EmbedRequest, embed_index
from eosin.index.snapshot import open_snapshot
from eosin.layout import ClustersLayout
from eosin.patches.geometry import extent_px
from eosin.patches.sampling.clusters import balanced
from eosin.patches.sampling.sampler import Sampler
from eosin.records.index import ClustersManifest
from eosin.records.parquet import read_table
from eosin.storage import open_store
from tests.support.evaluation import write_timm_network
from tests.support.indexing import LOG, config_for, index, make_slides


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of four slides, and the features and clusters of its patches by a tiny network."""
    folder = tmp_path_factory.mktemp("material")
    slides = make_slides(folder / "slides" / "case", 4).parent
    index(config_for(slides, folder / "index"))
    model = write_timm_network(folder)
    for format in ("hdf5", "parquet", "safetensors"):
        embed_index(
            EmbedRequest(
                model, str(folder / format), str(folder / "index"),
                settings=("patch_px=64", "min_foreground=0.3"), format=format,
            ), 0, 1, LOG,
        )  # fmt: skip
    clustered(folder, "clusters")
    return folder


def clustered(
    folder: Path, name: str, features: str = "hdf5", levels: tuple[int, ...] = (8, 3)
) -> ClustersManifest:
    return curate(CurateRequest(str(folder / features), str(folder / name), levels), LOG)


def sampler(material: Path, **changes: object) -> Sampler:
    patches = {"patch_px": 64, "mpp": (0.5,), "min_foreground": 0.3, "heldout": {"fraction": 0.0},
               "curation": {"clusters": str(material / "clusters"), "max_oversampling": 100.0}}  # fmt: skip
    config = PatchesConfig.model_validate({**patches, **changes})
    return Sampler(open_snapshot(str(material / "index")), config, seed=3, split="train")


def cells(material: Path) -> dict[tuple[str, int, int], int]:
    table = read_table((material / "clusters" / ClustersLayout.CELLS).read_bytes())
    columns = [table[name].to_pylist() for name in ("digest", "x_px", "y_px", "cluster")]
    return {(digest, x, y): cluster for digest, x, y, cluster in zip(*columns, strict=True)}


def drawn_clusters(material: Path, made: Sampler, num: int, step: int = 0) -> list[int]:
    """The cluster of each draw, by the cell that its patch's centre lies in."""
    found = []
    by_place = cells(material)
    for request in made.draw_batch(step, range(num)):
        row = made.snapshot.rows[request.slide]
        width_px, height_px = extent_px(row.header, 64, 0.5)
        x, y = request.x_px + width_px / 2, request.y_px + height_px / 2
        own = [
            cluster
            for (digest, left, top), cluster in by_place.items()
            if digest == row.digest and left - 1 <= x <= left + width_px and top - 1 <= y <= top + height_px
        ]
        assert own, "a patch whose centre is in no cell"
        found.append(own)
    return [own[0] for own in found if len(set(own)) == 1]


def test_every_branch_of_the_tree_is_drawn_alike(material: Path) -> None:
    manifest = clustered(material, "clusters")
    made = sampler(material)
    wanted = balanced(np.array(manifest.sizes), manifest.parents, 100.0)
    found = drawn_clusters(material, made, 3000)
    counts = np.bincount(found, minlength=8) / len(found)
    np.testing.assert_allclose(counts, wanted, atol=0.04)
    natural = np.array(manifest.sizes) / sum(manifest.sizes)
    assert np.abs(counts - natural).max() > 0.1, "the material must be unbalanced for this to show anything"


def test_what_is_drawn_depends_on_seed_step_and_index_alone(material: Path) -> None:
    whole = sampler(material, patches_per_visit=4).draw_batch(7, range(64))
    parts = [
        sampler(material, patches_per_visit=4).draw_batch(7, range(i, i + 16))[::-1] for i in (48, 0, 32, 16)
    ]
    assert sorted((request for part in parts for request in part), key=lambda each: each.index) == list(whole)
    visits = [{request.slide for request in whole[i : i + 4]} for i in range(0, 64, 4)]
    assert all(len(slides) == 1 for slides in visits), "a visit is of one slide"
    assert sampler(material, patches_per_visit=4).draw_batch(8, range(64)) != whole


def test_a_slide_that_is_held_out_gives_no_cell(material: Path) -> None:
    held = sampler(material, heldout={"fraction": 0.5, "num_patches": 2})
    assert 0 < len(held.slides) < 4
    assert {request.slide for request in held.draw_batch(0, range(200))} == set(held.slides.tolist())


def test_formats_of_features_give_the_same_clusters(material: Path) -> None:
    made = [clustered(material, f"of-{format}", format) for format in ("hdf5", "parquet", "safetensors")]
    assert len({each.cells_sha256 for each in made}) == 1
    assert sum(made[0].sizes) == len(cells(material))


def test_what_is_published_stays(material: Path) -> None:
    before = (material / "clusters" / ClustersLayout.CELLS).stat().st_mtime_ns
    clustered(material, "clusters")
    assert (material / "clusters" / ClustersLayout.CELLS).stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds clusters of another num_clusters"):
        clustered(material, "clusters", levels=(4,))


@pytest.mark.parametrize(
    ("features", "levels", "why"),
    [
        ("hdf5", (), "no hierarchy"),
        ("hdf5", (3, 8), "no hierarchy"),
        ("hdf5", (8, 1), "no hierarchy"),
        ("hdf5", (100_000,), "cannot make 100000 clusters"),
        ("index", (8,), "holds no finished features"),
    ],
)
def test_what_cannot_be_clustered_is_refused(
    material: Path, features: str, levels: tuple[int, ...], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        clustered(material, "refused", features, levels)
    assert not open_store(str(material / "refused")).exists(ClustersLayout.MANIFEST)


def test_clusters_of_another_index_are_refused(material: Path, tmp_path: Path) -> None:
    other = make_slides(tmp_path / "slides", 2)
    index(config_for(other, tmp_path / "index"))
    config = PatchesConfig.model_validate({"patch_px": 64, "mpp": (0.5,), "heldout": {"fraction": 0.0},
                                           "curation": {"clusters": str(material / "clusters")}})  # fmt: skip
    snapshot = open_snapshot(str(tmp_path / "index"))
    with pytest.raises(UserError, match="none of the clustered cells"):
        Sampler(snapshot, config, seed=0, split="train")
    with pytest.raises(UserError, match=r"clusters.json is not at"):
        Sampler(snapshot, config.model_copy(update={"curation": config.curation.model_copy(
            update={"clusters": str(tmp_path)})}), seed=0, split="train")  # fmt: skip


def test_weights_of_a_tree() -> None:
    """Two branches of 3 and 1 clusters that hold anything: 1/6 each, and 1/2; an empty one has none."""
    counts = np.array([500, 30, 20, 0, 7])
    weights = balanced(counts, ((0, 0, 0, 1, 1),), 1e9)
    np.testing.assert_allclose(weights, [1 / 6, 1 / 6, 1 / 6, 0, 1 / 2])
    capped = balanced(counts, ((0, 0, 0, 1, 1),), 4.0)
    assert capped.sum() == pytest.approx(1.0) and capped[4] == pytest.approx(4 * 7 / 557)
    assert (capped <= 4.0 * counts / 557 + 1e-12).all()


def test_the_nearest_centroid_is_the_nearest() -> None:
    rng = np.random.default_rng(0)
    features, centroids = (rng.normal(size=(n, 6)).astype(np.float32) for n in (5000, 9))
    distances = ((features[:, None] - centroids[None]) ** 2).sum(axis=2)
    assert Counter(nearest(features, centroids).tolist()) == Counter(distances.argmin(axis=1).tolist())
