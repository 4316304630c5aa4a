from __future__ import annotations

import pickle
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest

from flts_ray.config import DataConfig
from flts_ray.errors import DataError, Unavailable
from flts_ray.ingest.chain import Frontier, frontier
from flts_ray.ingest.segment import metadata_of, read_info
from flts_ray.ingest.verify import verify_store
from flts_ray.local.s3 import S3Server
from flts_ray.sources.inputs import find_inputs
from flts_ray.sources.read import read_input
from flts_ray.store import Created, Exists, NotFound, Store
from tests.segments import EPOCH, TOPIC, segment, stored

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def store(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Store:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    return Store.open(f"{server.uri}/{request.node.name}")


def test_what_is_put_can_be_got_listed_replaced_and_deleted(store: Store) -> None:
    assert store.list() == []
    store.put("a/b.json", b"one")
    store.put("a/b.json", b"two!")
    store.put("a b%20#?*.txt", b"")
    assert store.get("a/b.json") == b"two!"
    assert [(item.key, item.size) for item in store.list()] == [
        ("a b%20#?*.txt", 0),
        ("a/b.json", 4),
    ]
    assert [item.key for item in store.list("a")] == ["a/b.json"]
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert not store.exists("a/b.json") and store.exists("a b%20#?*.txt")
    with pytest.raises(NotFound, match=r"a/b\.json"):
        store.get("a/b.json")


def test_no_part_of_the_server_answers_strangers(store: Store, server: S3Server) -> None:
    store.put("secret", b"value" * 1000)
    place = store.root.removeprefix("s3://")
    filer, volume = (f"http://127.0.0.1:{server.ports[f'{p}.port']}" for p in ("filer", "volume"))
    for path in ("/", "/buckets/", f"/buckets/{place}/", f"/buckets/{place}/secret"):
        assert httpx.get(filer + path, headers={"Accept": "application/json"}).status_code == 401
    assert httpx.delete(f"{filer}/buckets/{place}/secret").status_code == 401
    assert httpx.post(f"{filer}/buckets/{place}/new", content=b"x").status_code == 401
    assert httpx.get(f"{volume}/1,01").status_code == 401
    assert store.get("secret") == b"value" * 1000
    assert stat.S_IMODE((server.folder / "objects").stat().st_mode) == 0o700


def test_of_racing_writers_exactly_one_wins(store: Store) -> None:
    def claim(i: int) -> Created | Exists:
        return store.put_new("champion/1", str(i).encode())

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(claim, range(32)))
    winners = [i for i, result in enumerate(results) if isinstance(result, Created)]
    assert len(winners) == 1
    assert store.get("champion/1") == str(winners[0]).encode()


def test_large_new_objects_are_conditional_too(store: Store) -> None:
    assert isinstance(store.put_new("big", b"a" * 12_000_000), Created)
    assert isinstance(store.put_new("big", b"b" * 12_000_000), Exists)
    assert store.get("big") == b"a" * 12_000_000


def test_metadata_travels_with_a_new_object(store: Store) -> None:
    facts = {"flts-end": "100", "flts-writer": "host-1 / 7=a"}
    assert isinstance(store.put_new("a/x", b"hello", facts), Created)
    assert isinstance(store.put_new("a/x", b"other", {"flts-end": "1"}), Exists)
    found = store.head("a/x")
    assert (found.key, found.size, dict(found.metadata)) == ("a/x", 5, facts)
    assert found.etag == store.list()[0].etag != ""
    store.put("plain", b"")
    assert dict(store.head("plain").metadata) == {}
    with pytest.raises(NotFound, match="nope"):
        store.head("nope")


def test_parts_of_an_object(store: Store) -> None:
    store.put("x", b"0123456789")
    assert store.get_range("x", 0, 3) == b"012"
    assert store.get_range("x", 8, 5) == b"89"
    with pytest.raises(NotFound, match="nope"):
        store.get_range("nope", 0, 1)


def test_a_listing_can_begin_behind_a_key(store: Store) -> None:
    for key in ("a/1", "a/2", "a/3/x", "b"):
        store.put(key, b"")
    assert [item.key for item in store.list("a", "a/1")] == ["a/2", "a/3/x"]
    assert [item.key for item in store.list("a", "a/15")] == ["a/2", "a/3/x"]
    assert [item.key for item in store.list("", "a/2")] == ["a/3/x", "b"]
    assert store.list("a", "a/3/x") == []


def test_the_probe_is_content_and_leaves_nothing(store: Store) -> None:
    store.probe_put_new()
    assert store.list() == []


def test_segments_keep_their_facts_in_the_metadata(store: Store) -> None:
    for begin, end in pairwise((0, 10, 25, 30)):
        stored(store, begin, end)
    data, empty = segment(30, 40, [], lost=10)
    store.put_new(empty.key, data, metadata_of(empty))
    assert store.head(empty.key).metadata == metadata_of(empty)
    assert read_info(store, empty.key) == empty
    assert frontier(store, TOPIC, EPOCH, 0, (25, "10"), 0) == Frontier(40, 30)
    report = verify_store(store, TOPIC, EPOCH, {0: 40}, deep=True)
    assert report.ok and (report.segments, report.rows, report.lost) == (4, 24, 10)
    store.put(empty.key, data)
    assert not store.head(empty.key).metadata
    assert read_info(store, empty.key) == empty


def test_folders_travel_whole(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "model.json").write_bytes(b"{}")
    (source / "deep" / "w.bin").write_bytes(bytes(range(256)) * 50_000)
    assert store.upload_dir(source, "runs/7") == 2
    assert store.download_dir("runs/7", tmp_path / "copy") == 2
    for name in ("model.json", "deep/w.bin"):
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()


def test_scans_of_parquet(store: Store) -> None:
    system, base = store.filesystem()
    for part in range(3):
        table = pa.table({"part": [part] * 4, "x": range(4)})
        pq.write_table(table, f"{base}/set/part-{part}.parquet", filesystem=system)
    found = pds.dataset(f"{base}/set", filesystem=system).to_table(filter=pds.field("part") > 0)
    assert sorted(found.column("x").to_pylist()) == sorted([*range(4)] * 2)
    assert [item.key for item in store.list("set")] == [f"set/part-{i}.parquet" for i in range(3)]


def test_a_store_opens_itself_again_elsewhere(store: Store) -> None:
    store.put("k", b"v")
    assert pickle.loads(pickle.dumps(store)).get("k") == b"v"  # noqa: S301


def test_inputs_from_a_bucket(store: Store) -> None:
    store.put("raw/2020/a.csv", b"ds,y\n2020-01-01,1\n2020-01-02,2\n")
    store.put("raw/2020/_SUCCESS.csv", b"")
    store.put("raw/2021/b c.csv", b"ds,y\n2021-01-01,3\n")
    store.put("raw/notes.txt", b"")
    data = DataConfig(path=store.uri("raw"))
    inputs = find_inputs(data)
    assert [item.uri for item in inputs] == [
        store.uri("raw/2020/a.csv"),
        store.uri("raw/2021/b c.csv"),
    ]
    assert [read_input(item, data).column("y").to_pylist() for item in inputs] == [[1, 2], [3]]
    for path, names in {
        "raw/*.csv": [],
        "raw/*/?.csv": ["a.csv"],
        "raw/202[!0]/*": ["b c.csv"],
        "raw/**/*.csv": ["a.csv", "b c.csv"],
        "raw/2020/a.csv": ["a.csv"],
    }.items():
        if names:
            assert [i.name for i in find_inputs(DataConfig(path=store.uri() + "/" + path))] == names
        else:
            with pytest.raises(DataError, match="matches no file"):
                find_inputs(DataConfig(path=store.uri() + "/" + path))


def test_fingerprints_follow_the_content(store: Store) -> None:
    data = DataConfig(path=store.uri("x.csv"))
    store.put("x.csv", b"ds,y\n2020-01-01,1\n")
    first = find_inputs(data)[0].fingerprint
    store.put("x.csv", b"ds,y\n2020-01-01,1\n")
    assert find_inputs(data)[0].fingerprint == first
    store.put("x.csv", b"ds,y\n2020-01-01,2\n")
    assert find_inputs(data)[0].fingerprint != first


def test_wrong_keys_and_buckets_are_explained(
    store: Store, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match="bucket"):
        Store.open("s3://not-there").list()
    assert not server.administration().bucket_exists("not-there")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    locked_out = Store.open(store.root)
    for act in (locked_out.list, partial(locked_out.get, "k"), partial(locked_out.put, "k", b"")):
        with pytest.raises(Unavailable, match=r"keys|AWS_SECRET_ACCESS_KEY"):
            act()


def test_a_stopped_server_keeps_its_objects_and_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = S3Server(tmp_path, bucket="kept")
    for round_ in (1, 2):
        with server:
            for name, value in server.environment().items():
                monkeypatch.setenv(name, value)
            store = Store.open("s3://kept/p")
            store.put(f"k{round_}", b"v")
    assert len(server.environment()) == 4
    with pytest.raises(Unavailable, match=r"AWS_ENDPOINT_URL"):
        store.get("k1")
    with server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.environment()["AWS_ENDPOINT_URL"])
        assert [item.key for item in Store.open("s3://kept/p").list()] == ["k1", "k2"]
