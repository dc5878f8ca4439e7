"""Runs that are stopped, pictures decoded by other processes, and items known by name."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from embeddings.fakes import TEXTS, FakeImage, FakeText, card, catalogue, never, text_vector
from numpy.typing import NDArray
from PIL import Image

from mmkd import EmbeddingCache
from mmkd.embeddings import EncodingSettings, RunReport
from mmkd.embeddings.inputs import Work
from mmkd.embeddings.pictures import PictureLoader
from mmkd.errors import CacheError, EmbeddingInterrupted

ROOT = Path(__file__).parents[2]


class Prepare:
    """The mean colour; kills its process on a picture of pure blue, raises on pure green."""

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        mean: NDArray[np.float32] = np.asarray(image, np.float32).mean(axis=(0, 1))
        if mean.tolist() == [0, 0, 255]:
            os._exit(9)
        if mean.tolist() == [0, 255, 0]:
            raise RuntimeError("too green")
        return mean


class PreparingImage:
    """An image encoder in two halves."""

    version: ClassVar[int] = 1
    modality = "image"
    dim = 3

    def __init__(self) -> None:
        self.prepare = Prepare()
        self.given: list[type] = []

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        return self.encode_prepared([self.prepare(image) for image in inputs])

    def encode_prepared(
        self, prepared: Sequence[NDArray[Any]], *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        self.given += [type(one) for one in prepared]
        return np.stack(prepared) + np.float32(1)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = []
    for n in range(12):
        path = tmp_path / f"{n}.png"
        Image.new("RGB", (5, 4), (20 * n, 10, 3)).save(path)
        paths.append(path)
    return paths


def test_a_stopped_run_keeps_what_it_encoded_and_goes_on(cache: EmbeddingCache) -> None:
    first, second = FakeText(), FakeText()
    told: list[int] = []
    with pytest.raises(EmbeddingInterrupted, match="32 of 50 inputs are encoded and kept"):
        cache.table(
            card(),
            catalogue(TEXTS),
            encoder_factory=lambda: first,
            batch_size=2,  # texts go to the encoder eight batches at once
            progress=lambda done, total: told.append(done),
            stop=lambda: bool(told) and told[-1] >= 20,
        )
    table = cache.table(card(), catalogue(TEXTS), encoder_factory=lambda: second)
    assert sorted(first.seen + second.seen) == sorted(map(str, TEXTS))
    for row, text in enumerate(TEXTS, 1):
        np.testing.assert_array_equal(table.vectors[row], text_vector(str(text)))


def test_a_terminated_process_commits_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(
        "item_id,text\n" + "\n".join(f"i{n},text number {n}" for n in range(60))
    )
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,i1,1\n")
    (tmp_path / "slow.yaml").write_text(
        "modality: text\nkind: embeddings.fakes:LoggingText\nlicense: none\n"
    )
    (tmp_path / "r.yaml").write_text(
        "name: r\n"
        f"data: {{root: {tmp_path}, items: {{path: items.csv, text: '{{text}}'}}, "
        "interactions: {path: events.csv}, split: leave_one_out}\n"
        "student: {backbone: sasrec, score_with: fused}\n"
        "task: next_item\nobjective: {recommendation: softmax}\n"
        f"encoders: {{text: {tmp_path / 'slow.yaml'}}}\n"
        f"cache: {{folder: {tmp_path / 'cache'}}}\nembed: {{batch_size: 1}}\n"
    )
    log = tmp_path / "log.txt"
    log.touch()
    command = [sys.executable, "-m", "mmkd", "embed", str(tmp_path / "r.yaml")]
    command += ["--trust-code", "embeddings.fakes"]
    paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    environment = {**os.environ, "FAKE_LOG": str(log), "PYTHONPATH": paths}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(log.read_text().splitlines()) < 8:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "of 60 inputs are encoded and kept; the same command goes on" in told
    done = len(log.read_text().splitlines())
    assert 8 <= done < 60
    assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
    assert len(log.read_text().splitlines()) == 60


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_prepared_elsewhere_give_the_same_vectors(
    cache: EmbeddingCache, pictures: list[Path], workers: int
) -> None:
    encoder, plain = PreparingImage(), PreparingImage()
    reports: list[RunReport] = []
    table = cache.table(
        card("FakeImage"),
        catalogue(images=[*pictures, None]),
        encoder_factory=lambda: encoder,
        batch_size=5,
        workers=workers,
        report=reports.append,
    )
    assert encoder.given == [np.ndarray] * 12
    wanted = plain.encode([Image.open(path) for path in pictures])
    np.testing.assert_array_equal(table.vectors[1:13], wanted)
    assert not table.present[13]
    (report,) = reports
    assert (report.encoded, report.by_others) == (12, 0)
    assert 0 <= report.waited <= 1 and report.per_second > 0


def test_a_picture_that_kills_its_process_costs_itself_only(
    cache: EmbeddingCache, pictures: list[Path], tmp_path: Path
) -> None:
    Image.new("RGB", (5, 4), (0, 0, 255)).save(tmp_path / "killer.png")
    Image.new("RGB", (5, 4), (0, 255, 0)).save(tmp_path / "raiser.png")
    images = [*pictures[:6], tmp_path / "killer.png", tmp_path / "raiser.png", *pictures[6:]]
    table = cache.table(
        card("FakeImage"),
        catalogue(images=images),
        encoder_factory=PreparingImage,
        batch_size=4,
        workers=2,
    )
    assert np.flatnonzero(~table.present).tolist() == [0, 7, 8]
    reasons = [item.reason for item in cache.absent(table)]
    assert "the process that decoded it died" in reasons[0]
    assert "RuntimeError: too green" in reasons[1]
    again = cache.table(card("FakeImage"), catalogue(images=images), encoder_factory=never)
    np.testing.assert_array_equal(again.vectors[:], table.vectors[:])


def test_whole_pictures_come_in_order_from_processes(pictures: list[Path]) -> None:
    work = [Work(str(n), f"item-{n}", path) for n, path in enumerate(pictures)]
    with PictureLoader(None, workers=2, ahead=3, count=12) as loader:
        loaded = list(loader.load(work))
    assert [one.item_id for one in loaded] == [one.item_id for one in work]
    for one, path in zip(loaded, pictures, strict=True):
        assert isinstance(one.content, Image.Image)
        assert one.content.tobytes() == Image.open(path).convert("RGB").tobytes()


class ByName(FakeText):
    """Vectors that were computed elsewhere, known by an item's id or row."""

    modality = "image"

    @staticmethod
    def reads(settings: dict[str, Any]) -> str:
        return "row" if settings.get("model") == "./rows" else "id"

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        vectors = super().encode(inputs)
        vectors[[name in ("item-2", "2") for name in inputs]] = np.nan
        return vectors


@pytest.mark.parametrize(("model", "name"), [("./rows", "3"), (None, "item-3")])
def test_items_known_by_id_or_row(cache: EmbeddingCache, model: str | None, name: str) -> None:
    given = card("FakeImage").model_copy(
        update={"kind": "embeddings.test_run:ByName", "model": model}
    )
    table = cache.table(given, catalogue([None] * 4), encoder_factory=ByName)
    assert table.present.tolist() == [False, True, False, True, True]
    np.testing.assert_array_equal(table.vectors[3], text_vector(name))
    (lost,) = cache.absent(table)
    assert (lost.item_id, lost.status) == ("item-2", "missing")
    assert lost.reason == "no vector in the file"


def test_rows_of_another_catalogue_are_looked_up_anew(cache: EmbeddingCache) -> None:
    given = card("FakeImage").model_copy(
        update={"kind": "embeddings.test_run:ByName", "model": "./rows"}
    )
    cache.table(given, catalogue([None] * 4), encoder_factory=ByName)
    encoder = ByName()
    cache.table(given, catalogue([None] * 3), encoder_factory=lambda: encoder)
    assert sorted(encoder.seen) == ["1", "2", "3"]


class OneTooBig(FakeText):
    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        if "text number 7" in inputs:
            raise MemoryError("no room")
        return super().encode(inputs)


def test_an_input_without_memory_is_no_fault_of_its_own(cache: EmbeddingCache) -> None:
    with pytest.raises(CacheError, match="no memory for a single input"):
        cache.table(card(), catalogue(TEXTS), encoder_factory=OneTooBig)
    table = cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    assert table.present[1:].all()


def test_a_disk_that_does_not_answer_costs_no_shard(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("mmkd.files.open_plain", fail)
    with pytest.raises(CacheError, match=r"cannot be read .*Input/output error"):
        cache.table(card(), catalogue([*TEXTS, "one more"]), encoder_factory=never)
    monkeypatch.undo()
    assert cache.table(card(), catalogue(TEXTS), encoder_factory=never).present[1:].all()


def test_a_store_without_its_description_is_described_again(cache: EmbeddingCache) -> None:
    cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    (cache.entries()[0].folder / "meta.json").unlink()
    assert cache.entries() == []
    table = cache.table(card(), catalogue(TEXTS), encoder_factory=never)
    assert [entry.card_name for entry in cache.entries()] == ["fake"]
    assert table.present[1:].all()


def test_settings_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"batch_size: got 0.*\nworkers: got -1"):
        EncodingSettings(batch_size=0, workers=-1)
    assert EncodingSettings.check(batch_tokens=0, device=3) == [
        "batch_tokens: got 0, wanted at least 1; raise it"
    ]
    assert EncodingSettings.check() == []
    assert EncodingSettings(device="cpu").resolved_device() == "cpu"
    assert EncodingSettings(device="spread").resolved_device() == "auto"


def test_a_picture_encoder_without_preparation_gets_images(
    cache: EmbeddingCache, pictures: list[Path]
) -> None:
    encoder = FakeImage()
    cache.table(
        card("FakeImage"), catalogue(images=pictures), encoder_factory=lambda: encoder, workers=1
    )
    assert encoder.seen == [(5, 4)] * 12


def test_no_space_for_a_claim_is_a_clear_error(cache: EmbeddingCache) -> None:
    cache.table(card(), catalogue(TEXTS[:3]), encoder_factory=FakeText)
    (cache.entries()[0].folder / "claims").rmdir()
    (cache.entries()[0].folder / "claims").write_text("in the way")
    with pytest.raises(CacheError, match=r"claims.*cannot be written"):
        cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
