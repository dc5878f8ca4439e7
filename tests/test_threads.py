"""How many threads a process takes, and how they wait."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import pytest
import torch

import mmkd
from mmkd import Trainer, TrainingArguments
from mmkd.embeddings import share_cores
from mmkd.threads import thread_count, usable_cores

WAITING = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    yield
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])


def machine(
    monkeypatch: pytest.MonkeyPatch, *, cores: int, allowed: int, files: dict[str, str]
) -> None:
    """A machine with so many cores, of which some are allowed, and these cgroup files."""
    real_open, real_exists = open, os.path.exists

    def opened(name: Any, *arguments: Any, **options: Any) -> Any:
        if str(name).startswith("/sys/fs/cgroup/"):
            return io.StringIO(files[name])
        return real_open(name, *arguments, **options)

    def exists(name: Any) -> bool:
        return name in files if str(name).startswith("/sys/fs/cgroup/") else real_exists(name)

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.setattr("builtins.open", opened)
    monkeypatch.setattr(os.path, "exists", exists)


@pytest.mark.parametrize(
    ("files", "allowed", "wanted"),
    [
        ({}, 64, 64),
        ({}, 6, 6),
        ({"/sys/fs/cgroup/cpu.max": "400000 100000\n"}, 64, 4),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 64, 64),
        ({"/sys/fs/cgroup/cpu.max": "400000 100000\n"}, 3, 3),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
            2,
        ),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
            64,
        ),
    ],
)
def test_cores_follow_affinity_and_quota(
    files: dict[str, str], allowed: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cores=64, allowed=allowed, files=files)
    assert usable_cores() == wanted
    assert thread_count() == wanted
    assert thread_count(processes=2) == max(1, wanted // 2)
    assert thread_count(processes=1000) == 1


@pytest.mark.parametrize(("given", "wanted"), [("3", 3), ("5,2", 5), ("", 8), ("0", 8), ("x", 8)])
def test_omp_num_threads_is_meant_for_each_process(
    given: str, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cores=8, allowed=8, files={})
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert thread_count() == wanted
    if wanted != 8:
        assert thread_count(processes=4) == wanted


def test_training_takes_what_the_recipe_says_and_else_what_the_process_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    Trainer(TrainingArguments(cpu=True)).processes()
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == (3, 3)
    Trainer(TrainingArguments(cpu=True, threads=2)).processes()
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == (2, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    share_cores()
    assert torch.get_num_threads() == 1


def told(code: str, **given: str) -> str:
    """What a fresh process prints."""
    environment = {k: v for k, v in os.environ.items() if k not in WAITING}
    root = str(Path(mmkd.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "PYTHONPATH": root, **given},
        timeout=120,
    )
    return done.stdout.strip()


SHOW = f"import os; print(*(os.environ.get(name, '-') for name in {WAITING}))"


def test_openmp_waits_passively_unless_told_otherwise() -> None:
    assert told(f"import mmkd; {SHOW}") == "PASSIVE 0 -"
    assert told(f"import mmkd; {SHOW}", OMP_WAIT_POLICY="ACTIVE") == "ACTIVE - -"
    assert told(f"import mmkd; {SHOW}", GOMP_SPINCOUNT="1000") == "- - 1000"
    assert told(f"import mmkd; {SHOW}", KMP_BLOCKTIME="200") == "- 200 -"


def test_nothing_is_set_too_late_and_nothing_heavy_is_loaded() -> None:
    late = f"import sys; sys.modules['torch'] = sys; import mmkd; {SHOW}"
    assert told(late) == "- - -"
    heavy = "import mmkd, sys; print('torch' in sys.modules, 'joblib' in sys.modules)"
    assert told(heavy) == "False False"
