from __future__ import annotations

import errno
import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flts_ray.errors import ConfigError, DataError, Unavailable
from flts_ray.store import Created, Denied, Exists, FolderStore, NotFound, ObjectInfo, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "root"))


def test_what_is_put_can_be_got_listed_replaced_and_deleted(store: Store) -> None:
    assert store.list() == []
    store.put("a/b.json", b"one")
    store.put("a/b.json", b"two!")
    store.put("a.txt", b"")
    assert store.get("a/b.json") == b"two!"
    assert store.list() == [ObjectInfo("a.txt", 0), ObjectInfo("a/b.json", 4)]
    assert store.list("a") == [ObjectInfo("a/b.json", 4)]
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert not store.exists("a/b.json") and store.exists("a.txt")


def test_a_missing_key_is_not_found_and_names_its_address(store: Store) -> None:
    store.put("folder/x", b"1")
    for key in ("nope", "folder"):
        with pytest.raises(NotFound, match=key):
            store.get(key)


def test_put_new_keeps_the_first(store: Store) -> None:
    assert store.put_new("lock", b"first") == Created("lock")
    assert store.put_new("lock", b"second") == Exists("lock")
    assert store.get("lock") == b"first"
    assert [item.key for item in store.list()] == ["lock"]


def test_of_racing_writers_exactly_one_wins(store: Store) -> None:
    def claim(i: int) -> Created | Exists:
        return store.put_new("champion/1", str(i).encode() * 1000)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(claim, range(32)))
    winners = [i for i, result in enumerate(results) if isinstance(result, Created)]
    assert len(winners) == 1
    assert store.get("champion/1") == str(winners[0]).encode() * 1000


def test_a_failed_write_leaves_the_old_bytes_and_no_part(store: Store, tmp_path: Path) -> None:
    store.put("dir/file", b"old")
    source = tmp_path / "broken"
    source.mkdir()
    (source / "file").symlink_to(tmp_path / "root" / "dir" / "gone")
    with pytest.raises(NotFound):
        store.upload_dir(source, "dir")
    assert store.get("dir/file") == b"old"
    assert sorted(p.name for p in (tmp_path / "root").rglob("*")) == ["dir", "file"]


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a//b", "a/./b", "", "a\\b", "a\nb", "a/"])
def test_keys_stay_inside(store: Store, key: str) -> None:
    for act in (store.get, store.exists, store.delete, store.head):
        with pytest.raises(DataError, match="store key"):
            act(key)
    with pytest.raises(DataError, match="store key"):
        store.put(key, b"")
    with pytest.raises(DataError, match="store key"):
        store.put_new(key, b"")


def test_a_key_below_a_file_is_unavailable(store: Store) -> None:
    store.put("a", b"")
    with pytest.raises(Unavailable, match=r"a/b"):
        store.put("a/b", b"")


def test_what_may_not_be_looked_at_is_denied(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path, **_: bool) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    store.put("a", b"")
    for ask in (store.head, store.exists, store.get):
        with pytest.raises(Denied, match="too long"):
            ask("x" * 300)
    monkeypatch.setattr(Path, "stat", closed)
    for ask in (store.head, store.exists):
        with pytest.raises(Denied, match="rights"):
            ask("a")


def test_what_is_no_file_is_not_there(store: Store, tmp_path: Path) -> None:
    store.put("a", b"")
    (tmp_path / "root" / "loop").symlink_to("loop")
    (tmp_path / "root" / "folder").mkdir()
    for key in ("a/b", "loop", "folder", "none"):
        assert not store.exists(key)
        with pytest.raises(NotFound, match=key):
            store.head(key)


def test_folders_travel_whole(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "model.json").write_bytes(b"{}")
    (source / "deep" / "er" / "w.bin").write_bytes(bytes(range(256)) * 9000)
    assert store.upload_dir(source, "runs/7") == 2
    assert [item.key for item in store.list("runs")] == [
        "runs/7/deep/er/w.bin",
        "runs/7/model.json",
    ]
    assert store.download_dir("runs/7", tmp_path / "copy") == 2
    for name in ("model.json", "deep/er/w.bin"):
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()
    with pytest.raises(NotFound):
        store.download_dir("runs/8", tmp_path / "none")


def test_a_prefix_is_a_folder_not_a_start_of_names(store: Store) -> None:
    store.put("run/1", b"")
    store.put("run-2/1", b"")
    assert [item.key for item in store.list("run")] == ["run/1"]


def test_a_listing_can_begin_behind_a_key(store: Store) -> None:
    for key in ("a/1", "a/2", "a/3/x", "b"):
        store.put(key, b"")

    def keys(prefix: str, after: str) -> list[str]:
        return [item.key for item in store.list(prefix, after)]

    assert keys("a", "a/1") == ["a/2", "a/3/x"]
    assert keys("a", "a/15") == ["a/2", "a/3/x"]
    assert keys("a", "a/3/x") == []
    assert keys("a", "0") == ["a/1", "a/2", "a/3/x"]
    assert keys("", "a/2") == ["a/3/x", "b"]


def test_parts_of_an_object_and_its_size(store: Store) -> None:
    store.put_new("a/x", b"0123456789", {"end": "7"})
    assert store.head("a/x") == ObjectInfo("a/x", 10)
    assert store.get_range("a/x", 0, 3) == b"012"
    assert store.get_range("a/x", 8, 5) == b"89"
    for key in ("a", "a/y"):
        with pytest.raises(NotFound, match=key):
            store.head(key)
        with pytest.raises(NotFound, match=key):
            store.get_range(key, 0, 1)


def test_the_probe_leaves_nothing(store: Store) -> None:
    store.probe_put_new()
    assert store.list() == []


class Careless(FolderStore):
    """Replaces where it should refuse."""

    def put_new(
        self, key: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> Created | Exists:
        self.put(key, data)
        return Created(key)


class Liar(Careless):
    """Refuses with words only."""

    def put_new(
        self, key: str, data: bytes, metadata: Mapping[str, str] | None = None
    ) -> Created | Exists:
        super().put_new(key, data)
        return Exists(key)


@pytest.mark.parametrize("kind", [Careless, Liar])
def test_the_probe_finds_out(kind: type[FolderStore], tmp_path: Path) -> None:
    store = kind(str(tmp_path))
    with pytest.raises(Unavailable, match=r"exactly-once.*conditional writes"):
        store.probe_put_new()
    assert store.list() == []


def test_a_listing_of_facts_can_be_a_set(store: Store) -> None:
    store.put("a", b"1")
    assert {*store.list(), store.head("a")} == {ObjectInfo("a", 1)}


def test_scans_see_the_same_files(store: Store) -> None:
    system, base = store.filesystem()
    store.put("t/.keep", b"")
    pq.write_table(pa.table({"x": [1, 2]}), f"{base}/t/p.parquet", filesystem=system)
    assert [item.key for item in store.list("t")] == ["t/.keep", "t/p.parquet"]
    with system.open_input_file(f"{base}/t/p.parquet") as stream:
        assert pq.read_table(stream).column("x").to_pylist() == [1, 2]


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open("here")
    assert store.uri("a/b") == str(tmp_path / "here/a/b")
    assert Store.open(f"file://{tmp_path}/x").root == str(tmp_path / "x")
    bucket = Store.open("s3://bucket/some/prefix/")
    assert bucket.uri("k") == "s3://bucket/some/prefix/k"
    assert bucket.uri() == "s3://bucket/some/prefix"
    for wrong in ("s3://", "gs://bucket", "http://x/y"):
        with pytest.raises(ConfigError, match="no store"):
            Store.open(wrong)


def test_a_store_travels_as_its_address_without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ali")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    travelled = pickle.dumps(Store.open("s3://bucket/p"))
    assert b"sesame" not in travelled
    assert pickle.loads(travelled).root == "s3://bucket/p"  # noqa: S301


def test_half_a_key_pair_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sesame")
    with pytest.raises(Unavailable, match=r"keys.*AccessKeyId"):
        Store.open("s3://bucket/p")
