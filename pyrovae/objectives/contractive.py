"""Codes that hardly move with the data: the penalty of contractive auto-encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrovae.models.base import Structure
from pyrovae.models.traces import is_point
from pyrovae.objectives.base import Objective, weight, whole
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.weights import Ledger

__all__ = ["Contractive"]


class Contractive(Objective):
    r"""The ELBO less the squared size of the encoder's Jacobian, for guides on points.

        ELBO - beta |dz / dx|_F^2,    |J|_F^2 = E_v |J^T v|^2,    v ~ N(0, I)

    The expectation over v is taken from draws, without bias: of one draw, the penalty has a relative standard deviation
    of at most sqrt(2). z are all sites of real numbers that the guide puts a `Delta` on, as `Autoencoder` does; x is
    what the model observes, as it is given to it: a corruption of x counts as part of the encoder, so that numbers that
    are masked have no derivative, and in statistics of a batch (BatchNorm) the codes of all its rows have one.

    The penalty is of training alone: validation takes the plain ELBO.

    Args:
        beta: weight of the penalty; a number or a schedule.
        num_projections: draws of v.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for a weight below 0, fewer than one projection; for a guide without points, or points that do not
            depend on what the model observes.

    Source: Rifai et al. 2011, "Contractive auto-encoders", eq. 2 and 3; the estimate is Hutchinson's (1990).

    >>> Contractive(0.1).is_bound  # less than a bound is a bound, too
    True
    """

    def __init__(self, beta: Any = 0.1, *, num_projections: int = 1, plate: str | None = None) -> None:
        super().__init__(plate=plate)
        self.beta, self.num_projections = weight("beta", beta), whole("num_projections", num_projections)

    def draw(self, pair: Any, *batch: Any, known: Structure) -> Ledger:
        """One particle, of data that derivatives are taken for."""
        watched = (x.detach().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in batch)
        with torch.enable_grad():
            return super().draw(pair, *watched, known=known)

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The ELBO less the penalty, (B,)."""
        beta = getattr(self.beta, "value", self.beta)
        return drawn.elbo().mean(0) - drawn.common_scale() * beta * self._squared_jacobian(drawn)

    def for_validation(self) -> Objective:
        """The plain ELBO."""
        return ELBO(plate=self.plate)

    def _squared_jacobian(self, drawn: Ledger) -> Tensor:
        """|dz / dx|_F^2 of each datum, (B,), estimated."""
        kept = torch.is_grad_enabled()
        sites = [term.site for term in drawn.terms if term.kind == "observed" and term.site["value"].requires_grad]
        data = [site["value"] for site in sites]
        points = [term.site["value"] for term in drawn.terms if term.kind == "guide" and is_point(term.site["fn"])]
        codes = [z for z in points if z.is_floating_point()]
        total = torch.zeros(())
        for _ in range(self.num_projections if data and codes else 0):
            with torch.enable_grad():
                projected = sum((z * torch.randn_like(z)).sum() for z in codes)
            found = torch.autograd.grad(projected, data, create_graph=kept, retain_graph=True, allow_unused=True)
            if all(gradient is None for gradient in found):
                codes = []
                break
            for site, gradient in zip(sites, found, strict=True):
                if gradient is not None:
                    rows = gradient.movedim(gradient.dim() - site["fn"].event_dim - 1, 0)  # nested plates are left of B
                    total = total + rows.reshape(len(rows), -1).square().sum(1) / self.num_projections
        if not (data and codes):
            names = [term.name for term in drawn.terms if term.kind == "guide"]
            raise ValueError(
                f"of the guide's sites {names} none is a point that moves with the data that the model observes, so "
                "that there is nothing to contract; pass an Autoencoder, or use ELBO()"
            )
        return total
