"""Two processes' mean equals one process's."""

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from mmkd.losses.distributed import global_mean

TERMS = ([1.0, 2.0, 3.0], [10.0])


def test_one_process_is_the_plain_mean() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    mean = global_mean((weight * torch.tensor(TERMS[0])).sum(), 3)
    assert float(mean.detach()) == 4.0
    assert float(torch.autograd.grad(mean, weight)[0]) == 2.0


def test_no_term_is_zero_and_stays_connected() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    mean = global_mean((weight * torch.zeros(0)).sum(), torch.tensor(0))
    assert float(mean.detach()) == 0.0
    assert float(torch.autograd.grad(mean, weight)[0]) == 0.0


def test_two_processes_average_to_the_mean_of_all_terms(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_worker, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    results: list[Tensor] = [
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)
    ]
    everything = torch.tensor([*TERMS[0], *TERMS[1]])
    assert float(torch.stack(results).mean()) == pytest.approx(float(everything.mean()))
    assert float(results[1]) == pytest.approx(10 * 2 / 4)


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    total = torch.tensor(TERMS[rank]).sum()
    torch.save(global_mean(total, len(TERMS[rank])), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
