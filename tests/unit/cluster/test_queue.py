"""Which of Kueue's words on a waiting training have no end: as its version 0.19.2 says them."""

import pytest

from eosin.cluster.queue import never_mends

_SET = "couldn't assign flavors to pod set anchor: "
_TOO_MUCH = (
    f"{_SET}insufficient quota for cpu in flavor f, previously considered podsets requests (2m) + "
    "current podset request (40m) > maximum capacity (10m)"
)


@pytest.mark.parametrize(
    ("message", "never"),
    [
        ("LocalQueue q doesn't exist", True),
        ("LocalQueue q is inactive", False),
        ("ClusterQueue c is inactive", False),
        ("ClusterQueue c doesn't exist", True),
        ("workload namespace doesn't match ClusterQueue selector", True),
        (f'{_SET}Flavor "f" does not contain the requested level', True),
        (f"{_SET}resource cpu unavailable in ClusterQueue", True),
        (f"{_SET}untolerated taint {{a b NoSchedule <nil>}} in flavor f", True),
        (_TOO_MUCH, True),
        (f"{_SET}insufficient unused quota for cpu in flavor f, 1m more needed", False),
        (f"{_TOO_MUCH}, insufficient unused quota for cpu in flavor g, 1m more needed", False),
        ("The workload has not all checks ready", False),
        ("", False),
    ],
)  # fmt: skip
def test_what_only_a_person_can_change_is_told_from_what_comes_free(message: str, never: bool) -> None:
    assert never_mends(message) is never
