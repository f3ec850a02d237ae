"""Which dimensions of a latent the data make use of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyrovae.evaluation.running import Evaluation, check_counts, evaluating
from pyrovae.evaluation.sites import has_exact_mean, is_discrete, latent_site, mean_of, rows_first
from pyrovae.models.base import random_sites
from pyrovae.models.traces import is_point

__all__ = ["ActiveUnits", "active_layers", "active_units"]


@dataclass
class ActiveUnits:
    """How many dimensions of a latent the data make use of.

    Attributes:
        count: how many have a variance above the threshold.
        variance: Var_x(E_q[z_u | x]) of each dimension (L,).
        kl: mean over data of KL(q(z_u | x) || p(z_u)) of each dimension (L,), nats; None where the KL has no closed
            form that is a sum over dimensions.
        site: the latent.
        threshold: of the variance.
    """

    count: int
    variance: Tensor = field(repr=False)
    kl: Tensor | None = field(repr=False)
    site: str
    threshold: float

    def __str__(self) -> str:
        return f"{self.count} of {len(self.variance)} units of {self.site} active"


def active_units(
    pair: Any,
    data: Any,
    *,
    site: str | None = None,
    threshold: float = 0.01,
    num_samples: int = 100,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> ActiveUnits:
    r"""Which dimensions of a latent depend on the data: A_u = Var_x(E_q[z_u | x]) > threshold.

    Where E_q[z_u | x] is a mean over `num_samples` draws, as it is for a latent that depends on others, their variance
    is subtracted: without that a dead unit of variance 1 has A_u = 1 / num_samples.

    Args:
        pair, data, plate, seed, batch_size: see `log_likelihood`.
        site: a latent whose event is a vector, or a number, which is one unit. Default: the first continuous vector in
            the model's order, or the first number if there is none.
        threshold: of the variance; the paper's.
        num_samples: as for `pyrovae.evaluation.encode`.

    Returns:
        the `ActiveUnits`, on the CPU.

    Raises:
        ValueError: if there is no such site, or fewer than two data.

    Source: Burda, Grosse & Salakhutdinov 2016, https://arxiv.org/abs/1509.00519, section 5.2.
    """
    check_counts(num_samples=num_samples)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        name = latent_site(on, site, dims=(1, 0))["name"]
        return _of_sites(on, [name], threshold=threshold, num_samples=num_samples)[name]


def active_layers(
    pair: Any,
    data: Any,
    *,
    threshold: float = 0.01,
    num_samples: int = 100,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> dict[str, ActiveUnits]:
    """The `active_units` of each latent whose event is a vector, by its site, in the reverse of the model's order.

    That is from the data up: z1, ..., zL. A unit may vary with the data only because what is above it does: its KL from
    p(z_l | z_{l+1}), where it has a closed form, says whether the layer adds anything.

    Args:
        pair, data, threshold, num_samples, plate, seed, batch_size: see `active_units`.

    Returns:
        the `ActiveUnits` of each site.

    Raises:
        ValueError: if there is no such site, or fewer than two data.

    Source: Sonderby et al. 2016, https://arxiv.org/abs/1602.02282, section 3.2.

    >>> from pyrovae.models import LadderVAE
    >>> list(active_layers(LadderVAE(8, latent_dims=(4, 2), hidden=(5,)), torch.rand(3, 8).round()))
    ['z1', 'z2']
    """
    check_counts(num_samples=num_samples)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        trace = poutine.trace(on.pair.guide).get_trace(*on.batch())
        vectors = [name for name in on.known.latent[::-1] if _is_vector(trace, name)]
        names = vectors or [latent_site(on, dims=(1, 0))["name"]]
        return _of_sites(on, names, threshold=threshold, num_samples=num_samples)


class _Moments(NamedTuple):
    """Of some data's posterior means: themselves, their variance by sampling, and KL(q || p); (B, ..., L) each."""

    mean: Tensor
    error: Tensor
    kl: Tensor | None


def _of_sites(on: Evaluation, names: Sequence[str], *, threshold: float, num_samples: int) -> dict[str, ActiveUnits]:
    """The units of several latents, from the same draws for all."""
    if len(on.rows) < 2:
        raise ValueError("data has one row, a variance over data takes two; pass more rows")
    batches = [_moments(run, batch, names, num_samples) for run, batch, _ in on]
    found = {}
    for name in names:
        means, errors, kls = zip(*(moments[name] for moments in batches), strict=True)
        excess = on.join(means).var(0) - on.join(errors).mean(0)  # (nested plates..., L)
        variance = excess.reshape(-1, excess.size(-1)).mean(0).clamp(min=0).cpu()
        kl = None if any(each is None for each in kls) else on.join(kls).flatten(0, -2).mean(0).cpu()
        found[name] = ActiveUnits(int((variance > threshold).sum()), variance, kl, name, threshold)
    return found


def _moments(run: Any, batch: Sequence[Any], names: Sequence[str], num_samples: int) -> dict[str, _Moments]:
    """The moments of each latent, of one draw where E_q[z | x] is exact, else of `num_samples`."""
    values: dict[str, list[Tensor]] = {name: [] for name in names}
    kls: dict[str, list[Tensor | None]] = {name: [] for name in names}
    needed = list(names)
    for _ in range(num_samples):
        guide_trace = poutine.trace(run.guide).get_trace(*batch)
        model_trace = poutine.trace(poutine.replay(run.model, trace=guide_trace)).get_trace(*batch)
        for name in needed:
            q = guide_trace.nodes[name]
            mean = mean_of(q)
            values[name].append(_as_vector(rows_first(q["value"] if mean is None else mean, q), q).double())
            kls[name].append(_kl_per_unit(model_trace, guide_trace, name))
        needed = [name for name in needed if not has_exact_mean(guide_trace, name)]
        if not needed:
            break
    found = {}
    for name in names:
        drawn = torch.stack(values[name])  # (1 or num_samples, B, ..., L)
        error = drawn.var(0) / len(drawn) if len(drawn) > 1 else torch.zeros_like(drawn[0])
        known = [kl for kl in kls[name] if kl is not None]
        found[name] = _Moments(drawn.mean(0), error, torch.stack(known).mean(0) if known else None)
    return found


def _is_vector(trace: Any, name: str) -> bool:
    site = trace.nodes.get(name)
    return site is not None and site["fn"].event_dim == 1 and not is_discrete(site)


def _kl_per_unit(model_trace: Any, guide_trace: Any, name: str) -> Tensor | None:
    """KL(q || p) of each number of a vector, (B, ..., L), where it is known, valid and a sum over these; 0 if masked.

    Valid: where all latents that come before the site in the model come before it in the guide.
    """
    traces = model_trace, guide_trace
    before = [[s["name"] for s in random_sites(trace) if not s["is_observed"]] for trace in traces]
    in_model, in_guide = (names[: names.index(name)] for names in before)
    p, q = (trace.nodes[name] for trace in traces)
    p_unit, q_unit = (site["fn"].base_dist if isinstance(site["fn"], Independent) else site["fn"] for site in (p, q))
    if not set(in_model) <= set(in_guide) or p["mask"] is not q["mask"]:
        return None
    if q_unit.event_shape or p_unit.event_shape or is_point(q_unit):
        return None
    try:
        kl = kl_divergence(q_unit, p_unit)
    except NotImplementedError:
        return None
    counted = p["mask"]
    if isinstance(counted, Tensor) and q["fn"].event_dim:
        counted = counted.unsqueeze(-1)  # of rows, beside their units
    return _as_vector(rows_first(scale_and_mask(kl.expand(q["fn"].shape()), mask=counted), q), q).double()


def _as_vector(value: Tensor, site: Any) -> Tensor:
    """Numbers (..., L) of a site's vectors as they are, those of its numbers as (..., 1)."""
    return value if site["fn"].event_dim else value[..., None]
