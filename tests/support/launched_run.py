"""A run that a launcher under test finds in a folder, beside a mock of the cluster it launches on."""

from pathlib import Path

import pytest

from eosin.cluster import api, follow, launcher
from eosin.config import RunConfig, dump_config
from eosin.layout import RunLayout
from eosin.records import IndexPin
from eosin.storage import Store, open_store


def launched_run(folder: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Pods on a cluster would not reach the folder, the launcher does, whatever the run's URI."""
    store = open_store(f"file://{folder}/run")
    store.put(RunLayout.CONFIG, dump_config(config).encode())
    store.put(RunLayout.INDEX_PIN, IndexPin(index_uri="s3://bucket/index", snapshot_id="s").to_json())
    monkeypatch.setattr(launcher, "open_store", lambda uri: store)
    # The mock neither ends a watch after its time nor replays what came before it, as a server does.
    monkeypatch.setattr(follow, "IDLE_S", 1)
    monkeypatch.setattr(api, "_WATCH_SLACK_S", 1)
    return store
