"""Slides of several sources in one index, such as an open archive beside a bucket of one's own."""

import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import eosin.index.sources as sources_module
from eosin.cluster.pods import agent_pod
from eosin.config import RunConfig, dump_config, load_config
from eosin.config.index import SlidesConfig, SourceConfig
from eosin.config.patches import PatchesConfig
from eosin.demo.server import LocalS3
from eosin.doctor import check_source
from eosin.errors import UserError
from eosin.index.listing import in_shard
from eosin.index.plan import open_scan, plan_scan
from eosin.index.rows import SlideRow
from eosin.index.snapshot import Snapshot, open_snapshot
from eosin.index.sources import LISTS_AT_ONCE, entries_of, figures_of, list_slides, require_slides
from eosin.observability import RunLog
from eosin.patches.request import PatchRequest
from eosin.patches.sampling.sampler import Sampler
from eosin.patches.stream import PatchStream
from eosin.storage import ByteRange, ObjectInfo, S3Access, open_store
from tests.support.indexing import index, make_slides, upload
from tests.support.openslide_containers import write_mirax, write_vms, write_vmu
from tests.support.slide_files import EXPLICIT, halved, tissue_picture, write_dicom

SERIES = {
    "68c0f13e-4607-4e55-aef1-6df1ac3a78f5": ("tcga_brca", "TCGA-A1-0001"),
    "a0a5cb8c-8d8e-47aa-a0c1-9d0f3a1c7d11": ("tcga_brca", "TCGA-A1-0002"),
    "b1b2c3d4-0000-47aa-a0c1-9d0f3a1c7d22": ("gtex", "GTEX-1"),
    "c1b2c3d4-0000-47aa-a0c1-9d0f3a1c7d33": ("gtex", "GTEX-2"),
}
LABELS_ONLY, VANISHED = list(SERIES)[2:]
BUCKET = "idc-open-data"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    """A server of its own with a bucket that anybody may read, laid out as IDC lays out series."""
    with LocalS3(tmp_path_factory.mktemp("archive")) as server:
        boto = server.boto()
        boto.create_bucket(Bucket=BUCKET)
        statement = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"],
                     "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]}  # fmt: skip
        boto.put_bucket_policy(
            Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        )
        folder = tmp_path_factory.mktemp("series")
        for number, series in enumerate(list(SERIES)[:3]):
            pixels = tissue_picture(700 + 30 * number, 800, seed=number)
            for level in range(2):
                # Half of the archive's instances have the extension.
                name = f"5f0{number}{level}aaa-4607-4e55-aef1-6df1ac3a78f5" + ".dcm" * (number % 2)
                kind = "LABEL" if series == LABELS_ONLY else "VOLUME"
                path = write_dicom(
                    folder / name, halved(pixels, level) if level else pixels, level=level, syntax=EXPLICIT,
                    mpp=(0.5, 0.5), series=f"1.2.3.{number}", kind=kind,
                )  # fmt: skip
                boto.upload_file(str(path), BUCKET, f"{series}/{name}")
        yield server


@pytest.fixture
def small_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's index, of the four series."""
    package = pytest.importorskip("idc_index_data", reason="the extra idc is not installed")
    rows = [
        {"Modality": "SM", "collection_id": collection, "PatientID": patient,
         "SeriesInstanceUID": f"1.2.{number}", "series_aws_url": f"s3://{BUCKET}/{series}/*",
         "series_size_MB": 1.5, "license_short_name": "CC BY 3.0",
         "source_DOI": f"10.7937/{collection}", "Manufacturer": "Leica"}
        for number, (series, (collection, patient)) in enumerate(SERIES.items())
    ]  # fmt: skip
    rows.append({**rows[0], "Modality": "CT", "SeriesInstanceUID": "9"})
    path = tmp_path / "idc_index.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    monkeypatch.setattr(package, "IDC_INDEX_PARQUET_FILEPATH", path)
    return path


def config_of(out: str, *sources: dict[str, object], **slides: object) -> RunConfig:
    tree = {"slides": {"sources": list(sources), **slides}, "index": {"uri": out}}
    return load_config(tree)


def rows_of(snapshot: Snapshot) -> dict[str, SlideRow]:
    return {row.slide: row for row in snapshot.rows}


@pytest.mark.e2e
def test_an_open_archive_beside_a_signed_bucket(
    tmp_path: Path, bucket_uri: str, archive: LocalS3, small_index: Path
) -> None:
    upload(make_slides(tmp_path / "slides", 2), f"{bucket_uri}/slides")
    config = config_of(
        f"{bucket_uri}/index",
        {"uri": f"{bucket_uri}/slides"},
        {"idc": {"collections": ["tcga_brca", "gtex"]}, "endpoint_url": archive.endpoint_url},
    )
    config = load_config(dump_config(config))
    manifest = index(config, 2)
    snapshot = open_snapshot(f"{bucket_uri}/index")
    rows = rows_of(snapshot)
    assert manifest.num_slides == 6 and manifest.num_ok == 4
    one = next(row for row in rows.values() if row.patient == "TCGA-A1-0001")
    assert one.source == "idc" and one.credentials == "anonymous" and one.cohort == "tcga_brca"
    assert one.uri == f"s3://{BUCKET}/{one.slide.removeprefix(f'idc/{BUCKET}/')}"
    assert len(one.header.levels) == 2 and one.header.format == "dicom"
    own = rows["slides/slide-0.svs"]
    assert (own.uri, own.credentials) == (f"{bucket_uri}/slides/slide-0.svs", "environment")
    statuses = {slide.split("/")[2]: row.status for slide, row in rows.items() if row.source == "idc"}
    assert statuses[LABELS_ONLY] == "not-a-slide" and statuses[VANISHED] == "missing"
    assert manifest.attribution == (
        "tcga_brca: 2 slides, CC BY 3.0, https://doi.org/10.7937/tcga_brca",
        "NCI Imaging Data Commons, https://doi.org/10.1158/0008-5472.CAN-21-0950",
    )
    published = open_store(f"{bucket_uri}/index")
    assert not any(secret.encode() in published.get(info.key) for info in published.list()
                   for secret in (archive.secret_key, os.environ["AWS_SECRET_ACCESS_KEY"]))  # fmt: skip
    patches = PatchesConfig.model_validate({"patch_px": 128, "mpp": (0.5,)})
    events: list[str] = []
    with PatchStream(Sampler(snapshot, patches, seed=1), RunLog("test"),
                     on_reject=lambda _, error: events.append(error.reason)) as stream:  # fmt: skip
        (batch,) = stream.batches([(0, range(64))])
    assert {rows_in(snapshot, batch.requests)} == {("idc", "slides")} and not events
    assert index(config, 2) == manifest, "scanned again it is the same, and nothing is read again"
    revised = one.slide.removeprefix(f"idc/{BUCKET}/")
    archive.boto().put_object(Bucket=BUCKET, Key=revised, Body=b"revised")
    with PatchStream(Sampler(snapshot, patches, seed=1), RunLog("test"),
                     on_reject=lambda _, error: events.append(error.reason)) as stream:  # fmt: skip
        list(stream.batches([(0, range(64))]))
    assert set(events) == {"changed"}


def rows_in(snapshot: Snapshot, requests: Sequence[PatchRequest]) -> tuple[str, ...]:
    """Sources of the slides that patches were drawn from."""
    return tuple(sorted({snapshot.rows[request.slide].source for request in requests}))


def test_profiles_and_anonymity_are_a_sources_own(
    tmp_path: Path, bucket_uri: str, archive: LocalS3, s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(bucket_uri).put("a", b"own")
    keys = f"aws_access_key_id={s3.access_key}\naws_secret_access_key={s3.secret_key}\n"
    (tmp_path / "credentials").write_text(f"[own]\n{keys}")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for name, value in archive.env.items():
        monkeypatch.setenv(name, value)
    store = open_store(bucket_uri, S3Access(s3.endpoint_url, profile="own"))
    assert store.get("a") == b"own" and store.get_ranges([ByteRange("a", 0, 3)]) == [b"own"]
    with pytest.raises(UserError):
        open_store(bucket_uri, S3Access(s3.endpoint_url)).get("a")
    with pytest.raises(UserError, match="absent"):
        open_store(bucket_uri, S3Access(s3.endpoint_url, profile="absent")).get("a")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    assert open_store(bucket_uri, S3Access(s3.endpoint_url, profile="own")).get("a") == b"own"


def test_a_manifest_of_slides_anywhere(tmp_path: Path) -> None:
    make_slides(tmp_path / "one", 1)
    make_slides(tmp_path / "two", 2)
    lines = ["slide,patient,cohort,mpp,licence,doi", f"{tmp_path}/one/slide-0.svs,P1,A,1.0,CC0,10.1/x",
             f"file://{tmp_path}/two/slide-1.svs,P2,B,,,", "two/gone.svs,P3,B,,,"]  # fmt: skip
    (tmp_path / "all.csv").write_text("\n".join(lines))
    table = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "all.parquet")
    found = []
    for name in ("all.csv", "all.parquet"):
        out = str(tmp_path / f"{name}-index")
        manifest = index(config_of(out, {"manifest": str(tmp_path / name), "name": "m"}))
        snapshot = open_snapshot(out)
        rows = rows_of(snapshot)
        assert [row.status for row in rows.values()] == ["ok", "missing", "ok"]
        first = rows[f"m/file{tmp_path}/one/slide-0.svs"]
        assert (first.patient, first.cohort, first.header.mpp_x, first.mpp_source) == (
            "P1",
            "A",
            1.0,
            "override",
        )
        assert first.uri == f"file://{tmp_path}/one/slide-0.svs"
        assert manifest.attribution == ("A: 1 slide, CC0, https://doi.org/10.1/x",)
        found.append({slide: row.patient for slide, row in rows.items()})
    assert found[0] == found[1]


@pytest.mark.parametrize("ends", [("tif", "tif"), ("dcm", "dcm"), ("jpg", "gz"), ("svs", "dcm")])
def test_lines_of_a_manifest_that_are_of_one_series_are_one_slide(
    tmp_path: Path, ends: tuple[str, str]
) -> None:
    """By content, whatever the names; a line that names no slide is a row that says so."""
    finest, slides = tissue_picture(600, 700), tmp_path / "slides"
    slides.mkdir()
    for level, pixels in enumerate((finest, halved(finest))):
        write_dicom(slides / f"{level}.{ends[level]}", pixels, level=level, syntax=EXPLICIT, mpp=(2.0, 2.0))
    (slides / "x.jpg").write_bytes(b"no slide" * 40)
    write_dicom(slides / "folder.dcm", finest, series="1.2.3", syntax=EXPLICIT, mpp=(2.0, 2.0))
    (slides / "folder").mkdir()
    (slides / "folder.dcm").rename(slides / "folder" / "z")
    (slides / "folder" / "README.txt").write_bytes(b"of the series")
    names = [*(f"{level}.{end}" for level, end in enumerate(ends)), "x.jpg", "folder/"]
    lines = "\n".join(f"slides/{name},P{number}" for number, name in enumerate(names))
    (tmp_path / "all.csv").write_text(f"slide,patient\n{lines}\n")
    index(config_of(str(tmp_path / "index"), {"manifest": str(tmp_path / "all.csv"), "name": "m"}))
    found = [(Path(row.slide).name, row.status, len(row.header.levels), row.patient)
             for row in open_snapshot(str(tmp_path / "index")).rows]  # fmt: skip
    assert found == [(f"0.{ends[0]}", "ok", 2, "P0"), ("z", "ok", 1, "P3"), ("x.jpg", "not-a-slide", 0, "P2")]


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("manifest", "slide\none/a.svs\n./one/a.svs\n", r"names .*/one/a.svs twice"),
        ("manifest", "slide\ns3://bucket\n", "s3://bucket is a bucket"),
        ("gdc", "id\tfilename\tsize\nu\ta.svs\t1\nu\ta.svs\t1\n", "names u/a.svs twice"),
        ("gdc", "id\tmd5\tfilename\tsize\nu\tx\n", ":2: 2 cells"),
        ("gdc", "id\tfilename\tsize\nu\ta.svs\n", ":2: 2 cells"),
    ],
)
def test_what_a_manifest_may_not_say(tmp_path: Path, kind: str, text: str, words: str) -> None:
    (tmp_path / "all").write_text(text)
    source = {kind: str(tmp_path / "all")} | ({"bucket": str(tmp_path)} if kind == "gdc" else {})
    with pytest.raises(UserError, match=words):
        figures_of(load_config({"slides": {"sources": [source]}}).slides)


def test_a_dry_run_counts_what_include_names_and_says_where_it_guesses(tmp_path: Path) -> None:
    folder, pixels = make_slides(tmp_path / "a", 3), tissue_picture(300, 300)
    (tmp_path / "b").mkdir()
    for series in ("1.2.1", "1.2.2"):
        write_dicom(tmp_path / "b" / f"{series}.dcm", pixels, series=series)
    (figures,) = figures_of(SlidesConfig(uri=str(folder), include=("slide-[01]*",)))
    assert (figures.num_slides, figures.num_objects, "about" in str(figures).split(";")[0]) == (2, 2, False)
    sources = tuple(SourceConfig(uri=str(tmp_path / name), name=name) for name in "ab")
    one, other = figures_of(SlidesConfig(sources=sources, include=("b/*",)))
    assert (one.num_slides, other.num_objects, other.by_folder) == (0, 2, True)
    assert "about 1 slide (one a folder" in str(other)
    with pytest.raises(UserError, match="names") as caught:
        require_slides(SlidesConfig(sources=sources, include=("b/*",)))
    assert caught.value.hint == "the first key is a/slide-0.svs"


def test_a_table_of_slides_has_empty_cells_and_a_column_of_them(tmp_path: Path) -> None:
    table = pa.table({"slide": [" one/a.svs "], "patient": ["P"], "mpp": [float("nan")]})
    pq.write_table(table, tmp_path / "all.parquet")
    pq.write_table(table.rename_columns(["URI", "patient", "mpp"]), tmp_path / "other.parquet")
    (entry,) = entries_of(SourceConfig(manifest=str(tmp_path / "all.parquet")))
    assert (Path(entry.key).name, entry.known.patient, entry.known.mpp_x) == ("a.svs", "P", None)
    with pytest.raises(UserError, match="no column `slide`"):
        list(entries_of(SourceConfig(manifest=str(tmp_path / "other.parquet"))))


def test_a_manifest_names_a_slide_of_several_objects_by_the_main_one(tmp_path: Path) -> None:
    slides, pixels = tmp_path / "slides", tissue_picture(640, 768, seed=3)
    slides.mkdir()
    writers = {"v": write_vms, "w": write_vms, "u": write_vmu, "m": write_mirax}
    names = [write(slides, stem, pixels).name for stem, write in writers.items()]
    (tmp_path / "all.csv").write_text("\n".join(["slide", *(f"slides/{name}" for name in names)]))
    index(config_of(str(tmp_path / "index"), {"manifest": str(tmp_path / "all.csv")}))
    rows = open_snapshot(str(tmp_path / "index")).rows
    assert {Path(row.slide).name: (row.status, len(row.header.objects)) for row in rows} == {
        "m.mrxs": ("ok", 5), "u.vmu": ("ok", 4), "v.vms": ("ok", 4), "w.vms": ("ok", 4),
    }  # fmt: skip


def test_overrides_go_over_what_a_manifest_says(tmp_path: Path) -> None:
    make_slides(tmp_path / "one", 2)
    (tmp_path / "all.csv").write_text("slide,patient,cohort\none/slide-0.svs,P1,A\none/slide-1.svs,P2,A")
    (tmp_path / "mine.csv").write_text("slide,cohort,exclude\nslide-1.svs,B,yes")
    out = str(tmp_path / "index")
    index(config_of(out, {"manifest": str(tmp_path / "all.csv")}, overrides=str(tmp_path / "mine.csv")))
    one, other = open_snapshot(out).rows
    assert (one.status, one.cohort) == ("ok", "A")
    assert (other.status, other.cohort, other.patient) == ("excluded", "B", "P2")


def test_a_manifest_of_gdc(tmp_path: Path) -> None:
    make_slides(tmp_path / "bucket" / "uuid-1", 1)
    (tmp_path / "bucket/uuid-1/slide-0.svs").rename(tmp_path / "bucket/uuid-1/TCGA-A1-A0SK-01Z.svs")
    size = (tmp_path / "bucket/uuid-1/TCGA-A1-A0SK-01Z.svs").stat().st_size
    (tmp_path / "gdc.tsv").write_text(
        f"id\tfilename\tmd5\tsize\tstate\nuuid-1\tTCGA-A1-A0SK-01Z.svs\tx\t{size}\treleased\n"
    )
    source = {"gdc": str(tmp_path / "gdc.tsv"), "bucket": str(tmp_path / "bucket")}
    index(config_of(str(tmp_path / "index"), source))
    (row,) = open_snapshot(str(tmp_path / "index")).rows
    assert (row.slide, row.status, row.patient) == ("gdc/uuid-1/TCGA-A1-A0SK-01Z.svs", "ok", "TCGA-A1-A0SK")
    (figures,) = figures_of(load_config({"slides": {"sources": [source]}}).slides)
    assert (figures.num_slides, figures.num_patients, figures.num_bytes) == (1, 1, size)


def test_doctor_reads_the_first_slide_of_each_source(tmp_path: Path) -> None:
    make_slides(tmp_path / "one", 1)
    (tmp_path / "all.csv").write_text("slide\none/slide-0.svs")
    found = check_source(SourceConfig(manifest=str(tmp_path / "all.csv")))
    assert (found.status, found.detail) == (
        "ok",
        f"file://{tmp_path}/one/slide-0.svs is read with environment",
    )
    assert check_source(SourceConfig(uri=str(tmp_path / "one"))).status == "ok"
    (tmp_path / "all.csv").write_text("slide\none/gone.svs")
    assert check_source(SourceConfig(manifest=str(tmp_path / "all.csv"))).status == "fail"
    assert "no manifest" in check_source(SourceConfig(manifest=str(tmp_path / "none.csv"))).detail


def test_pods_mount_the_profiles_that_sources_name() -> None:
    def pod(**source: object) -> str:
        config = load_config({"slides": [{"uri": "s3://x/a", **source}]})
        return json.dumps(agent_pod(config, "s3://x/run", "run", config.cluster.pools[0], image="i:1"))

    named = pod(profile="partner")
    assert '"secretName": "eosin-s3-profiles"' in named
    assert '{"name": "AWS_SHARED_CREDENTIALS_FILE", "value": "/etc/eosin/aws/credentials"}' in named
    assert "eosin-s3-profiles" not in pod() and "AWS_SHARED_CREDENTIALS_FILE" not in pod()


class _Archive:
    """Every series has one object; counts LIST requests and how many are in flight."""

    def __init__(self) -> None:
        self.num_lists = self.in_flight = self.most_in_flight = 0
        self._lock = threading.Lock()

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._lock:
            self.num_lists += 1
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.num_lists % 100 == 0:
            time.sleep(0.001)
        with self._lock:
            self.in_flight -= 1
        return iter([ObjectInfo(f"{prefix}instance", 1000, "etag", 0.0)])


def test_all_series_of_the_real_index_are_listed_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("idc_index_data", reason="the extra idc is not installed")
    archive = _Archive()
    monkeypatch.setattr(sources_module, "open_store", lambda uri, access=None: archive)
    slides = SlidesConfig.model_validate([{"idc": {}}])
    (figures,) = figures_of(slides)
    assert archive.num_lists == 0, "the package's index tells"
    listed = list_slides(slides)
    assert len(listed.units) == figures.num_slides == archive.num_lists >= 76_300
    assert 1 < archive.most_in_flight <= LISTS_AT_ONCE
    assert figures.num_bytes and figures.num_bytes > 49e12 and figures.num_patients > 20_000
    cohorts = [known.cohort for known in listed.known.values()]
    assert cohorts.count("gtex") == 25_503 or package.__version__ != "25.0.5"
    assert all(known.patient and known.extra["licence"] for known in listed.known.values())


@pytest.mark.long
def test_shards_of_a_scan_of_the_real_index_list_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("idc_index_data", reason="the extra idc is not installed")
    archive = _Archive()
    monkeypatch.setattr(sources_module, "open_store", lambda uri, access=None: archive)
    config = load_config({"slides": [{"idc": {}}], "index": {"uri": str(tmp_path / "index")}})
    scan_id = open_scan(config).scan_id
    num_lists = archive.num_lists
    plan = plan_scan(config, scan_id)  # as every shard and the merge
    assert archive.num_lists == num_lists == len(plan.units) >= 76_300
    sizes = [sum(in_shard(unit, shard, 64) for unit in plan.units) for shard in range(64)]
    assert sum(sizes) == len(plan.units) and max(sizes) < 1.2 * min(sizes)
    assert all(plan.override(unit.objects) for unit in plan.units), "patient, cohort and licence go along"


def test_what_an_index_does_not_have_is_named() -> None:
    pytest.importorskip("idc_index_data", reason="the extra idc is not installed")

    def slides(**idc: object) -> SlidesConfig:
        return SlidesConfig.model_validate([{"idc": idc}])

    with pytest.raises(UserError, match="collection_id 'tcga_brac'") as caught:
        require_slides(slides(collections=["tcga_brac"]))
    assert "tcga_brca" in caught.value.hint
    with pytest.raises(UserError, match="'Manufacter', which the index of IDC does not have") as caught:
        require_slides(slides(where={"Manufacter": "Leica*"}))
    assert "Manufacturer" in caught.value.hint
    with pytest.raises(UserError, match=r"the run is of idc-index-data 1\.0") as caught:
        require_slides(slides(version="1.0"))
    assert "pip install idc-index-data==1.0" in caught.value.hint
    chosen = figures_of(slides(collections=["tcga_*"], where={"license_short_name": "CC BY 3.0"}))
    assert 10_000 < chosen[0].num_slides < 40_000


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({}, "exactly one of uri, manifest, idc, gdc, not none"),
        ({"uri": "s3://a", "manifest": "s3://b/m.csv"}, "not uri and manifest"),
        ({"gdc": "s3://a/m.tsv"}, "give both"),
        ({"uri": "s3://a", "anonymous": True, "profile": "x"}, "give one"),
        ({"uri": "s3://a", "endpoint_url": "minio:9000"}, "is no URL"),
        ({"uri": "s3://a", "anonymus": True}, r"did you mean slides\.sources\.0\.anonymous"),
    ],
)
def test_mistakes_in_a_source_are_named(source: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config({"slides": [source]})


def test_the_forms_of_slides() -> None:
    text = "slides:\n- uri: s3://mine/a\n- idc: {collections: [gtex]}\n"
    config = load_config(text, overrides=["slides.include=['*.svs']"])
    assert [source.name for source in config.slides.sources] == ["a", "idc"]
    assert config.slides.include == ("*.svs",) and config.slides.sources[1].anonymous
    assert config.slides.sources[1].endpoint_url == "https://s3.amazonaws.com"
    assert load_config(dump_config(config)) == config
    assert load_config("slides: {uri: s3://mine/a}").slides.sources == ()
    with pytest.raises(UserError, match="two sources are called a"):
        load_config("slides: [{uri: s3://x/a}, {uri: s3://y/a}]")
    with pytest.raises(UserError, match="give one of both"):
        load_config("slides: [{uri: s3://x/a}]", overrides=["slides.uri=s3://y"])
    assert SourceConfig(uri="s3://x/a").credentials == "environment"
