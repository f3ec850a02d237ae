"""What a pair predicts: codes, reconstructions, samples, and what points of its latent space decode to.

Every function takes any pair and any data that `pyrovae.data.match` takes, runs the pair in evaluation mode, without
gradients, on random states of its own that start from `seed`, and returns a tensor on the pair's device whose first
dim is rows. What a site "gives" is the mean of its distribution where that is defined and finite, and else a draw.

    >>> from pyrovae.models.vae import VAE
    >>> vae, x = VAE((1, 8, 8), latent_dim=2, hidden=(16,)), torch.rand(6, 1, 8, 8)
    >>> encode(vae, x).shape, reconstruct(vae, x).shape, generate(vae, 10, like=x).shape
    (torch.Size([6, 2]), torch.Size([6, 1, 8, 8]), torch.Size([10, 1, 8, 8]))
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyrovae.data import Data, Split, Stream, match
from pyrovae.models.base import (
    Functions,
    PairLike,
    Structure,
    as_pair,
    evaluation_mode,
    isolated_random_state,
    random_sites,
    structure,
)

__all__ = ["decode", "encode", "generate", "interpolate", "manifold", "reconstruct", "traverse"]

BUDGET = 2**22  # numbers of data and latents that are worked on at once; activations take a few times as many
ROWS = 128  # per batch, where the budget allows as many


# Running a pair ------------------------------------------------------------------------------------------------------


class Evaluation:
    """A pair on data, ready to run: made by `evaluating`.

    Iterating gives `(run, batch, covered)`: the pair, a batch on its device, and which rows of the data it covers. For
    a model that subsamples the data by itself each batch is all the data, and `run` has the rows of its plate set.

    Attributes:
        pair: the pair.
        known: its structure.
        rows: the data.
    """

    def __init__(self, pair: PairLike, rows: Split | Stream, batch_size: int, plate: str | None):
        self.pair, self.rows, self.batch_size = pair, rows, batch_size
        self.device, self.dtype = _home(pair)
        self.known = structure(pair, *self.batch(), plate=plate)

    def __iter__(self) -> Iterator[tuple[PairLike, tuple[Tensor, ...], slice]]:
        total, size = len(self.rows), self.known.rows
        if size < min(self.batch_size, total):
            batch = self.batch(total)
            for start in range(0, total, size):
                covered = slice(min(start, total - size), min(start + size, total))  # the last ones overlap
                yield self._at(torch.arange(covered.start, covered.stop)), batch, covered
            return
        batches, start = self.rows.sequential(self.batch_size), 0
        while start < total:
            with torch.device("cpu"):  # a DataLoader fails where new tensors go to a GPU by default
                batch = next(batches)
            yield self.pair, self._moved(batch), slice(start, start + len(batch[0]))
            start += len(batch[0])

    def batch(self, size: int | None = None) -> tuple[Tensor, ...]:
        """The first rows of the data."""
        with torch.device("cpu"):
            batch = next(self.rows.sequential(self.batch_size if size is None else size))
        return self._moved(batch)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Results of all batches, each (rows, ...), as one for all rows of the data."""
        missing = len(self.rows) - sum(len(part) for part in parts[:-1])
        return torch.cat([*parts[:-1], parts[-1][-missing:]])

    def _moved(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self.device, self.dtype if tensor.is_floating_point() else None) for tensor in batch)

    def _at(self, rows: Tensor) -> PairLike:
        chosen = Trace()
        chosen.add_node(self.known.plate, name=self.known.plate, type="sample", value=rows, is_observed=False, infer={})
        return Functions(poutine.replay(self.pair.model, trace=chosen), poutine.replay(self.pair.guide, trace=chosen))


@contextlib.contextmanager
def evaluating(
    pair: Any, data: Any, *, plate: str | None = None, seed: int = 0, batch_size: int | None = None, particles: int = 1
) -> Iterator[Evaluation]:
    """A pair in evaluation mode on data, without gradients, on random states of its own; all as before afterwards.

    Args:
        pair: see `pyrovae.as_pair`.
        data: see `pyrovae.data.match`; the transform of a Split is applied once, drawn from `seed`.
        plate: name of the data plate, where it is not plain.
        seed: of all draws.
        batch_size: rows at once. Default: 128, or fewer so that `BUDGET` bounds rows x particles x size of a datum;
            all, where the guide is an autoguide.
        particles: how many are to be drawn at once.

    Raises:
        TypeError, ValueError: for a pair or data that can't work.
    """
    pair = as_pair(pair)
    check_counts(batch_size=batch_size)
    if isinstance(data, Data):
        raise ValueError(f"data is {data!r}, one of its splits is wanted; pass data.test or data.train")
    rows = match(data, pair.model)
    if isinstance(rows, Split):
        rows = rows.fixed(seed)
    if batch_size is None:
        fitting = max(1, BUDGET // (particles * max(1, math.prod(rows.event_shape))))
        batch_size = len(rows) if isinstance(pair.guide, AutoGuide) else min(len(rows), ROWS, fitting)
    device, _ = _home(pair)
    with contextlib.ExitStack() as stack:
        stack.enter_context(isolated_random_state(seed))
        stack.enter_context(torch.no_grad())
        if device is not None and device.type != "cpu":
            stack.enter_context(device)  # for tensors that a user's program makes
        on = Evaluation(pair, rows, batch_size, plate)
        stack.enter_context(evaluation_mode(*(pair if isinstance(pair, Functions) else [pair]), *on.known.modules))
        yield on


def check_counts(**counts: Any) -> None:
    """Each is a whole number of at least 1, or None.

    Raises:
        TypeError, ValueError: otherwise.
    """
    for name, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"{name} is {value!r}, a whole number is wanted; pass {name}=100, say")
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}, at least 1 is wanted; pass {name}=100, say")


def _home(pair: PairLike) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and dtype that the pair's parameters have in common."""
    owners = [getattr(part, "__self__", part) for part in (pair if isinstance(pair, tuple) else [pair])]
    inner = [value for owner in owners for value in getattr(owner, "__dict__", {}).values()]
    modules = [module for module in [*owners, *inner] if isinstance(module, nn.Module)]
    tensors = [tensor for module in modules for tensor in module.parameters()]
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if not tensors:  # parameters in Pyro's store, which may be another program's
        tensors = [tensor for _, tensor in pyro.get_param_store().named_parameters() if tensor.device.type != "cpu"]
    devices = {tensor.device for tensor in tensors}
    return devices.pop() if len(devices) == 1 else None, dtypes.pop() if len(dtypes) == 1 else None


# Sites ---------------------------------------------------------------------------------------------------------------


def latent_site(on: Evaluation, name: str | None = None, *, vector: bool = False) -> dict[str, Any]:
    """A latent site that the guide samples for each datum: by name, or the first continuous one in the model's order.

    Args:
        on: the pair on data.
        name: of the site.
        vector: whether its value has to be a vector (of an event shape with one dim).

    Raises:
        ValueError: if there is none; it names those there are.
    """
    trace = poutine.trace(on.pair.guide).get_trace(*on.batch())
    sites = {
        site["name"]: site
        for site in random_sites(trace)
        if not site["is_observed"] and any(frame.name == on.known.plate for frame in site["cond_indep_stack"])
    }
    fitting = [s for s in sites if not _is_discrete(sites[s]) and (not vector or sites[s]["fn"].event_dim == 1)]
    shapes = {s: tuple(site["fn"].event_shape) for s, site in sites.items()}
    kind = "continuous vector" if vector else "continuous latent"
    if name is None:
        name = next((s for s in on.known.latent if s in fitting), None)
        if name is None:
            raise ValueError(
                f"the guide samples no {kind} for each datum, only {shapes or 'none'}; name another latent"
            )
    elif name not in sites:
        raise ValueError(f"{name!r} is no latent that the guide samples for each datum; name one of {shapes}")
    elif vector and name not in fitting:
        raise ValueError(f"latent {name!r} has event shape {shapes[name]} and is no {kind}; name one of {fitting}")
    return sites[name]


def _observed_site(known: Structure, name: str | None) -> str:
    chosen = name or ("x" if "x" in known.observed else known.observed[0] if len(known.observed) == 1 else None)
    if chosen not in known.observed:
        wanted = f"site {name!r} is not observed in the model" if name else "the model observes several sites"
        raise ValueError(f"{wanted}, its observed sites are {list(known.observed)}; pass site= one of them")
    return chosen


def _is_discrete(site: dict[str, Any]) -> bool:
    try:
        return bool(site["fn"].support.is_discrete)
    except (AttributeError, NotImplementedError):
        return bool(site["fn"].has_enumerate_support)


def mean_of(site: dict[str, Any]) -> Tensor | None:
    """The mean of a site's distribution, if it is defined and finite."""
    try:
        mean = site["fn"].mean
    except (AttributeError, NotImplementedError):
        return None
    return mean if torch.isfinite(mean).all() else None


def _given(site: dict[str, Any], sample: bool) -> Tensor:
    """What a site gives: the mean of its distribution or else a draw, never the value that the trace has; rows first.

    An observed site's value in a trace is the observation itself.
    """
    mean = None if sample else mean_of(site)
    return rows_first(site["fn"].sample() if mean is None else mean, site)


def rows_first(value: Tensor, site: dict[str, Any]) -> Tensor:
    """(nested plates..., B, *event) to (B, nested plates..., *event)."""
    return value.movedim(value.dim() - site["fn"].event_dim - 1, 0)


def guide_traces(run: PairLike, batch: Sequence[Any], name: str, num_samples: int) -> Iterator[Trace]:
    """Traces of the guide whose means at a site average to E_q[site | x]: one where it is exact, else `num_samples`."""
    trace = poutine.trace(run.guide).get_trace(*batch)
    yield trace
    before = next(site["name"] for site in random_sites(trace) if not site["is_observed"])
    if before != name or mean_of(trace.nodes[name]) is None:
        for _ in range(num_samples - 1):
            yield poutine.trace(run.guide).get_trace(*batch)


# What a pair predicts ------------------------------------------------------------------------------------------------


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
            if not sample and mean_of(drawn[0]) is None and _is_discrete(drawn[0]):
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
        ValueError: if there is no such site, or for `sample` with several `num_samples`.
    """
    check_counts(num_samples=num_samples)
    if sample and num_samples > 1:
        raise ValueError(f"num_samples is {num_samples} and sample is True; one draw has one z, leave num_samples out")
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        name = _observed_site(on.known, site)
        parts = []
        for run, batch, _ in on:
            traces = (_posterior_trace(run, batch, on.known) for _ in range(num_samples))
            total = reduce(torch.add, (_given(trace.nodes[name], sample) for trace in traces))
            parts.append(total if num_samples == 1 else total / num_samples)
        return on.join(parts)


def _posterior_trace(run: PairLike, batch: Sequence[Any], known: Structure) -> Trace:
    """The model's trace at latents drawn from the guide."""
    guide_trace = poutine.trace(run.guide).get_trace(*batch)
    sampled = {s["name"]: s["value"] for s in random_sites(guide_trace) if not s["is_observed"]}
    latents = {name: sampled[name] for name in known.latent if name in sampled}
    model = poutine.condition(run.model, data=latents)
    if set(known.enumerated) & set(known.latent) - set(latents):
        model = infer_discrete(model, first_available_dim=-1 - known.max_plate_nesting)
    return poutine.trace(model).get_trace(*batch)


def generate(
    pair: Any,
    num_samples: int,
    *,
    like: Any,
    site: str | None = None,
    sample: bool = False,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """What the model generates: z ~ p(z), and the mean of p(x | z) or a draw of x.

    No site is observed (`poutine.uncondition`), so that of `like` only the shape of x counts; a tensor that the model
    takes as an input, such as a label to condition on, is used as it is.

    Args:
        pair, plate, seed, batch_size: see `evaluating`.
        num_samples: how many, n.
        like: data or a batch to call the model with; its rows are repeated to n.
        site: an observed site. Default: x, or the only one.
        sample: draw x instead of its mean given z.

    Returns:
        (n, *event).
    """
    check_counts(num_samples=num_samples)
    data = _repeated(pair, like, num_samples, seed)
    with evaluating(pair, data, plate=plate, seed=seed, batch_size=batch_size) as on:
        name = _observed_site(on.known, site)
        traces = (poutine.trace(poutine.uncondition(run.model)).get_trace(*batch) for run, batch, _ in on)
        return on.join([_given(trace.nodes[name], sample) for trace in traces])


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
        ValueError: if z does not have the latent's shape.
    """
    if not isinstance(z, Tensor) or z.dim() == 0 or len(z) == 0:
        raise ValueError(f"z is {z!r}, a tensor with one row at least is wanted; pass shape (N, L)")
    with evaluating(pair, _repeated(pair, like, len(z), seed), plate=plate, seed=seed, batch_size=batch_size) as on:
        name, at = _observed_site(on.known, site), latent_site(on, latent)
        wanted = rows_first(at["value"], at)
        if z.shape[1:] != wanted.shape[1:]:
            shape = ", ".join(["N", *map(str, wanted.shape[1:])])
            raise ValueError(f"z has shape {tuple(z.shape)}, latent {at['name']!r} ({shape}); pass that shape")
        z = z.to(wanted.device, wanted.dtype)
        parts = []
        for run, batch, covered in on:
            value = z[covered].movedim(0, z.dim() - at["fn"].event_dim - 1)
            model = poutine.condition(run.model, data={at["name"]: value})
            parts.append(_given(poutine.trace(model).get_trace(*batch).nodes[name], sample))
        return on.join(parts)


# Walks in latent space -----------------------------------------------------------------------------------------------


def interpolate(
    pair: Any,
    data: Any,
    *,
    steps: int = 10,
    latent: str | None = None,
    site: str | None = None,
    plate: str | None = None,
    seed: int = 0,
) -> Tensor:
    """What lies between data: z on straight lines between the codes of rows 0 and 1, 2 and 3, ..., decoded.

    Args:
        pair, data, plate, seed: see `evaluating`; an odd last row is left out.
        steps: points on each line S, both ends included.
        latent, site: see `decode`; where the model takes more than x, each line has the inputs of its first row.

    Returns:
        (R, S, *event), as `pyrovae.plots.interpolation` takes it.

    Raises:
        ValueError: for fewer than two rows, or fewer than two steps.
    """
    check_counts(steps=steps)
    batch = _rows(pair, data, None, seed)
    if len(batch[0]) < 2 or steps < 2:
        raise ValueError(f"data has {len(batch[0])} rows and steps is {steps}; pass two of each at least")
    batch = tuple(tensor[: len(tensor) // 2 * 2] for tensor in batch)
    z = encode(pair, batch, site=latent, plate=plate, seed=seed)
    fraction = torch.linspace(0, 1, steps, dtype=z.dtype, device=z.device).reshape(1, steps, *[1] * (z.dim() - 1))
    line = torch.lerp(z[::2].unsqueeze(1), z[1::2].unsqueeze(1), fraction)  # (R, S, L)
    like = tuple(tensor[::2].repeat_interleave(steps, 0) for tensor in batch)
    images = decode(pair, line.flatten(0, 1), like=like, latent=latent, site=site, plate=plate, seed=seed)
    return images.unflatten(0, (-1, steps))


def traverse(
    pair: Any,
    like: Any,
    *,
    z: Tensor | None = None,
    dims: Sequence[int] | None = None,
    values: Tensor | Sequence[float] | None = None,
    latent: str | None = None,
    site: str | None = None,
    plate: str | None = None,
    seed: int = 0,
) -> Tensor:
    """What each dimension of z does: z of one datum with one of its numbers replaced, decoded.

    Args:
        pair, plate, seed: see `evaluating`.
        like: data, of which the first row is taken.
        z: where to start, (L,). Default: the code of that row.
        dims: which numbers of z to replace. Default: each.
        values: by what, S of them. Default: -3, -2, ..., 3.
        latent, site: see `decode`.

    Returns:
        (len(dims), S, *event), as `pyrovae.plots.traversals` takes it.

    Raises:
        ValueError: if z is not a vector, or has no such dimension.
    """
    batch = _rows(pair, like, 1, seed)
    z = encode(pair, batch, site=latent, plate=plate, seed=seed)[0] if z is None else torch.as_tensor(z)
    dims = list(range(len(z))) if dims is None else list(dims)
    if z.dim() != 1 or not dims or not all(0 <= dim < len(z) for dim in dims):
        raise ValueError(f"dims is {dims} and z has shape {tuple(z.shape)}; pass dims of a z of shape (L,)")
    steps = torch.as_tensor(range(-3, 4) if values is None else values).to(z).flatten()
    points = z.repeat(len(dims), len(steps), 1)  # (dims, S, L)
    for row, dim in enumerate(dims):
        points[row, :, dim] = steps
    images = decode(pair, points.flatten(0, 1), like=batch, latent=latent, site=site, plate=plate, seed=seed)
    return images.unflatten(0, (len(dims), len(steps)))


def manifold(
    pair: Any,
    n: int = 20,
    *,
    like: Any,
    extent: float = 3.0,
    quantiles: bool = False,
    latent: str | None = None,
    site: str | None = None,
    plate: str | None = None,
    seed: int = 0,
) -> tuple[Tensor, tuple[float, float]]:
    """What the points of a grid over a two-dimensional latent decode to.

    Args:
        pair, plate, seed: see `evaluating`.
        n: points along each dimension.
        like: data or a batch to call the model with, of which the first row is taken.
        extent: the grid goes evenly from -extent to extent.
        quantiles: space it evenly in quantiles of the standard Normal instead: u = (i + 1/2) / n through the inverse of
            its distribution function, so that each point stands for equally much of the prior.
        latent, site: see `decode`.

    Returns:
        images (n, n, *event), [i, j] decoded from the i-th value of z[0] and the j-th of z[1]; and the first and last
        value of the even grid, in z or in u: as `pyrovae.plots.manifold` takes them.

    Raises:
        ValueError: if the latent has not two dimensions.

    Source: Kingma & Welling 2014, figure 4, for the grid in quantiles.
    """
    check_counts(n=n)
    if n < 2 or not 0 < extent < math.inf:
        raise ValueError(f"n is {n} and extent {extent}; pass n=20 and extent=3.0, say")
    batch = _rows(pair, like, 1, seed)
    code = encode(pair, batch, site=latent, plate=plate, seed=seed)
    if code.shape[1:] != (2,):
        raise ValueError(f"the latent has shape {tuple(code.shape[1:])}, a grid takes (2,); pass latent= another one")
    ends = (0.5 / n, 1 - 0.5 / n) if quantiles else (-float(extent), float(extent))
    grid = torch.linspace(*ends, n, dtype=code.dtype, device=code.device)
    grid = torch.special.ndtri(grid) if quantiles else grid
    z = torch.cartesian_prod(grid, grid)  # (n * n, 2)
    images = decode(pair, z, like=batch, latent=latent, site=site, plate=plate, seed=seed)
    return images.unflatten(0, (n, n)), ends


def _rows(pair: Any, data: Any, count: int | None, seed: int) -> tuple[Tensor, ...]:
    """The first rows of data, all without a count, as the model takes them."""
    rows = match(data, as_pair(pair).model)
    if isinstance(rows, Split):
        rows = (rows if count is None else rows.subset(slice(count))).fixed(seed)
    return next(rows.sequential(len(rows) if count is None else count))


def _repeated(pair: Any, like: Any, count: int, seed: int) -> tuple[Tensor, ...]:
    """`count` rows: those of `like`, over and over."""
    batch = _rows(pair, like, count, seed)
    return tuple(tensor[torch.arange(count, device=tensor.device) % len(tensor)] for tensor in batch)
