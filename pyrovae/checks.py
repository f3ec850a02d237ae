r"""Predictive checks: are data that the model makes like the data, in the statistics that matter?

    prior predictive:      x_rep ~ p(x)
    posterior predictive:  z ~ q(z | x),  x_rep ~ p(x | z)

A statistic T of a whole data set is compared with its values for R replicated data sets of as many rows:

    p = P(T(x_rep) >= T(x)),  estimated as  (#{T_rep > T} + U (1 + #{T_rep = T})) / (R + 1),  U ~ Uniform(0, 1)

* Prior predictive: if the data come from the model, T and the R values of T_rep are exchangeable, so that p is exactly
  uniform, at any R and with any ties. That holds for rows that the model has not seen, up to the error of its
  parameters; rows that it was fitted to look more like it than new ones.
* Posterior predictive: the data are used twice, so p is conservative. If q(z | x) is the exact posterior of the model
  that the data come from, p has mean 1/2 and a variance of at most 1/12, often much less; a value near 0 or 1 is then
  stronger evidence than it looks, one near 1/2 weaker.

Sources: Box 1980, J. R. Stat. Soc. A 143 (prior); Rubin 1984, Ann. Stat. 12, and Gelman, Meng & Stern 1996,
Stat. Sinica 6 (posterior); Meng 1994, Ann. Stat. 22 (its mean and variance).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae import plots
from pyrovae.data.seeds import derived_seed
from pyrovae.distributions.products import masks
from pyrovae.evaluation.running import Evaluation
from pyrovae.evaluation.sites import observed_site, summed_sites
from pyrovae.models.base import PairLike, Structure, isolated_random_state, random_sites
from pyrovae.objectives.dreams import uncondition
from pyrovae.objectives.particles import PARTICLES, vectorises
from pyrovae.statistics import STATISTICS, Statistic, by_name, number

__all__ = ["STATISTICS", "Check", "Comparison", "check", "p_value", "replicate"]

Source = Literal["posterior", "prior"]

LABELS = {
    "posterior": "posterior predictive, conservative",
    "prior": "prior predictive, uniform under the model",
}
ROWS_AT_ONCE = 1024
EXAMPLES = 16
_REPLICATES, _STATISTICS, _TIES = range(3, 6)  # what a seed is used for, after the uses in `pyrovae.data.seeds`


@dataclass(frozen=True)
class Comparison:
    """One statistic of the data beside its values for replicated data.

    Attributes:
        statistic: its name.
        source: where replicates come from, "posterior" or "prior".
        observed: its value for the data.
        replicated: its value for each replicated data set, (R,), float64.
        p_value: P(T_rep >= T), see `p_value`.
    """

    statistic: str
    source: Source
    observed: float
    replicated: Tensor
    p_value: float

    @property
    def tail(self) -> float:
        """The two-sided p-value 2 min(p, 1 - p), uniform where p is."""
        return 2 * min(self.p_value, 1 - self.p_value)

    @property
    def label(self) -> str:
        """What kind of p-value it is, and how it is distributed if the model is right."""
        return LABELS[self.source]


@dataclass(frozen=True)
class Check:
    """What `check` found: printed as a table, drawn by `plot`.

    Attributes:
        rows: a `Comparison` for each statistic and source.
        constant: statistics without a p-value, such as "max (prior)": the same in the data and in every replicate.
        examples: a few rows of the "data", and of the first replicate from each source, (n, *event), on the CPU;
            replicates from the posterior belong to the rows of the data.
        num_rows: N, how many rows were compared.
        num_replicates: R.
    """

    rows: tuple[Comparison, ...]
    constant: tuple[str, ...]
    examples: dict[str, Tensor]
    num_rows: int
    num_replicates: int

    def __str__(self) -> str:
        width = max([len(row.statistic) for row in self.rows] + [9])
        head = f"  {'statistic':<{width}}{'data':>12}{'replicated':>25}{'p-value':>9}{'two-sided':>11}"
        lines = [f"predictive check of {self.num_rows} rows by {self.num_replicates} replicates", head]
        for index, row in enumerate(self.rows):
            if index == 0 or row.source != self.rows[index - 1].source:
                lines.append(row.label)
            replicated = f"{row.replicated.mean():.5g} ± {row.replicated.std(correction=0):.2g}"
            numbers = f"{row.observed:>12.5g}{replicated:>25}{row.p_value:>9.3f}{row.tail:>11.3f}"
            lines.append(f"  {row.statistic:<{width}}{numbers}")
        if self.constant:
            lines.append(f"the same in the data and every replicate: {', '.join(self.constant)}")
        return "\n".join(lines)

    def plot(self, axes: Any = None, *, columns: int = 4) -> Any:
        """A histogram of each statistic with a line at the data's; see `pyrovae.plots.predictive_checks`."""
        panels = [
            {
                "observed": row.observed,
                "replicated": row.replicated,
                "p_value": row.p_value,
                "name": f"{row.statistic}, {row.source}".replace("_", " "),
            }
            for row in self.rows
        ]
        return plots.predictive_checks(panels, axes=axes, columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """All of it but the single replicates, as JSON can hold it."""
        rows = [
            {
                "statistic": row.statistic,
                "source": row.source,
                "label": row.label,
                "observed": row.observed,
                "replicated_mean": row.replicated.mean().item(),
                "replicated_sd": row.replicated.std(correction=0).item(),
                "p_value": row.p_value,
                "tail": row.tail,
            }
            for row in self.rows
        ]
        sizes = {"num_rows": self.num_rows, "num_replicates": self.num_replicates}
        return {"rows": rows, "constant": list(self.constant), **sizes}


def check(
    pair: Any,
    data: Any,
    statistics: str | Statistic | Sequence[str | Statistic] | Mapping[str, str | Statistic] | None = None,
    *,
    num_replicates: int = 200,
    sources: Source | Sequence[Source] | None = None,
    site: str | None = None,
    plate: str | None = None,
    max_rows: int | None = 1000,
    seed: int = 0,
    batch_size: int | None = None,
) -> Check:
    """Compare data with what the model makes, by test statistics and their predictive p-values.

    Args:
        pair: see `pyrovae.as_pair`.
        data: what `pyrovae.data.match` takes, and best what the pair was not fitted to. Of `Data` it is the test split,
            else the validation split, else the training split. A random transform is applied once, drawn from `seed`.
        statistics: names from `STATISTICS` and functions that take x (N, *event) and return one number, alone, in a
            list, or in a mapping that names them. Default: all of `STATISTICS`.
        num_replicates: R; p-values are as fine as 1 / (R + 1).
        sources: where replicates come from; "posterior", "prior" or both. Default: both, or the first where a latent
            has a flat prior.
        site: the observed site to compare; needed only where there are several and none is called "x".
        plate: name of the data plate, where it is not plain.
        max_rows: compare at most this many rows, chosen by `seed`: fewer rows see only larger misfits. None: all.
        seed: of rows, replicates and ties; random states are left as they were.
        batch_size: rows that go through the pair at once, those of all replicates together; default 1024.

    Returns:
        the `Check`.

    Raises:
        ValueError: for an unknown statistic, source or site, or a statistic that is not one finite number.
        TypeError: for a statistic that is neither a name nor a function.

    Source: see the module.

    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
    >>> x = 10 * torch.sin(torch.arange(50.0))  # much wider than the model's N(0, 2)
    >>> for row in check((model, guide), x, ["sd", torch.median], sources="prior").rows:
    ...     print(row.statistic, row.p_value < 0.01, row.label)
    sd True prior predictive, uniform under the model
    median False prior predictive, uniform under the model
    """
    functions = by_name(statistics)
    asked = [sources] if isinstance(sources, str) else sources
    task = _Replicas(pair, data, asked, num_replicates, site, plate, max_rows, seed, batch_size)
    rows: list[Comparison] = []
    constant: list[str] = []
    examples: dict[str, Tensor] = {}
    uniforms = torch.Generator().manual_seed(derived_seed(seed, _TIES))
    with isolated_random_state(derived_seed(seed, _STATISTICS)), torch.no_grad():
        for source in task.sources:
            values: list[list[float]] = []  # of the data, then of each replicate
            for replicated, x in task.chunks(source):
                if not values:
                    examples |= {"data": x[:EXAMPLES].cpu(), source: replicated[0, :EXAMPLES].cpu()}
                    values.append([number(name, function, x) for name, function in functions.items()])
                values += [[number(name, function, rep) for name, function in functions.items()] for rep in replicated]
            columns = torch.tensor(values, dtype=torch.float64).T
            for name, column in zip(functions, columns, strict=True):
                uniform = torch.rand((), generator=uniforms, dtype=torch.float64).item()
                observed, others = column[0].item(), column[1:]
                if (others == observed).all():
                    constant.append(f"{name} ({source})")
                else:
                    rows.append(Comparison(name, source, observed, others, p_value(observed, others, uniform)))
    return Check(tuple(rows), tuple(constant), examples, task.num_rows, num_replicates)


def p_value(observed: float | Tensor, replicated: Tensor, uniform: float) -> float:
    """P(T_rep >= T) with ties broken at random: exactly uniform where T and the R values of T_rep are exchangeable.

        (#{T_rep > T} + U (1 + #{T_rep = T})) / (R + 1)

    Args:
        observed: T, one number; or (R,), where it depends on the latents of the replicate too.
        replicated: T_rep, (R,).
        uniform: U, a draw from Uniform(0, 1).

    >>> p_value(2.0, torch.tensor([1.0, 2.0, 3.0]), uniform=0.5)  # (1 + 0.5 x 2) / 4
    0.5
    """
    above, equal = int((replicated > observed).sum()), int((replicated == observed).sum())
    return (above + uniform * (1 + equal)) / (len(replicated) + 1)


def replicate(
    pair: Any,
    data: Any,
    *,
    source: Source = "posterior",
    num_replicates: int = 200,
    site: str | None = None,
    plate: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Iterator[Tensor]:
    """Replicated data sets, one by one: as many rows as the data, drawn from p(x | z) with z ~ q(z | x), or from p(x).

    Every observed site is drawn anew, given the sites before it; inputs of the model that are no site stay as they
    are, and so do entries that the model masks, with `poutine.mask` or in the distribution. Sites that the model
    enumerates are drawn given x and the guide's z.

    Args:
        pair, data, site, plate, seed, batch_size: as for `check`.
        source: "posterior" draws latents from the guide, "prior" from the model.
        num_replicates: R.

    Returns:
        iterator over R tensors (N, *event), the values of `site` in the order of the data; a few of them are in memory
        at a time. `torch.stack(list(...))` holds all.

    Raises:
        ValueError: for an unknown source or site.

    >>> from pyrovae.models import VAE
    >>> x = torch.ones(5, 4)
    >>> len(list(replicate(VAE((4,), latent_dim=2), x, num_replicates=3)))
    3
    """
    task = _Replicas(pair, data, [source], num_replicates, site, plate, None, seed, batch_size)
    return (x for chunk, _ in task.chunks(source) for x in chunk)


class _Replicas:
    """Rows of data, and what draws replicates of them."""

    def __init__(
        self,
        pair: Any,
        data: Any,
        sources: Sequence[Source] | None,
        num_replicates: int,
        site: str | None,
        plate: str | None,
        max_rows: int | None,
        seed: int,
        batch_size: int | None,
    ):
        for name, count in {"num_replicates": num_replicates, "max_rows": max_rows, "batch_size": batch_size}.items():
            if count is not None and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{name} is {count!r}, a whole number of at least 1 is wanted; pass {name}=200, say")
        chosen: Sequence[Source] = ["posterior", "prior"] if sources is None else list(sources)
        if not chosen or (wrong := [source for source in chosen if source not in LABELS]):
            asked = repr(wrong[0]) if chosen else "empty"
            raise ValueError(f"the source of replicates is {asked}; pass 'posterior' or 'prior'")
        at_once = ROWS_AT_ONCE if batch_size is None else batch_size
        self.on = Evaluation(pair, data, plate=plate, seed=seed, batch_size=at_once, max_rows=max_rows)
        self.site, self.seed, self.num_replicates = observed_site(self.on.known, site), seed, num_replicates
        self.sources: Sequence[Source] = ["posterior"] if sources is None and self.on.known.improper else chosen
        if "prior" in self.sources:
            self.on.known.refuse_improper()
        self.num_rows = len(self.on.rows)
        if self.on.known.global_latent and not self.on.subsamples:
            self.on.batch_size = self.num_rows  # latents outside the plate are the same for all rows
        with self.on.ready(seed):
            self.runs = [(run, batch) for run, batch, _ in self.on]
        self.replicates_at_once = min(num_replicates, max(1, at_once // self.num_rows))

    def chunks(self, source: Source) -> Iterator[tuple[Tensor, Tensor]]:
        """Some replicates at a time, (r, N, *event), each time with the data, (N, *event)."""
        at_once, total = self.replicates_at_once, self.num_replicates
        kind = list(LABELS).index(source)
        seeds = {start: derived_seed(self.seed, _REPLICATES, kind, start) for start in range(0, total, at_once)}
        return (self._chunk(source, min(at_once, total - start), seed) for start, seed in seeds.items())

    def _chunk(self, source: Source, count: int, seed: int) -> tuple[Tensor, Tensor]:
        # without validation, for data that the model cannot give are what a check is for
        with self.on.ready(seed), pyro.validation_enabled(False):
            drawn = [self._draw(source, count, run, batch) for run, batch in self.runs]
        return self.on.join([replicated for replicated, _ in drawn], 1), self.on.join([x for _, x in drawn])

    def _draw(self, source: Source, count: int, run: PairLike, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """One run of the pair: replicates (count, B, *event), and the data (B, *event) in the same form."""
        known = self.on.known
        if count > 1 and not vectorises(run, batch, known):
            drawn = [self._draw(source, 1, run, batch) for _ in range(count)]
            return torch.cat([replicated for replicated, _ in drawn]), drawn[0][1]
        nesting = known.max_plate_nesting

        def at_once(program: Callable[..., Any]) -> Callable[..., Any]:
            return pyro.plate(PARTICLES, count, dim=-1 - nesting)(program) if count > 1 else program

        given: dict[str, Tensor] = {}
        if source == "posterior":
            guided = poutine.trace(at_once(run.guide)).get_trace(*batch)
            given = {s["name"]: s["value"] for s in random_sites(guided) if s["name"] in known.latent}
            if summed := set(known.latent) - set(given):
                model = at_once(poutine.condition(run.model, given))
                given |= summed_sites(model, batch, summed, nesting + (count > 1))
        # condition goes around uncondition: what is given stays, what the data gave is drawn anew
        model = at_once(poutine.condition(uncondition(run.model), given))
        node = poutine.trace(model).get_trace(*batch).nodes[self.site]
        replicated, data = (_by_row(value, node, known) for value in _compared(node))
        return replicated, data[0]


def _compared(site: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Replicated and observed value of a site that was unconditioned, alike in shape and dtype."""
    replicated, data = site["value"], site["infer"]["obs"]
    dtype = data.dtype if data.is_floating_point() else replicated.dtype
    replicated, data = replicated.to(dtype), data.to(dtype).expand(replicated.shape)
    fn = site["fn"] if site["mask"] is None else site["fn"].mask(site["mask"])
    for mask in masks(fn, fn.event_dim):  # what is masked is no data
        replicated = torch.where(torch.as_tensor(mask, device=data.device), replicated, data)
    return replicated, data


def _by_row(value: Tensor, site: dict[str, Any], known: Structure) -> Tensor:
    """Dims (replicates, nested plates, rows, event) as (replicates, rows, nested plates, event)."""
    plates = {frame.name: frame.dim for frame in site["cond_indep_stack"]}
    if known.plate not in plates:
        raise ValueError(
            f"site {site['name']!r} is outside the plate {known.plate!r}, so it has no rows to replicate; "
            f"move it inside, or pass site= with another of {list(known.observed)} (--site)"
        )
    batch, event = value.shape[: value.dim() - site["fn"].event_dim], value.shape[value.dim() - site["fn"].event_dim :]
    value = value.reshape((1,) * (1 + known.max_plate_nesting - len(batch)) + value.shape)
    nested = [batch[dim] for dim in range(-known.max_plate_nesting, -1) if dim in plates.values()]
    return value.movedim(known.max_plate_nesting, 1).reshape(value.size(0), batch[-1], *nested, *event)
