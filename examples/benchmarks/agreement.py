"""Whether the contenders of a workload compute the same loss: pair, stock Pyro and hand-written code, equal weights."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from examples.benchmarks.workloads import Workload
from pyrovae.models.base import structure
from pyrovae.training.step import Step


def agree(workload: Workload, *, draws: int = 100) -> bool:
    """Print the mean hand-written loss, nats per datum, and how far the others are from it; return whether equal."""
    torch.manual_seed(0)
    batch = tuple(tensor.to(workload.dtype) for tensor in workload.batch())
    pair, stock_pair = workload.pair(), workload.stock_pair()
    module, loss = workload.handwritten()
    with torch.no_grad():
        for parameter in module.parameters():  # away from the start, where outputs hardly depend on the inputs
            parameter.mul_(2)
            if parameter.dim() == 1 or not parameter.any():
                parameter.add_(0.5 * torch.randn_like(parameter))
    for other in (pair, stock_pair):
        copy_weights(module, other)
    step = Step(pair, workload.objective(), structure(pair, *batch))
    stock = workload.stock()
    losses = {
        "pair": _losses(step, batch, draws),
        "stock": _losses(lambda *b: stock.loss(stock_pair.model, stock_pair.guide, *b) / len(b[0]), batch, draws),
    }
    expected = _losses(lambda *b: loss(module, *b), batch, draws)
    line, same = f"{workload.name:<10} by hand {expected.mean():10.4f}", True
    for name, values in losses.items():
        difference = values - expected
        error = difference.std().item() / math.sqrt(draws)
        equal = abs(difference.mean().item()) <= 4 * error + 1e-5 * abs(expected.mean().item())
        line += f"   {name} {difference.mean():+.4f} ± {error:.4f} {'equal' if equal else 'DIFFERENT'}"
        same = same and equal
    print(line, flush=True)
    return same


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """One by one in the order of `parameters()`, which the hand-written modules share with the pairs."""
    with torch.no_grad():
        for into, value in zip(target.parameters(), source.parameters(), strict=True):
            if into.shape != value.shape:
                raise ValueError(f"{type(target).__name__} has a parameter {into.shape} where {value.shape} is wanted")
            into.copy_(value)


def _losses(loss: Callable[..., Any], batch: tuple[Tensor, ...], draws: int) -> Tensor:
    """One for each seed: equal ones draw equal noise where they draw alike, so that a small difference shows."""
    values = []
    with torch.no_grad():
        for seed in range(draws):
            torch.manual_seed(seed)
            values.append(float(loss(*batch)))
    return torch.tensor(values, dtype=torch.float64)
