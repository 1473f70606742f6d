"""How the endpoint is reached: credentials of every kind, TLS with an authority of one's own."""

import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from eosin.demo.server import LocalS3
from eosin.errors import UserError
from eosin.storage import ByteRange, Store, open_store
from tests.support.faults import Fault, FaultProxy, script, seeded

ASKS: list[Callable[[Store], object]] = [
    lambda store: store.get("k"),
    lambda store: store.get_ranges([ByteRange("k", 0, 1)]),
]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority's PEM file, and the context of a server at 127.0.0.1 whose certificate it signed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl program to make a certificate with")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], check=True, capture_output=True, cwd=tmp_path)

    fresh = ("-newkey", "rsa:2048", "-nodes", "-subj")
    run("req", "-x509", *fresh, "/CN=authority", "-days", "2", "-keyout", "ca.key", "-out", "ca.pem")
    run("req", *fresh, "/CN=server", "-keyout", "server.key", "-out", "server.csr")
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    run("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", "2", "-extfile", "names", "-out", "server.pem")  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    return tmp_path / "ca.pem", context


@pytest.mark.parametrize("ask", ASKS, ids=["get", "ranges"])
def test_an_authority_of_ones_own_is_trusted_once_named(
    ask: Callable[[Store], object],
    certificate: tuple[Path, ssl.SSLContext],
    s3: LocalS3,
    bucket_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pem, context = certificate
    open_store(bucket_uri).put("k", b"x")
    with FaultProxy(s3.endpoint_url, script(), tls=context) as proxy:
        assert proxy.endpoint_url.startswith("https://")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        with pytest.raises(UserError, match=r"certificate of https://.* is not trusted") as caught:
            ask(open_store(bucket_uri))
        assert "AWS_CA_BUNDLE" in caught.value.hint
        monkeypatch.setenv("AWS_CA_BUNDLE", str(pem))
        assert ask(open_store(bucket_uri)) in (b"x", [b"x"])


@pytest.mark.parametrize("ask", ASKS, ids=["get", "ranges"])
def test_a_session_token_goes_with_every_request(
    ask: Callable[[Store], object], s3: LocalS3, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the-token")
    with FaultProxy(s3.endpoint_url, seeded(0, 1.0, Fault.DENY)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint_url)
        with pytest.raises(UserError):
            ask(open_store(bucket_uri))
        sent = {name.lower(): value for name, value in proxy.headers[0].items()}
    assert sent["x-amz-security-token"] == "the-token"


@pytest.mark.parametrize("ask", ASKS, ids=["get", "ranges"])
def test_keys_may_come_from_a_profile(
    ask: Callable[[Store], object],
    s3: LocalS3,
    bucket_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_store(bucket_uri).put("k", b"x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    file.write_text(f"[lab]\naws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert ask(open_store(bucket_uri)) in (b"x", [b"x"])


def test_a_store_keeps_the_endpoint_it_was_opened_with(
    bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(bucket_uri)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store.put("k", b"x")
    assert [ask(store) for ask in ASKS] == [b"x", [b"x"]]
