"""A namespace of a real cluster for each test; all skip where no cluster is named."""

from collections.abc import Iterator
from typing import Any

import pytest

from eosin.cluster import training
from eosin.cluster.api import Cluster
from tests.support import real_cluster


@pytest.fixture(scope="session")
def real() -> Cluster:
    cluster = real_cluster.reach()
    if real_cluster.IMAGE == real_cluster.HOST_IMAGE:
        real_cluster.let_host_image_run(cluster)
    return cluster


@pytest.fixture
def cluster(real: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """With the chart's accounts; what is submitted waits instead of training."""
    render_jobset = training.render_jobset

    def jobset(*args: Any, **more: Any) -> Any:
        return real_cluster.waiting(render_jobset(*args, **more))

    monkeypatch.setattr(training, "render_jobset", jobset)
    with real_cluster.namespace(real) as made:
        real_cluster.install_accounts(made)
        yield made
