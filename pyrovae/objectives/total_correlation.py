"""beta-TCVAE: the Kullback-Leibler term split by the aggregate posterior, whose density a mini-batch estimates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyrovae.models.base import Structure
from pyrovae.objectives.base import Objective, weight, whole
from pyrovae.objectives.draws import Term, at_least_float32
from pyrovae.objectives.particles import PARTICLES
from pyrovae.objectives.weights import Ledger

__all__ = ["Decomposition", "TotalCorrelation", "code_name", "code_site", "decomposition", "stratified", "weighted"]

Estimator = Callable[[Tensor, int], Tensor]


class Decomposition(NamedTuple):
    """KL(q(z | x) || p(z)) = index_mi + total_correlation + dimension_kl in the mean over data; each (K, B), nats."""

    index_mi: Tensor
    total_correlation: Tensor
    dimension_kl: Tensor


def weighted(log_q: Tensor, size: int) -> Tensor:
    r"""Minibatch weighted sampling: log q(z_i) as log 1/(N B) sum_j q(z_i | x_j).

    Its mean is below log q(z_i), so that the mutual information comes out too large, and at B = N by log N exactly: it
    takes the batch for independent draws. `stratified` has no such offset.

    Args:
        log_q: log q(z_i | x_j), (..., B, B) with i before j.
        size: N, the data in all.

    Returns:
        (..., B), nats.

    Source: Chen, Li, Grosse & Duvenaud 2018, https://arxiv.org/abs/1802.04942, appendix C.1.
    """
    return torch.logsumexp(log_q, -1) - math.log(log_q.size(-1) * size)


def stratified(log_q: Tensor, size: int) -> Tensor:
    r"""Minibatch stratified sampling: log of an unbiased estimate of q(z_i), whose log is biased downwards.

        q(z_i | x_i) / N + (N - 1) / (N (B - 1)) sum_{j != i} q(z_i | x_j)

    At B = N it is q(z_i) itself. The paper gives one row of the batch the weight of all data outside it, so that its
    estimate depends on the rows' order and is not exact at B = N; this is its mean over orders, which varies less.

    Args:
        log_q: log q(z_i | x_j), (..., B, B) with i before j.
        size: N, the data in all.

    Returns:
        (..., B), nats.

    Raises:
        ValueError: for a batch of one of several data, of which it tells nothing.

    Source: Chen, Li, Grosse & Duvenaud 2018, https://arxiv.org/abs/1802.04942, appendix C.2.
    """
    rows = log_q.size(-1)
    if rows == size:
        return torch.logsumexp(log_q, -1) - math.log(size)
    if rows == 1:
        raise ValueError(
            f"the batch has one of {size} data, of which no aggregate posterior can be told; "
            "pass a batch_size that leaves no single row for the last batch"
        )
    own = torch.eye(rows, dtype=torch.bool, device=log_q.device)
    others = torch.logsumexp(log_q.masked_fill(own, -math.inf), -1) + math.log((size - 1) / (size * (rows - 1)))
    return torch.logaddexp(log_q.diagonal(dim1=-2, dim2=-1) - math.log(size), others)


def decomposition(drawn: Ledger, *, estimator: Estimator = stratified, size: int | None = None) -> Decomposition:
    r"""What of KL(q(z | x) || p(z)) each datum's samples account for.

        index_mi            log q(z | x) - log q(z)                its mean: I(x; z) under q
        total_correlation   log q(z) - sum_j log q(z_j)            KL(q(z) || prod_j q(z_j))
        dimension_kl        sum_j log q(z_j) - log p(z)            sum_j KL(q(z_j) || p(z_j)), p(z) of independent dims

    with q(z) = 1/N sum_n q(z | x_n). The three add up to log q(z | x) - log p(z), whatever the estimator of q(z).

    Args:
        drawn: one latent site of independent dims, drawn by the guide.
        estimator: `stratified` or `weighted`, or another function of (log q(z_i | x_j), N) to log q(z_i).
        size: N, the data in all. Default: that of the data plate.

    Raises:
        ValueError: for other sites, named; for a size below the rows of the batch.
    """
    term = code_site(drawn)
    size = drawn.size if size is None else size
    if size < drawn.rows:
        raise ValueError(f"data_size is {size}, the batch alone has {drawn.rows} rows; pass the size of the data set")
    pairwise = torch.cat([_pairwise(draw, term.name) for draw in drawn.draws], 1)  # (L, K, B, B)
    joint = estimator(pairwise.sum(0), size)  # (K, B)
    product = estimator(pairwise, size).sum(0)
    log_q = drawn.log_q()
    log_p = drawn.elbo(lambda site: float(site.kind == "latent"), closed_form=False)
    return Decomposition(log_q - joint, joint - product, product - log_p)


def _pairwise(draw: Any, name: str) -> Tensor:
    """log q(z_li | x_j) of each dim l, (L, K, B, B)."""
    site = next(term.site for term in draw.terms if term.kind == "guide" and term.name == name)
    event_dim = site["fn"].event_dim
    base = site["fn"].base_dist if event_dim else site["fn"]
    z = site["value"].movedim(-1 - event_dim, 0).unsqueeze(-1 - event_dim)  # (B, K, ..., 1, *event)
    log_q = base.log_prob(z).reshape(draw.rows, draw.num_particles, draw.rows, -1)
    log_q = at_least_float32(log_q)
    return log_q.permute(3, 1, 0, 2)


def code_name(known: Structure) -> str:
    """Name of the one latent site that each datum has.

    Raises:
        ValueError: where there is another number of them.
    """
    if len(known.latent) != 1 or known.global_latent or known.enumerated:
        raise ValueError(
            f"the model has the latent sites {list(known.latent)}, of which {list(known.global_latent)} are global and "
            f"{list(known.enumerated)} enumerated; an aggregate posterior needs one sampled site per datum"
        )
    return known.latent[0]


def code_site(drawn: Ledger, *, independent: bool = True) -> Term:
    """The guide's term of the one latent site that each datum has.

    Args:
        drawn: of any pair.
        independent: whether its dims have to be independent under q(z | x).

    Raises:
        ValueError: where there are several, or where it is enumerated, masked, in a nested plate, or of dependent dims.
    """
    known = drawn.known
    code_name(known)
    guide = [term for term in drawn.terms if term.kind == "guide"]
    if len(guide) != 1:
        raise ValueError(f"the guide has the sites {[t.name for t in guide]}, whose density is that of no one site")
    term, fn = guide[0], guide[0].site["fn"]
    nested = {frame.name for frame in term.site["cond_indep_stack"]} - {known.plate, PARTICLES}
    diagonal = fn.event_dim == 0 or (isinstance(fn, torch.distributions.Independent) and not fn.base_dist.event_dim)
    why = (
        f"lies inside the plates {sorted(nested)} too"
        if nested
        else "is under poutine.mask, so that not every datum has one"
        if isinstance(term.site["mask"], Tensor) or term.site["mask"] is False
        else f"is {type(fn).__name__}, whose dims depend on each other"
        if independent and not diagonal
        else None
    )
    if why:
        raise ValueError(
            f"latent site {term.name!r} {why}; give it one value per datum, such as Normal(...).to_event(1)"
        )
    return term


class TotalCorrelation(Objective):
    r"""beta-TCVAE: the ELBO with a weight on the dependence of the latent dims of the aggregate posterior.

        E_q [log p(x | z)] - alpha I(x; z) - beta KL(q(z) || prod_j q(z_j)) - gamma sum_j KL(q(z_j) || p(z_j))

    The three parts are those of `decomposition`; all weights 1 give the ELBO, draw by draw, whatever the estimator.
    q(z) is that of the batch's rows, so that a datum's value depends on them, and so does its gradient.

    Args:
        num_particles: samples of z per datum.
        beta: weight of the total correlation; a number or a schedule.
        alpha, gamma: weights of the mutual information and of the dimension-wise KL, likewise.
        estimator: of log q(z): `stratified`, `weighted` (the paper's choice), or one's own.
        data_size: N, the size of the data set. Default: that of the data plate, which is the batch's own unless the
            plate subsamples: then q(z) is the aggregate of the batch.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for a weight below 0, or a data_size below 1.

    Source: Chen, Li, Grosse & Duvenaud 2018, https://arxiv.org/abs/1802.04942, eqs. 2 and 4.

    >>> TotalCorrelation(beta=6.0, data_size=60_000).couples_rows
    True
    """

    couples_rows = True

    def __init__(
        self,
        num_particles: int = 1,
        *,
        beta: Any = 6.0,
        alpha: Any = 1.0,
        gamma: Any = 1.0,
        estimator: Estimator = stratified,
        data_size: int | None = None,
        plate: str | None = None,
    ):
        super().__init__(num_particles, plate=plate)
        self.alpha, self.beta, self.gamma = weight("alpha", alpha), weight("beta", beta), weight("gamma", gamma)
        self.estimator = estimator
        self.data_size = None if data_size is None else whole("data_size", data_size)

    @property
    def is_bound(self) -> bool:  # type: ignore[override]
        """Whether it is a lower bound on log p(x): all weights are 1."""
        return all(not hasattr(w, "value") and w == 1 for w in (self.alpha, self.beta, self.gamma))

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The mean over particles, (B,)."""
        parts = decomposition(drawn, estimator=self.estimator, size=self.data_size)
        value = drawn.elbo(lambda term: float(term.kind == "observed"), closed_form=False)
        for factor, part in zip((self.alpha, self.beta, self.gamma), parts, strict=True):
            value = value - getattr(factor, "value", factor) * part
        return drawn.common_scale() * value.mean(0)
