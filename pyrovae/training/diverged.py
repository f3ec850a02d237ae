"""What is no longer finite when a loss is not."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor

from pyrovae.objectives import ledger
from pyrovae.objectives.unscored import unscored
from pyrovae.training.step import Step

__all__ = ["not_finite"]


def not_finite(step: Step, batch: tuple[Tensor, ...]) -> str:
    """Parameters, or else sites and rows of the batch, in words; "" if all is finite by now."""
    broken = [name for name, tensor in step.known.parameters.items() if not torch.isfinite(tensor).all()]
    if broken or not batch:
        return f"parameters {broken[:3]} are no longer finite" if broken else ""
    with torch.no_grad(), pyro.validation_enabled(False):
        for term in ledger(unscored(step.pair), *batch, known=step.known).terms:
            log_prob = torch.atleast_1d(term.log_prob)
            broken_rows = (~torch.isfinite(log_prob)).reshape(-1, log_prob.size(-1)).any(0)
            if broken_rows.any():
                rows = broken_rows.nonzero().flatten()[:5].tolist()
                return f"log {'q' if term.kind == 'guide' else 'p'} of site {term.name!r}, rows {rows} of the batch"
    return ""
