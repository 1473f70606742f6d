"""One store fixture, run over both stores."""

from pathlib import Path

import pytest

from eosin.storage import Store, join_uri, open_store


@pytest.fixture(params=["file", "s3"])
def store_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URI of an empty store, its name holding a space and letters beyond ASCII."""
    if request.param == "file":
        return str(tmp_path / "a store é")
    return join_uri(request.getfixturevalue("bucket_uri"), "a store é")


@pytest.fixture
def store(store_uri: str) -> Store:
    return open_store(store_uri)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries as many as by default, with waits of milliseconds."""
    monkeypatch.setenv("EOSIN_RETRY_BASE_S", "0.002")
    monkeypatch.setenv("EOSIN_RETRY_CAP_S", "0.02")
