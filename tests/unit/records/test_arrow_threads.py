"""No thread of Arrow's is left by what reads and writes tables: one alive may abort a process that ends."""

import subprocess
import sys
from pathlib import Path

import pytest

_WORK = {
    "rows": """
from eosin.index.rows import decode_rows, encode_rows
from eosin.index.columns import MappedRows, write_columns
from tests.support.indexing import bare_row
data = encode_rows(bare_row(f"{i:04d}.svs", content="x" * 500) for i in range(2000))
path = Path(sys.argv[1], "rows.parquet")
path.write_bytes(data)
write_columns(path, path.parent, source="test")
assert len(list(decode_rows(data, source="test"))) == len(list(MappedRows(path.parent))) == 2000
""",
    "patch sets": """
from eosin.records.patchset_shard import PatchRow, decode_shard, encode_shard
rows = [PatchRow(bytes(20_000), "a.svs", i, i, 0.5, 0.5) for i in range(500)]
assert decode_shard(encode_shard(rows), source="test") == rows
""",
    "datasets": """
import pyarrow as pa, pyarrow.parquet as pq
from eosin.evaluation.datasets.open_dataset import open_table
path = Path(sys.argv[1], "data.parquet")
pq.write_table(pa.table({"image": [bytes(20_000)] * 500, "label": ["a"] * 500}), path)
assert len(open_table(str(path)).samples) == 500
""",
}
_COUNT = """
import contextlib, os, sys
from pathlib import Path
import cv2, numpy, pyarrow, pyarrow.parquet
with contextlib.suppress(ImportError):
    import pandas  # which Arrow imports where it is installed, and which starts threads of numexpr's
num_threads = lambda: len(os.listdir("/proc/self/task"))
before = num_threads()
{work}
assert num_threads() == before, [Path(each, "comm").read_text() for each in Path("/proc/self/task").iterdir()]
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted by Linux's /proc")
@pytest.mark.parametrize("work", _WORK)
def test_no_thread_is_left(work: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT.format(work=_WORK[work]), str(tmp_path)],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
