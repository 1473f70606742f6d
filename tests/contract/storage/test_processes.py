"""Several processes on one store, and processes that are killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from eosin.storage import ByteRange, Store, open_store

_CLAIM = """
import sys
from eosin.storage import PreconditionFailed, open_store
store = open_store(sys.argv[1])
store.exists("warm-up")
print("ready", flush=True)
sys.stdin.readline()
won = 0
for number in range(10):
    try:
        store.put(f"claims/{number}", sys.argv[2].encode(), if_none_match=True)
        won += 1
    except PreconditionFailed:
        pass
print(won)
"""

_REWRITE = """
import sys
from eosin.storage import open_store
store = open_store(sys.argv[1])
number = 0
while True:
    store.put("k", bytes([number % 256]) * 3_000_000)
    number += 1
    print(number, flush=True)
"""


def _start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_of_processes_that_claim_at_once_each_claim_has_one_winner(store: Store, store_uri: str) -> None:
    claimants = [_start(_CLAIM, store_uri, str(number)) for number in range(3)]
    for claimant in claimants:
        assert claimant.stdout is not None and claimant.stdout.readline() == "ready\n"
    for claimant in claimants:
        assert claimant.stdin is not None
        claimant.stdin.write("go\n")
        claimant.stdin.flush()
    won = {str(number): int(claimant.communicate(timeout=60)[0]) for number, claimant in enumerate(claimants)}
    assert sum(won.values()) == 10
    owners = [store.get(f"claims/{number}").decode() for number in range(10)]
    assert {name: owners.count(name) for name in won} == won


def test_a_killed_writer_leaves_a_whole_object(store: Store, store_uri: str) -> None:
    for _ in range(3):
        writer = _start(_REWRITE, store_uri)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.03)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        data = store.get("k")
        assert len(data) == 3_000_000
        assert len(set(data)) == 1
        assert [item.key for item in store.list()] == ["k"]


def test_what_a_killed_writer_left_on_disk_is_hidden_and_can_be_removed(tmp_path: Path) -> None:
    from eosin.storage.file import FileStore

    store = FileStore(tmp_path)
    store.put("a/k", b"x")
    (tmp_path / "a" / ".eosin-tmp-123-abc").write_bytes(b"half")
    assert [item.key for item in store.list()] == ["a/k"]
    assert store.remove_unfinished(older_than_s=3600) == []
    os.utime(tmp_path / "a" / ".eosin-tmp-123-abc", (1, 1))
    assert store.remove_unfinished(older_than_s=3600) == [str(tmp_path / "a" / ".eosin-tmp-123-abc")]
    assert store.get("a/k") == b"x"


def test_a_forked_child_reads_and_writes_as_its_parent_does(store: Store) -> None:
    store.put("k", b"0123456789")
    assert store.get_ranges([ByteRange("k", 1, 2)]) == [b"12"]
    child = os.fork()
    if child == 0:
        try:
            ok = store.get_ranges([ByteRange("k", 3, 2), ByteRange("k", 20, 5)]) == [b"34", b""]
            store.put("from child", b"x")
            os._exit(0 if ok else 3)
        finally:
            os._exit(4)
    assert os.waitpid(child, 0)[1] == 0
    assert store.get_ranges([ByteRange("k", 1, 2)]) == [b"12"]
    assert store.get("from child") == b"x"


def test_a_store_opened_before_the_fork_and_never_used_works_in_the_child(store_uri: str) -> None:
    code = (
        "import os, sys; from eosin.storage import open_store, ByteRange\n"
        "store = open_store(sys.argv[1]); store.put('k', b'abc')\n"
        "if os.fork() == 0: os._exit(store.get_ranges([ByteRange('k', 1, 1)]) != [b'b'])\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code, store_uri], timeout=60).returncode == 0
    assert open_store(store_uri).get("k") == b"abc"
