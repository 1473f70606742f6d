"""An index made through a connection that misbehaves: the same to the byte."""

from pathlib import Path

import pytest

from eosin.demo.server import LocalS3
from eosin.index.snapshot import open_snapshot
from eosin.layout import IndexLayout
from eosin.storage import open_store
from tests.support.faults import Fault, FaultProxy, Plan, seeded
from tests.support.indexing import config_for, index, make_slides, snapshot_bytes, upload
from tests.support.openslide_containers import write_mirax, write_vmu
from tests.support.slide_files import halved, tissue_picture, write_dicom, write_tiff

EVERYTHING = [Fault.SLOW_DOWN, Fault.RESET, Fault.LOSE_ANSWER, Fault.TRUNCATE, Fault.SHORT, Fault.DELAY]


def at_random(seed: int) -> Plan:
    """Any fault on any request; half a body with headers that agree with it only where the listing tells the
    length, which is of slides."""
    drawn = seeded(seed, 0.3, *EVERYTHING)

    def plan(method: str, path: str) -> Fault:
        fault = drawn(method, path)
        return Fault.TRUNCATE if fault is Fault.SHORT and "/slides/" not in path else fault

    return plan


@pytest.mark.e2e
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_through_faults_the_snapshot_is_the_same_to_the_byte(
    tmp_path: Path, bucket_uri: str, s3: LocalS3, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    slides = make_slides(tmp_path / "slides", 4)
    pixels = tissue_picture(600, 640)
    write_tiff(slides / "staged.tif", [pixels], compression="packbits", mpp=0.5)
    write_mirax(slides, "mirax", pixels)
    write_vmu(slides / "case", "s", tissue_picture(512, 640))
    (slides / "series").mkdir()
    write_dicom(slides / "series" / "1.dcm", pixels, mpp=(1.0, 1.0))
    write_dicom(slides / "series" / "2.dcm", halved(pixels), level=1, mpp=(1.0, 1.0))
    (slides / "broken.svs").write_bytes((slides / "slide-0.svs").read_bytes()[:9000])
    upload(slides, f"{bucket_uri}/slides")
    index(config_for(f"{bucket_uri}/slides", f"{bucket_uri}/plain"), 2)
    monkeypatch.setenv("EOSIN_RETRY_BASE_S", "0.002")
    monkeypatch.setenv("EOSIN_RETRY_CAP_S", "0.02")
    with FaultProxy(s3.endpoint_url, at_random(seed), delay_s=0.02) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        manifest = index(config_for(f"{bucket_uri}/slides", f"{bucket_uri}/harmed"), 2)
        assert len({fault for _, _, fault in proxy.seen}) == len(EVERYTHING) + 1
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.endpoint_url)
    assert manifest.num_ok == 8 and manifest.num_slides == 9
    assert snapshot_bytes(f"{bucket_uri}/harmed") == snapshot_bytes(f"{bucket_uri}/plain")
    plain, harmed = (open_store(f"{bucket_uri}/{name}") for name in ("plain", "harmed"))
    for row in open_snapshot(f"{bucket_uri}/plain").rows:
        key = IndexLayout.tiles(row.digest)
        assert plain.exists(key) == harmed.exists(key)
        assert not plain.exists(key) or plain.get(key) == harmed.get(key)
