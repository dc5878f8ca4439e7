"""The page: complete in itself, and what strangers wrote is text in it."""

import base64
import hashlib
import json
import re
import shutil
import sys
from io import BytesIO
from pathlib import Path

import pytest
from commands import printed
from hostile_runs import HOSTILE, USER
from markup import Page
from PIL import Image

import mmkd
from mmkd import MmkdError, Run
from mmkd.errors import EmbeddingInterrupted, RunError
from mmkd.report import page as report_page
from mmkd.runs.folder import RunFolder
from mmkd.terminal import printable


@pytest.fixture(scope="module")
def html(run: Run, ids_only: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("report") / "new" / "report.html"
    assert run.report(file, ids_only) == file
    return file.read_text("utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_a_stranger_wrote_is_markup(page: Page) -> None:
    assert page.open == []
    charts = page.values("class").count("chart")
    assert charts == 7 and page.tags["script"] == charts + 2  # Vega, and what draws them
    assert page.tags["style"] == 1 and page.tags["i"] == page.tags["b"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert all(value.startswith("data:image/webp;base64,") for value in page.values("src"))
    assert all(re.fullmatch(r"#[a-z]+", value) for value in page.values("href"))
    assert not page.values("style")  # a stricter page's policy forbids it


def test_what_a_stranger_wrote_is_shown_as_it_is(page: Page) -> None:
    texts = {text.strip() for text in page.texts}
    for words in HOSTILE:
        shown = [text for text in texts if text.startswith(printable(words).strip())]
        assert shown, words
    assert any(text.startswith(USER) for text in texts)
    assert "<b>kdsr<" in texts
    assert not any("\x1b" in text or "\u202e" in text for text in page.texts)


def test_only_the_pages_own_scripts_may_run_and_no_request_leaves_it(page: Page) -> None:
    run: list[str] = []
    data: list[str] = []
    for kind, text in page.scripts:
        (data if kind == "application/json" else run).append(text)
    assert len(run) == 2 and "vegaEmbed(" in run[1]
    for text in data:
        assert "<" not in text
        assert json.loads(text)["width"] == "container"
    policy = next(v for v in page.values("content") if "script-src" in v)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in run]
    assert re.findall(r"'sha256-([^']+)'", policy) == digests
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'" and parts["img-src"] == "data:"
    assert "unsafe-inline" not in parts["script-src"]


def test_every_section_is_there_and_tells_of_this_run(page: Page, run: Run, ids_only: Run) -> None:
    sections = {"runs", "headline", "slices", "training", "neighbours", "users", "types", "lists"}
    assert sections | {"absent", "cost", "recipe"} <= set(page.values("id"))
    assert "missing" not in page.values("class")
    text = " ".join(page.texts)
    for one in (run, ids_only):
        test = one.result["test"]
        low, high = test["intervals"]["NDCG@10"]
        assert f"{test['metrics']['NDCG@10']:.4f}" in text
        assert f"[{low:.4f}, {high:.4f}]" in text
    found = run.compare(ids_only).row(0, named=True)
    assert f"{found['difference']:+.4f}".replace("-", "\N{MINUS SIGN}") in text
    assert f"{found['p_holm']:.4f}" in text
    assert run.absent["image"] and not run.absent["text"]
    assert all(f"{reason} {count} " in text for reason, count in run.absent["image"].items())
    assert "every item has a vector" in text
    assert f"{run.result['parameters']:,}" in text
    assert "holistic_weight: 0.4" in text


def test_pictures_are_small_and_have_words(page: Page) -> None:
    assert len(page.values("src")) > 50
    assert page.tags["img"] == len(page.values("alt")) == len(page.values("src"))
    for uri in page.values("src")[:5]:
        with Image.open(BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
            assert image.format == "WEBP" and max(image.size) <= 160
    assert page.values("lang") == ["en"] and page.tags["h1"] == page.tags["main"] == 1


def test_a_run_whose_data_is_gone_tells_so_and_shows_the_rest(
    run: Run, shop_of_strangers: Path, tmp_path: Path
) -> None:
    shutil.copytree(run.folder.path, tmp_path / "run")
    log = shop_of_strangers / "data" / "interactions.csv.gz"
    log.rename(tmp_path / "log")
    try:
        file = Run(tmp_path / "run").report(tmp_path / "report.html")
    finally:
        (tmp_path / "log").rename(log)
    page = Page(file.read_text("utf-8"))
    told = [text for text in page.texts if "Not shown" in text]
    assert len(told) == 3 and all("interactions.csv.gz" in text for text in told)
    assert f"{run.result['test']['metrics']['HR@10']:.4f}" in " ".join(page.texts)
    assert "types" in page.values("id") and "runs" not in page.values("id")


def test_a_run_without_test_tells_of_validation(run: Run, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(run.folder.path, folder.path)
    for name in ("result.json", "test_ranks.parquet"):
        (folder.path / name).unlink()
    folder.write(result=run.result | {"test": None, "baselines": {}})
    page = Page(Run(folder.path).report(tmp_path / "report.html").read_text("utf-8"))
    text = " ".join(page.texts)
    validation = run.result["validation"]
    assert f"{validation['n']} validation cases" in text
    assert f"{validation['metrics']['NDCG@10']:.4f}" in text
    assert sum("Not shown" in each for each in page.texts) == 2  # lists and what they lean towards


def test_what_cannot_be_reported_is_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="no run to report on"):
        mmkd.write_report([], tmp_path / "report.html")
    with pytest.raises(RunError, match="is a folder"):
        run.report(tmp_path)
    monkeypatch.setattr(report_page, "_render", lambda runs, seed: "")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        run.report(tmp_path / "file" / "report.html")
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MmkdError, match=r"pip install 'mmkd\[report\]'"):
        report_page._bundle.__wrapped__()


def test_the_command_writes_it_and_says_how_large_it_is(
    run: Run, ids_only: Run, tmp_path: Path
) -> None:
    file = tmp_path / "report.html"
    given = ("report", ids_only.folder.path, run.folder.path, "--out", file)
    found = printed(*given)
    assert found["path"] == str(file) and found["bytes"] == file.stat().st_size
    page = Page(file.read_text("utf-8"))
    assert "this run reads no encoder" in " ".join(page.texts).lower()
    assert "types" not in page.values("id")  # of ids there are none


def test_who_stops_a_report_stops_all_of_it() -> None:
    def stopped() -> None:
        raise EmbeddingInterrupted(1, 2)

    with pytest.raises(EmbeddingInterrupted):
        report_page._told(stopped)
