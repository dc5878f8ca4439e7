"""A cache on an object store, against an S3 server on this machine's loopback."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from embeddings.fakes import DIM, TEXTS, FakeText, card, catalogue, never, text_vector
from filelock import FileLock
from typer.testing import CliRunner

from mmkd import EmbeddingCache
from mmkd.cli.app import app
from mmkd.column_files import read_parquet, write_parquet
from mmkd.config.plan import plan
from mmkd.config.recipe import load_recipe
from mmkd.embeddings.inputs import text_key
from mmkd.embeddings.remote import RemoteCache
from mmkd.embeddings.shards import ShardStore
from mmkd.errors import CacheError, Interrupted
from mmkd.files import read_json, write_sealed_json

obstore = pytest.importorskip("obstore")
pytest.importorskip("obstore.exceptions")
boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto.server")
EXPECTED = np.stack([np.zeros(DIM, np.float32), *(text_vector(str(text)) for text in TEXTS)])


class Bucket:
    """A bucket of a server that can be stopped and started again."""

    def __init__(self) -> None:
        self.server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        self.server.start()
        _, self.port = self.server.get_host_and_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def create(self) -> None:
        self.client = boto3.client("s3", endpoint_url=self.endpoint)
        self.client.create_bucket(Bucket="vectors")

    def start(self) -> None:
        self.server = moto.ThreadedMotoServer("127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def keys(self, end: str = "") -> list[str]:
        listed = self.client.list_objects_v2(Bucket="vectors").get("Contents", [])
        return [one["Key"] for one in listed if one["Key"].endswith(end)]

    def read(self, key: str) -> bytes:
        content: bytes = self.client.get_object(Bucket="vectors", Key=key)["Body"].read()
        return content

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket="vectors", Key=key, Body=content)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    made = Bucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.endpoint)
    made.create()
    yield made
    made.client.delete_objects(
        Bucket="vectors",
        Delete={"Objects": [{"Key": key} for key in made.keys()] or [{"Key": "-"}]},
    )
    made.client.delete_bucket(Bucket="vectors")
    made.server.stop()


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., EmbeddingCache]:
    """A cache of a machine that nothing is on yet."""
    names = iter(range(100))
    url = "s3://vectors/some/prefix"

    def new(url: str = url) -> EmbeddingCache:
        return EmbeddingCache(url, shard_size=16, mirror=tmp_path / f"mirror{next(names)}")

    return new


Machine = Callable[..., EmbeddingCache]


def test_another_machine_reads_everything_and_encodes_nothing(
    bucket: Bucket, machine: Machine
) -> None:
    first, other = machine(), machine()
    assert not other.holds(card())
    table = first.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    assert table.vectors[:].tobytes() == EXPECTED.tobytes()
    # 50 texts in shards of 16: 4 objects of records and 4 of vectors, and what describes the store
    assert [len(bucket.keys(end)) for end in (".parquet", ".npy", "")] == [4, 4, 10]
    assert other.holds(card())  # so its weights need not be there
    before = {key: bucket.read(key) for key in bucket.keys()}
    read = other.table(card(), catalogue(TEXTS), encoder_factory=never)
    assert read.vectors[:].tobytes() == EXPECTED.tobytes() and read.key == table.key
    assert {key: bucket.read(key) for key in bucket.keys()} == before
    # the mirror is a cache's folder like any other
    alone = EmbeddingCache(other.folder).table(card(), catalogue(TEXTS), encoder_factory=never)
    assert alone.vectors[:].tobytes() == EXPECTED.tobytes()


def test_shards_that_are_fetched_take_numbers_of_the_mirror(
    bucket: Bucket, machine: Machine
) -> None:
    first, other = machine(), machine()
    own = [f"only here {n}" for n in range(20)]
    EmbeddingCache(other.folder, shard_size=16).table(
        card(), catalogue(own), encoder_factory=FakeText
    )
    first.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    both = other.table(card(), catalogue([*own, *TEXTS]), encoder_factory=never)
    expected = np.stack([text_vector(str(text)) for text in [*own, *TEXTS]])
    assert np.array_equal(both.vectors[1:], expected)
    # and what the mirror had before is sent
    assert len(bucket.keys(".parquet")) == 4 + 2
    again = machine().table(card(), catalogue([*own, *TEXTS]), encoder_factory=never)
    assert np.array_equal(again.vectors[1:], expected)


def test_of_two_writers_of_a_chunk_one_is_kept(bucket: Bucket, machine: Machine) -> None:
    together = threading.Barrier(2)

    class Marked(FakeText):
        def __init__(self, mark: float) -> None:
            super().__init__(spoil=lambda text: np.float32(mark))
            together.wait(30)  # both have found nothing there, and send only after this

    def encode(cache: EmbeddingCache, mark: float) -> None:
        cache.table(card(), catalogue(TEXTS), encoder_factory=lambda: Marked(mark))

    writers = [threading.Thread(target=encode, args=(machine(), mark)) for mark in (100.0, 200.0)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(bucket.keys(".parquet")) == 4
    read = machine().table(card(), catalogue(TEXTS), encoder_factory=never).vectors[:]
    marks = np.unique(np.round((read[1:] - EXPECTED[1:]).mean(axis=1)))
    assert set(marks.tolist()) <= {100.0, 200.0}


@pytest.mark.parametrize("end", [".npy", ".parquet"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_object_costs_its_chunk_and_is_replaced(
    bucket: Bucket, machine: Machine, end: str, cut: bool
) -> None:
    machine().table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    key = bucket.keys(end)[0]
    content = bytearray(bucket.read(key))
    content[len(content) // 2] ^= 1
    bucket.write(key, bytes(content[:-9] if cut else content))
    records = bucket.keys(".parquet")
    encoder = FakeText()
    table = machine().table(card(), catalogue(TEXTS), encoder_factory=lambda: encoder)
    assert table.vectors[:].tobytes() == EXPECTED.tobytes()
    assert len(encoder.seen) in (16, 2)  # one chunk's
    assert bucket.keys(".parquet") == records
    again = machine().table(card(), catalogue(TEXTS), encoder_factory=never)
    assert again.vectors[:].tobytes() == EXPECTED.tobytes()


def test_a_network_that_breaks_loses_nothing(
    bucket: Bucket, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.embeddings.remote._RETRIES", 1)
    cache = machine()

    class Breaking(FakeText):
        def encode(self, *args: object, **kwargs: object) -> np.ndarray:
            if len(self.seen) == 16:  # the first chunk is committed and sent
                assert len(bucket.keys(".parquet")) == 1
                bucket.server.stop()
            return super().encode(*args, **kwargs)  # type: ignore[arg-type]

    with pytest.raises(CacheError, match=r"s3://vectors/some/prefix: cannot be") as told:
        cache.table(card(), catalogue(TEXTS), encoder_factory=Breaking)
    assert f"kept in {cache.folder} and sent by the next run" in str(told.value)
    with pytest.raises(CacheError, match="look after the network"):
        cache.table(card(), catalogue(TEXTS), encoder_factory=never)
    # without the network by the mirror's name, as the message says
    alone = EmbeddingCache(cache.folder).table(card(), catalogue(TEXTS), encoder_factory=never)
    assert alone.vectors[:].tobytes() == EXPECTED.tobytes()
    bucket.start()
    cache.table(card(), catalogue(TEXTS), encoder_factory=never)
    assert len(bucket.keys(".parquet")) == 4
    read = machine().table(card(), catalogue(TEXTS), encoder_factory=never)
    assert read.vectors[:].tobytes() == EXPECTED.tobytes()


@pytest.mark.parametrize("end", [".npy", ".parquet"])
def test_what_cannot_be_fetched_for_now_is_not_taken_for_damaged(
    bucket: Bucket, machine: Machine, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    machine().table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    before, get, broken = bucket.keys(), obstore.get, bucket.keys(end)[2]

    def breaking(store: object, path: str) -> object:
        if broken.endswith(path):
            raise obstore.exceptions.GenericError("connection reset")
        return get(store, path)

    monkeypatch.setattr(obstore, "get", breaking)
    other = machine()
    with pytest.raises(CacheError, match=r"cannot be read \(connection reset\); look after"):
        other.table(card(), catalogue(TEXTS), encoder_factory=never)
    assert bucket.keys() == before
    monkeypatch.setattr(obstore, "get", get)
    read = other.table(card(), catalogue(TEXTS), encoder_factory=never)  # goes on
    assert read.vectors[:].tobytes() == EXPECTED.tobytes()


def test_a_bucket_that_is_not_there_is_named(bucket: Bucket, machine: Machine) -> None:
    with pytest.raises(CacheError, match=r"s3://nowhere/x: .*NoSuchBucket.*make it, or correct"):
        machine("s3://nowhere/x").table(card(), catalogue(TEXTS), encoder_factory=never)


def test_a_newer_format_is_refused_and_left_alone(bucket: Bucket, machine: Machine) -> None:
    cache = machine()
    cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    (meta,) = cache.folder.glob("*/meta.json")
    write_sealed_json(meta, read_json(meta) | {"format_version": 2})
    bucket.write(bucket.keys("meta.json")[0], meta.read_bytes())
    before = bucket.keys()
    with pytest.raises(CacheError, match="cache format 2"):
        machine().table(card(), catalogue(TEXTS), encoder_factory=never)
    assert bucket.keys() == before


def test_a_folder_named_as_an_address_is_an_object_store_too(tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'store'}"
    for mirror, factory in (("a", FakeText), ("b", never)):
        cache = EmbeddingCache(url, mirror=tmp_path / mirror)
        table = cache.table(card(), catalogue(TEXTS), encoder_factory=factory)
        assert table.vectors[:].tobytes() == EXPECTED.tobytes()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"folder": "s3://me:hush@bucket/x"}, "it may hold no password"),
        ({"folder": "s3://bucket/x?secret=hush"}, "AWS_ACCESS_KEY_ID"),
        ({"folder": "hdfs://bucket/x"}, "got 'hdfs', wanted one of s3, gs"),
        ({"folder": "s3://[hush"}, "wanted such as s3://bucket/prefix"),
        ({"folder": "s3:///x"}, "wanted such as s3://bucket/prefix"),
        ({"folder": "cache", "mirror": "m"}, "which needs none"),
    ],
)
def test_an_address_that_can_be_none_is_refused_at_once(options: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        EmbeddingCache(**options)  # type: ignore[arg-type]
    assert "hush" not in str(error.value)


def test_the_commands_of_a_cache_name_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    monkeypatch.setenv("COLUMNS", "1000")
    for line in (["cache", "ls"], ["cache", "verify"], ["cache", "gc"], ["ls", "cache"]):
        done = CliRunner().invoke(app, [*line, "--cache", "s3://bucket/x"])
        assert done.exit_code == 2 and "/elsewhere/mmkd/s3-bucket-x-" in done.output
        done = CliRunner().invoke(app, line, env={"MMKD_CACHE": "s3://bucket/x"})
        assert done.exit_code == 2


@pytest.mark.parametrize("place", ["recipe", "environment"])
def test_a_recipes_cache_is_on_the_object_store_that_is_named(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    overrides = ["data.root=.", "cache.mirror=/elsewhere"]
    if place == "recipe":
        overrides.append("cache.folder=s3://bucket/x")
    else:
        monkeypatch.setenv("MMKD_CACHE", "s3://bucket/x")
    planned = plan(load_recipe("quickstart", overrides), needs_data=False, needs_encoders=False)
    assert planned.cache["folder"] == "s3://bucket/x"
    cache = EmbeddingCache(**planned.cache)
    assert cache._remote_url == "s3://bucket/x" and cache.folder == Path("/elsewhere")


def test_an_address_in_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMKD_CACHE", "s3://bucket/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert EmbeddingCache().folder.parent == Path("/elsewhere/mmkd")
    assert load_recipe("quickstart", ["data.root=."]).cache.get("folder") is None


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., EmbeddingCache]:
    """A cache of a machine, by its name; all have one store, a folder named as an address."""

    def new(name: str, **options: Any) -> EmbeddingCache:
        url = f"file://{tmp_path / 'store'}"
        return EmbeddingCache(url, shard_size=16, mirror=tmp_path / name, **options)

    return new


def objects(tmp_path: Path) -> dict[Path, bytes]:
    found = (tmp_path / "store").rglob("*")
    return {path: path.read_bytes() for path in found if path.is_file()}


@pytest.mark.parametrize("cut", [False, True])
def test_vectors_gone_or_cut_in_the_mirror_are_fetched_again(
    store: Machine, tmp_path: Path, cut: bool
) -> None:
    store("a").table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    vectors = sorted((tmp_path / "a").glob("*/shards/*.npy"))[1]
    if cut:
        vectors.write_bytes(vectors.read_bytes()[:-9])
    else:
        vectors.unlink()
    table = store("a").table(card(), catalogue(TEXTS), encoder_factory=never)
    assert table.vectors[:].tobytes() == EXPECTED.tobytes()


def test_a_failure_that_is_sent_late_hides_no_vector(store: Machine, tmp_path: Path) -> None:
    one = catalogue(["a text"])

    def failing(text: str) -> float:
        return 0.0 if text == "a short text" else float("nan")  # copes with the trivial one

    def fails() -> FakeText:
        return FakeText(spoil=failing)

    # two machines that are cut off, of which one cannot encode the text
    for name, factory in (("a", FakeText), ("b", fails)):
        own = EmbeddingCache(tmp_path / name, shard_size=1)
        own.table(card(), catalogue(["another"]), encoder_factory=FakeText)
        found = own.table(card(), catalogue(["another", "a text"]), encoder_factory=factory)
        assert found.present[2] == (name == "a")
    expected = text_vector("a text")
    for name in ("a", "b", "c", "a"):  # the failure is sent after the vector
        table = store(name).table(card(), one, encoder_factory=never)
        assert np.array_equal(table.vectors[1], expected), name


def test_records_of_a_version_to_come_are_left_alone(store: Machine, tmp_path: Path) -> None:
    store("a").table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    records = next(path for path in objects(tmp_path) if path.suffix == ".parquet")
    frame, kept = read_parquet(records)
    write_parquet(records, frame.with_columns(more=pl.lit(1)), {"mmkd.shard": kept["mmkd.shard"]})
    before = objects(tmp_path)
    with pytest.raises(CacheError, match="no shard that this version of mmkd knows; upgrade"):
        store("b").table(card(), catalogue(TEXTS), encoder_factory=never)
    assert objects(tmp_path) == before


def test_a_format_to_come_is_seen_by_a_mirror_that_is_older(store: Machine, tmp_path: Path) -> None:
    store("a").table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    meta = next(path for path in objects(tmp_path) if path.name == "meta.json")
    write_sealed_json(meta, read_json(meta) | {"format_version": 2})
    with pytest.raises(CacheError, match="cache format 2"):
        store("a").table(card(), catalogue(["new"]), encoder_factory=never)


def test_a_damaged_description_is_replaced_in_the_store(store: Machine, tmp_path: Path) -> None:
    store("a").table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    meta = next(path for path in objects(tmp_path) if path.name == "meta.json")
    sound = meta.read_bytes()
    meta.write_bytes(sound[:-5])
    for _ in range(2):  # written again, and then sent
        store("b").table(card(), catalogue(TEXTS), encoder_factory=never)
    assert meta.read_bytes() == sound


def test_a_shard_whose_number_is_reused_while_it_is_sent_keeps_its_name(
    store: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EmbeddingCache(tmp_path / "a", shard_size=16)
    cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    (folder,) = (path.parent for path in (tmp_path / "a").glob("*/meta.json"))
    shards, put = folder / "shards", RemoteCache._put

    def reusing(remote: RemoteCache, path: str, content: bytes) -> None:
        put(remote, path, content)
        if path.endswith(".npy"):  # the records are sent next
            for end in (".npy", ".parquet"):
                shutil.copy(shards / f"000002{end}", shards / f"000001{end}")

    monkeypatch.setattr(RemoteCache, "_put", reusing)
    RemoteCache(f"file://{tmp_path / 'store'}", tmp_path / "a").send(ShardStore(folder), 1)
    monkeypatch.undo()
    (sent,) = (path for path in objects(tmp_path) if path.suffix == ".parquet")
    keys = read_parquet(sent)[0]["key"]
    assert sent.stem == text_key("\n".join(keys))


def test_who_waits_for_another_to_sync_can_be_stopped(store: Machine, tmp_path: Path) -> None:
    store("a").table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    (claims,) = (tmp_path / "a").glob("*/claims")
    with FileLock(claims / "sync.lock"), pytest.raises(Interrupted, match="what was fetched"):
        store("a").table(card(), catalogue(TEXTS), encoder_factory=never, stop=lambda: True)
