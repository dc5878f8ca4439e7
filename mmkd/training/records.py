"""What an epoch's record holds beside losses and metrics, and how trackers see it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def gradient_norms(module: nn.Module) -> dict[str, float]:
    """Gradient norm of each table and of each other top-level part, to see who pulls where."""
    squares: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            depth = 4 if ".members." in name else 2  # a part of each member, or of the objective
            key = name if "table" in name else ".".join(name.split(".")[:depth])
            square = parameter.grad.detach().float().square().sum()
            squares[key] = squares.get(key, torch.zeros_like(square)) + square
    return {key: float(square.sqrt()) for key, square in squares.items()}


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a nested record, keyed by path such as ``losses/total``."""
    numbers: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            numbers[f"{prefix}{key}"] = float(value)
    return numbers
