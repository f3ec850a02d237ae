"""What a pair predicts: codes, reconstructions, samples, and what points of its latent space decode to.

Every function takes any pair and any data that `evaluating` takes, runs the pair in evaluation mode, without gradients,
on random states of its own that start from `seed`, and returns a tensor on the pair's device whose first dim is rows.
What a site "gives" is the mean of its distribution where that is defined and finite, and else a draw.

    >>> from pyrovae.models.vae import VAE
    >>> vae, x = VAE((1, 8, 8), latent_dim=2, hidden=(16,)), torch.rand(6, 1, 8, 8)
    >>> encode(vae, x).shape, reconstruct(vae, x).shape, generate(vae, 10, like=x).shape
    (torch.Size([6, 2]), torch.Size([6, 1, 8, 8]), torch.Size([10, 1, 8, 8]))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyrovae.evaluation.points import Values, by_row, posterior_trace, shared, values_at
from pyrovae.evaluation.running import Evaluation, check_counts, cycled, evaluating, evaluating_first
from pyrovae.evaluation.sites import (
    given,
    guide_traces,
    is_discrete,
    latent_site,
    mean_of,
    observed_site,
    rows_first,
)
from pyrovae.objectives.dreams import uncondition

__all__ = ["decode", "encode", "generate", "reconstruct"]


def encode(
    pair: Any,
    data: Any,
    *,
    site: str | None = None,
    sample: bool = False,
    num_samples: int = 100,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """The mean E_q[z | x] of a latent site for each datum, or one draw of it.

    Args:
        pair, data, plate, seed, batch_size: see `evaluating`.
        site: a latent that the guide samples for each datum. Default: the first continuous one, in the model's order.
        sample: draw from the guide instead.
        num_samples: draws of the guide that the mean is taken over, where it depends on other latents (their means
            given those are averaged) or has no closed form.

    Returns:
        (N, ...): rows first, then nested plates, then the event of the site.

    Raises:
        ValueError: if there is no such site.
    """
    check_counts(num_samples=num_samples)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        name = latent_site(on, site)["name"]
        codes = []
        for run, batch, _ in on:
            drawn = [trace.nodes[name] for trace in guide_traces(run, batch, name, 1 if sample else num_samples)]
            if not sample and mean_of(drawn[0]) is None and is_discrete(drawn[0]):
                raise ValueError(f"latent {name!r} is discrete and has no mean; pass sample=True")
            values = [s["value"] if sample or (mean := mean_of(s)) is None else mean for s in drawn]
            codes.append(rows_first(values[0] if len(values) == 1 else torch.stack(values).mean(0), drawn[0]))
        return on.join(codes)


def reconstruct(
    pair: Any,
    data: Any,
    *,
    num_samples: int = 1,
    site: str | None = None,
    sample: bool = False,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """The mean of p(x | z), averaged over z ~ q(z | x); or one draw of x, a replicate.

    Other observed sites keep their values. Discrete latents that only the model has are drawn from p(c | x, z).

    Args:
        pair, data, plate, seed, batch_size: see `evaluating`.
        num_samples: draws of z to average over.
        site: an observed site. Default: x, or the only one.
        sample: draw x instead of its mean; of one z.

    Returns:
        (N, *event).

    Raises:
        ValueError: if there is no such site; for several `num_samples` with `sample`, or at a site without a finite
            mean, as of classes.
    """
    check_counts(num_samples=num_samples)
    if sample and num_samples > 1:
        raise ValueError(f"num_samples is {num_samples} and sample is True; one draw has one z, leave num_samples out")
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        name = observed_site(on.known, site)
        parts = []
        for run, batch, _ in on:
            total: Any = 0
            for _ in range(num_samples):
                at = posterior_trace(run, batch, on.known).nodes[name]
                if num_samples > 1 and mean_of(at) is None:
                    raise ValueError(
                        f"num_samples is {num_samples} and site {name!r} has no finite mean, so that draws of it would "
                        "be averaged; leave num_samples out"
                    )
                value = given(at, sample)
                total = total + value
            parts.append(value if num_samples == 1 else total / num_samples)
        return on.join(parts)


def generate(
    pair: Any,
    num_samples: int,
    *,
    like: Any,
    fixed: Mapping[str, Tensor] | None = None,
    site: str | None = None,
    sample: bool = False,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """What the model generates: z ~ p(z), and the mean of p(x | z) or a draw of x.

    Latents that all data share are drawn once. No site is observed, so that of `like` only the shape of x counts; a
    tensor that the model takes as an input, such as a label to condition on, is used as it is.

    Args:
        pair, plate, seed, batch_size: see `evaluating`.
        num_samples: how many, n.
        like: data or a batch to call the model with; its rows are repeated to n.
        fixed: latents that keep given values, by site, {"z3": z3}, shaped as `encode` returns them: n rows, or one for
            all samples. The others are drawn: those below from p(z2 | z3) on, say; those above from the prior, which
            knows nothing of what is fixed below.
        site: an observed site. Default: x, or the only one.
        sample: draw x instead of its mean given z.

    Returns:
        (n, *event).

    Raises:
        ValueError: for a fixed site that is no latent of the model, a value of another shape, or a class that it does
            not have; for a latent with a flat prior that is not fixed.

    >>> from pyrovae.models import LadderVAE
    >>> ladder, x = LadderVAE(8, latent_dims=(4, 2), hidden=(16,)), torch.ones(3, 8)
    >>> generate(ladder, 5, like=x, fixed={"z2": encode(ladder, x[:1], site="z2")}).shape
    torch.Size([5, 8])
    """
    check_counts(num_samples=num_samples)
    with evaluating_first(pair, like, num_samples, plate=plate, seed=seed) as on:
        name = observed_site(on.known, site)
        if not set(on.known.improper) <= set(fixed or {}):
            on.known.refuse_improper()
        values: dict[str, Values] = {}
        if fixed or on.known.global_latent:
            trace = poutine.trace(uncondition(on.pair.model)).get_trace(*on.batch())
            checked = [_fixed(trace.nodes, on, num_samples, *item) for item in dict(fixed or {}).items()]
            values = shared(trace, on.known) | dict(checked)
        return _generated(on, num_samples, values, name, sample, batch_size, observed=False)


def _fixed(nodes: Any, on: Evaluation, rows: int, name: str, value: Any) -> tuple[str, Values]:
    """A latent and its checked values for each row."""
    if name not in on.known.latent or name in on.known.global_latent:
        raise ValueError(f"fixed has {name!r}, which is no latent of each datum; name among {on.known.latent}")
    at = nodes[name]
    wanted = rows_first(at["value"], at)
    got = tuple(value.shape) if isinstance(value, Tensor) else value
    if not isinstance(got, tuple) or got[1:] != wanted.shape[1:] or got[:1] not in ((1,), (rows,)):
        shape = ", ".join([str(rows), *map(str, wanted.shape[1:])])
        raise ValueError(f"fixed[{name!r}] has shape {got}, latent {name!r} ({shape}); pass that shape, or one row")
    _refuse_unknown_classes(f"fixed[{name!r}]", value, at)
    return name, by_row(value.to(wanted.device, wanted.dtype), at)


def _refuse_unknown_classes(what: str, value: Tensor, site: dict[str, Any]) -> None:
    support = site["fn"].support if is_discrete(site) else None
    if isinstance(support, constraints.integer_interval) and not support.check(value.to(site["value"].device)).all():
        first, last = int(support.lower_bound), int(support.upper_bound)
        raise ValueError(
            f"{what} has {sorted(set(value.flatten().tolist()))}, the classes of {site['name']!r} are {first} to "
            f"{last}; pass numbers of these"
        )


def _generated(
    on: Evaluation,
    count: int,
    values: dict[str, Values],
    site: str,
    sample: bool,
    batch_size: int | None,
    *,
    observed: bool,
) -> Tensor:
    """What a site gives on `count` rows, those of `on` over and over, at values of latents."""
    tensors = tuple(cycled(tensor, count) for tensor in on.batch(len(on.rows)))
    rows = on.on_rows(tensors, batch_size)
    values = {s: v if v.dim is None else Values(cycled(v.value, len(rows.rows)), v.dim) for s, v in values.items()}
    parts = []
    for run, batch, covered in rows:
        model = run.model if observed else uncondition(run.model)
        model = poutine.condition(model, data=values_at(values, covered))
        parts.append(given(poutine.trace(model).get_trace(*batch).nodes[site], sample))
    return rows.join(parts)[:count]


def decode(
    pair: Any,
    z: Tensor,
    *,
    like: Any,
    latent: str | None = None,
    site: str | None = None,
    sample: bool = False,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """The mean of p(x | z) at given z; other latents as the model draws them, other observed sites as in `like`.

    Latents that all data share are drawn from the guide, once.

    Args:
        pair, plate, seed, batch_size: see `evaluating`.
        z: values of the latent, shaped as `encode` returns them: (N, L) for a vector.
        like: data or a batch to call the model with; its rows are repeated to N.
        latent: which latent z is. Default: the first continuous one, in the model's order.
        site: an observed site. Default: x, or the only one.
        sample: draw x instead of its mean.

    Returns:
        (N, *event).

    Raises:
        ValueError: if z does not have the latent's shape, or holds a class that it does not have.
    """
    if not isinstance(z, Tensor) or z.dim() == 0 or len(z) == 0:
        raise ValueError(f"z is {z!r}, a tensor with one row at least is wanted; pass shape (N, L)")
    with evaluating_first(pair, like, len(z), plate=plate, seed=seed) as on:
        name, at = observed_site(on.known, site), latent_site(on, latent)
        wanted = rows_first(at["value"], at)
        if z.shape[1:] != wanted.shape[1:]:
            shape = ", ".join(["N", *map(str, wanted.shape[1:])])
            raise ValueError(f"z has shape {tuple(z.shape)}, latent {at['name']!r} ({shape}); pass that shape")
        _refuse_unknown_classes("z", z, at)
        values = {at["name"]: by_row(z.to(wanted.device, wanted.dtype), at)}
        if on.known.global_latent:
            values |= shared(posterior_trace(on.pair, on.batch(), on.known), on.known)
        return _generated(on, len(z), values, name, sample, batch_size, observed=True)
