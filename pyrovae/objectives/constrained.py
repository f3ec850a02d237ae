r"""Objectives that hold the Kullback-Leibler part at a level: free bits, a learned beta, a capacity.

    R = E_q(z|x) [log p(x | z)],    KL = KL(q(z | x) || p(z)),    both means over the batch

Sites that the model enumerates are summed out of both, see `Ledger.parts`, but for a learned beta, which is `ELBO`'s.
Levels are of the KL as it is: `poutine.scale`, the same for all latent sites, multiplies them too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.objectives.base import Objective, number, weight
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.particles import without_autocast
from pyrovae.objectives.weights import Ledger, Term

__all__ = ["Beta", "Capacity", "FreeBits"]


class FreeBits(Objective):
    r"""The ELBO, in which no KL counts for less than a given number of nats, so that using them is free.

        R - sum_j max(nats, KL_j)

    The KL_j are means over the batch, of each latent site, or of groups of its dimensions; of a site outside the data
    plate it is the whole KL, which counts once for all data. It lies below the ELBO.

    Args:
        nats: what each group has for free, nats (a bit is 0.69).
        group_size: consecutive dimensions that are one group, 1 for each on its own; needs posteriors and priors that
            are products over dimensions. None takes each site as a whole.
        num_particles: samples of z per datum.
        closed_form: whether to use closed-form KLs at all.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for negative nats, or groups that do not divide a site's dimensions.

    Source: Kingma et al. 2016, https://arxiv.org/abs/1606.04934; `nats` is their lambda.

    >>> FreeBits(0.5, group_size=1).couples_rows
    True
    """

    couples_rows = True

    def __init__(
        self,
        nats: float,
        *,
        group_size: int | None = None,
        num_particles: int = 1,
        closed_form: bool = True,
        plate: str | None = None,
    ):
        super().__init__(num_particles, plate=plate)
        self.nats = number("nats", nats)
        if group_size is not None and (not isinstance(group_size, int) or group_size < 1):
            raise ValueError(
                f"group_size is {group_size!r}; pass a whole number of at least 1, or None for whole sites"
            )
        self.group_size = group_size
        self.closed_form = closed_form

    def per_datum(self, drawn: Ledger) -> Tensor:
        """Each datum's reconstruction less the KLs of the batch, (B,)."""
        reconstruction, kl = drawn.parts(closed_form=self.closed_form)
        value = reconstruction.mean(0)
        free = self.nats * drawn.mean_scale()
        for site, whole in kl.items():
            means = whole.mean() if self.group_size is None else self._groups(drawn, site, whole, self.group_size)
            share = drawn.size if set(site.split(", ")) <= set(drawn.known.global_latent) else 1
            value = value - means.clamp(min=free / share).sum()
        return value

    def _groups(self, drawn: Ledger, site: str, whole: Tensor, group_size: int) -> Tensor:
        """Mean KL of each group of dimensions; sites that have none are one group."""
        term = next(term for term in drawn.terms if term.name == site.split(", ")[0] and term.kind != "observed")
        if term.enumerated or not term.site["fn"].event_dim or site in drawn.known.global_latent:
            return whole.mean()
        each = drawn.kl_by_dimension(site, closed_form=self.closed_form).mean((0, 1))
        if len(each) % group_size:
            raise ValueError(
                f"group_size is {group_size}, which does not divide the {len(each)} dimensions of site {site!r}; "
                "pass one that does"
            )
        return each.unflatten(0, (-1, group_size)).sum(1)

    def _weight(self, term: Term) -> float | Tensor:
        return 0.0  # sites outside the data plate are in every datum's parts


class Beta(ELBO):
    r"""The beta-VAE that learns its beta: as much reconstruction as a limit on the KL allows.

        max R  subject to  KL <= constraint,    by  R - beta KL  with  log beta <- log beta + rate (KL - constraint)

    beta is the multiplier of the constraint, moved by dual ascent at each training step (as a product, so that it stays
    above 0), and by nothing else: it is part of a checkpoint, and a new fit begins from 1. With the constraint out of
    reach beta sinks, to exp(-10) at the least. For a given beta use `ELBO(beta=)`. `fit` validates with the ELBO.

    Args:
        constraint: the largest mean KL per datum, nats.
        rate: of the ascent, per nat and step.
        num_particles, closed_form, plate: as for `ELBO`.

    Raises:
        ValueError: for a constraint or rate that is not positive.

    Source: the problem is Higgins et al. 2017's; the multiplicative update Rezende & Viola 2018,
    https://arxiv.org/abs/1810.00597, who constrain the reconstruction instead.

    >>> Beta(constraint=3.0).beta.value
    tensor(1.)
    """

    def __init__(
        self,
        constraint: float,
        *,
        rate: float = 0.01,
        num_particles: int = 1,
        closed_form: bool = True,
        plate: str | None = None,
    ):
        for name, value in (("constraint", constraint), ("rate", rate)):
            if not number(name, value) > 0:
                raise ValueError(f"{name} is {value}, it must be positive; pass {name}=1.0, say")
        super().__init__(num_particles, beta=_Multiplier(), closed_form=closed_form, plate=plate)
        self.constraint, self.rate = constraint, rate
        self._now: Tensor | None = None

    def mean(self, drawn: Ledger) -> Tensor:
        """R - beta KL, nats; with gradients on, beta moves."""
        training = torch.is_grad_enabled()
        self._now = self.beta.value.detach().requires_grad_(training)
        value = super().mean(drawn)
        if training and value.requires_grad:
            with without_autocast(value):
                # Minus the KL, also where enumerated sites make the objective no linear function of beta.
                (slope,) = torch.autograd.grad(value, self._now, retain_graph=True, materialize_grads=True)
            self.beta.move(self.rate * (-slope / drawn.mean_scale() - self.constraint))
        self._now = None
        return value

    def for_validation(self) -> ELBO:
        """The ELBO, which compares epochs of different beta."""
        return ELBO(self.num_particles, closed_form=self.closed_form, plate=self.plate)

    def _weight(self, term: Term) -> float | Tensor:
        if self._now is None or term.kind == "observed":
            return super()._weight(term)
        return self._now if isinstance(term.scale, float) and term.scale == 1 else self._now * term.scale


class _Multiplier(nn.Module):
    """A positive weight that is learned; a schedule that knows no epochs."""

    log_value: Tensor
    LIMIT = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_value", torch.zeros(()))

    @property
    def value(self) -> Tensor:
        """The weight, ()."""
        return self.log_value.exp()

    def update(self, epoch: float) -> None:
        """Begin from 1 where training begins."""
        if epoch == 0:
            self.log_value.zero_()

    def move(self, step: Tensor) -> None:
        """Add to the logarithm, in place."""
        with torch.no_grad():
            self.log_value.add_(step.detach().to(self.log_value)).clamp_(-self.LIMIT, self.LIMIT)


class Capacity(Objective):
    r"""The capacity objective: the KL is held at C nats, which may rise while training.

        R - gamma |KL - C|

    Args:
        gamma: how firmly; the paper's is 1000.
        C: the mean KL per datum, nats; a number or a schedule of `pyrovae.training.schedules`, such as the paper's
            Linear(0, 25, epochs).
        num_particles: samples of z per datum.
        closed_form: whether to use closed-form KLs at all.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for a negative gamma or C.

    Source: Burgess et al. 2018, https://arxiv.org/abs/1804.03599. Here |.| is of the batch's mean KL, which can reach C
    with more nats for some data than for others.

    >>> Capacity(1000.0, 25.0).is_bound
    False
    """

    is_bound = False
    couples_rows = True

    def __init__(
        self, gamma: float, C: Any, *, num_particles: int = 1, closed_form: bool = True, plate: str | None = None
    ):
        super().__init__(num_particles, plate=plate)
        self.gamma = number("gamma", gamma)
        self.C = weight("C", C)
        self.closed_form = closed_form

    def per_datum(self, drawn: Ledger) -> Tensor:
        """Each datum's reconstruction less the penalty of the batch, (B,)."""
        reconstruction, kl = drawn.parts(closed_form=self.closed_form)
        total = sum(kl.values(), torch.zeros_like(reconstruction)).mean()
        level = getattr(self.C, "value", self.C) * drawn.mean_scale()
        return reconstruction.mean(0) - self.gamma * (total - level).abs()

    def _weight(self, term: Term) -> float | Tensor:
        return 0.0  # sites outside the data plate are in every datum's parts
