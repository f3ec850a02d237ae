r"""The seam: importance weights of any pair, per datum and in nats, with a ledger of every site.

    w_kb = p(x_b, z_kb) / q(z_kb | x_b),    z_kb ~ q(z | x_b),    k = 1..K particles, b = 1..B data

Bounds, objectives, evaluation and diagnostics are a few lines each on top of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae.models.base import PairLike, Structure, as_pair, structure
from pyrovae.models.traces import is_point, point_of
from pyrovae.objectives.draws import Draw, Term, Weight, draw_terms, expected, one, same, varies_inside
from pyrovae.objectives.particles import vectorises

__all__ = ["Ledger", "Term", "ledger", "log_weights"]


def log_weights(pair: Any, *batch: Any, num_particles: int = 1, plate: str | None = None) -> Tensor:
    """Log importance weights log p(x, z_k) - log q(z_k | x) of each datum.

    Discrete sites marked `infer={"enumerate": "parallel"}`, of the model or the guide, are summed inside the weight.
    Masked sites count where their mask is true; the data plate's own subsampling scale N/B and `poutine.scale` do not
    count, so that the values are densities per datum. Factors and observations outside the data plate belong to no
    datum and do not count either; `ELBO` has them, once for all data. The batch is taken as it is, since a captured
    step may call this: `fit` and the evaluations are what ask a pair's `check_batch`.

    Args:
        pair: see `pyrovae.as_pair`.
        batch: what model and guide are called with.
        num_particles: K, drawn at once in an outer plate where the pair allows it.
        plate: name of the data plate, where it is not plain.

    Returns:
        shape (K, B), nats per datum, differentiable.

    Raises:
        ValueError: for a pair with global latent sites, which have no weight per datum, or with sites that do
            not match.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
    >>> x = torch.tensor([0.0, 2.0])
    >>> exact = dist.Normal(0.0, 2**0.5).log_prob(x)  # the guide is the posterior: every weight is log p(x)
    >>> torch.allclose(log_weights((model, guide), x, num_particles=3), exact.expand(3, 2))
    True
    """
    return ledger(pair, *batch, num_particles=num_particles, plate=plate).log_weights()


def ledger(
    pair: Any,
    *batch: Any,
    num_particles: int = 1,
    plate: str | None = None,
    known: Structure | None = None,
    detached: bool = False,
) -> Ledger:
    """Draw K particles from the guide and account for every site of model and guide.

    Args:
        pair, batch, num_particles, plate: as for `log_weights`.
        known: the pair's `structure`, where it has been found already: saves the dry run.
        detached: cut samples off from the guide's parameters, so that log p has no gradient for these and log q only
            that of its density.

    Raises:
        ValueError: see `structure`; also for `num_particles` below 1.
    """
    if num_particles < 1:
        raise ValueError(
            f"num_particles is {num_particles}; at least one particle is needed, pass num_particles=1 or more"
        )
    pair = as_pair(pair)
    known = structure(pair, *batch, plate=plate) if known is None else known
    if shared := set(known.enumerated) & set(known.global_latent):
        raise ValueError(
            f"enumerated sites {sorted(shared)} lie outside the plate {known.plate!r}; "
            "only pyro.infer.TraceEnum_ELBO() can sum over them"
        )
    if num_particles > 1 and not vectorises(pair, batch, known):
        draws = [draw_terms(pair, batch, 1, known, detached=detached) for _ in range(num_particles)]
    else:
        draws = [draw_terms(pair, batch, num_particles, known, detached=detached)]
    return Ledger(draws, known, pair, batch)


class Ledger:
    """K particles of a pair on one batch: what every site contributes, and the sums that bounds are made of.

    In formulas below, y stands for the guide's enumerated sites (if there are any), c for the model's, z for the
    sampled ones; sums over c are always taken, inside the logarithm.
    """

    def __init__(self, draws: Sequence[Draw], known: Structure, pair: PairLike, batch: Sequence[Any]):
        self.draws = draws
        self.known = known
        self.pair = pair
        self.batch = batch

    @property
    def rows(self) -> int:
        """B, the rows of the batch."""
        return self.draws[0].rows

    @property
    def size(self) -> int:
        """N, the full size of the data plate; B where it does not subsample."""
        frames = self.draws[0].local[0].site["cond_indep_stack"]
        return next(frame.full_size for frame in frames if frame.name == self.known.plate)

    @property
    def terms(self) -> list[Term]:
        """The terms of the first draw; all draws have the same sites."""
        return self.draws[0].terms

    @property
    def values(self) -> dict[str, Tensor]:
        """Sampled values of the guide's sites, each (K, ...)."""
        sampled = [{t.name: t.site["value"] for t in draw.terms if t.kind == "guide"} for draw in self.draws]
        if len(sampled) == 1:
            return sampled[0]
        return {name: torch.stack([values[name] for values in sampled]) for name in sampled[0]}

    def log_weights(self) -> Tensor:
        """log sum_y p(x, y, z_y) / q(z_y | x, y), shape (K, B): the weights of evaluation."""
        self.known.refuse_shared()
        return self._collect(lambda draw: draw.log_weights(one, keep_guide=False))

    def log_q(self, counted: Callable[[Term], bool] = lambda _: True) -> Tensor:
        """log q of the guide's sampled sites, or of those that are counted, shape (K, B)."""
        self.known.refuse_shared()
        return self._collect(lambda draw: draw.log_q(counted))

    def normalized_weights(self) -> Tensor:
        """w_k / sum_j w_j of each datum, shape (K, B): what self-normalised importance sampling weighs particles by.

        Where the guide enumerates nothing, the gradient of IWAE is the sum over k of these times that of log w_k.
        """
        return torch.softmax(self.log_weights(), 0)

    def bound(self, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """E_q(y|x) [reduce(log w(x, y)) - log q(y | x)], shape (B,): what training maximises.

        `reduce` takes log-weights (..., K, B) to (..., 1, B): a mean over K gives the ELBO, a log-mean-exp IWAE.
        Where the guide samples some z before y, each particle is averaged over its own y first, which is a bound too;
        for q(z | x) q(y | x) the guide that draws y first has the tighter one.
        """
        self.known.refuse_shared()
        log_weights = self._collect(lambda draw: draw.log_weights(one, keep_guide=True))
        if not self.draws[0].guide_symbols:
            return reduce(log_weights).squeeze(-2)
        cost = self._collect(lambda draw: draw.log_q_enumerated(one))
        log_q = self._collect(lambda draw: draw.log_q_enumerated(None))
        if self._enumerates_after_sampling():
            return reduce(expected(log_weights - cost, log_q)).squeeze(-2)
        return expected(reduce(log_weights) - cost[..., :1, :], log_q[..., :1, :]).squeeze(-2)

    def elbo(self, weight: Weight | None = None, *, closed_form: bool = True) -> Tensor:
        """sum over sites of weight x (log p - log q), shape (K, B); with weight one its mean over K is the ELBO.

        Args:
            weight: a factor for each term, by default its `poutine.scale`. Enumerated sites that depend on each
                other need one common weight w; what they explain enters with its own weight v as
                w log sum_c p(c) p(x | c)^(v/w).
            closed_form: put -KL(q || p) for log p - log q where it is known and valid: where all latent sites that
                come before the site in the model come before it in the guide.
        """
        weight = (lambda term: term.scale) if weight is None else weight

        def weighted(draw: Draw) -> Tensor:
            draw = draw.with_closed_form_kl() if closed_form else draw
            value = draw.log_weights(weight, keep_guide=True)
            if not draw.guide_symbols:
                return value
            return expected(value - draw.log_q_enumerated(weight), draw.log_q_enumerated(None))

        return self._collect(weighted)

    def global_elbo(self, weight: Weight | None = None, *, closed_form: bool = True) -> Tensor | float:
        """log p - log q of the sites outside the data plate, (K,), or zero: for all data together."""
        weight = (lambda term: term.scale) if weight is None else weight
        closed_form = closed_form and bool(self.known.global_latent)
        draws = [draw.with_closed_form_kl() if closed_form else draw for draw in self.draws]
        values = [draw.global_log_weights(weight) for draw in draws]
        tensors = [value for value in values if isinstance(value, Tensor)]
        return torch.cat(tensors) if tensors else 0.0

    @property
    def together(self) -> dict[str, list[str]]:
        """The latent sites that have one KL together, by the names of those that the model has.

        Where a guide draws sites of its own and puts latents on points made of them, as autoguides do, the density of
        these is that of both: `z_unconstrained` and `z_aux` belong to z, others to all the points that are left.
        """
        latent = dict.fromkeys(t.name for t in self.terms if t.kind != "observed" and not t.site["is_observed"])
        in_model = {term.name for term in self.terms if term.kind == "latent"}
        points = [t.name for t in self.terms if t.kind == "guide" and is_point(t.site["fn"])]
        own = [name for name in latent if name not in in_model]
        made = {f"{name}{suffix}": name for name in points for suffix in ("_unconstrained", "_aux")}
        groups = {
            name: [name, *(site for site in own if made.get(site) == name)] for name in latent if name in in_model
        }
        if joint := [site for site in own if site not in made]:
            left = [name for name in points if len(groups[name]) == 1]
            groups[", ".join(left)] = [*joint, *(site for name in left for site in groups.pop(name))]
        return groups

    def parts(self, *, closed_form: bool = True) -> tuple[Tensor, dict[str, Tensor]]:
        """E_q log p(x | z), and the KL of each latent site from its prior, (K, B) in nats, `poutine.scale` included.

        The first less the sum of the others is `elbo()`, where all sites are in the data plate; those outside have a
        share of 1/N in each datum. Sites that the model enumerates are summed out: they and the sites that depend on
        them have one KL, from sum_c p(c) p(z | c), named by all of them, and p(x | z) is sum_c p(c | z) p(x | z, c).
        Other sites that have one KL together are those of `together`.

        Args:
            closed_form: as for `elbo`.
        """
        groups, summed = dict(self.together), self.draws[0].depend_on_summed
        if joint := [name for name, sites in groups.items() if not summed.isdisjoint(sites)]:
            groups[", ".join(joint)] = [site for name in joint for site in groups.pop(name)]

        def total(names: Iterable[str]) -> Tensor:
            def weight(term: Term) -> float | Tensor:
                return term.scale if term.name in names else 0.0

            value = self.elbo(weight, closed_form=closed_form)
            shared = self.global_elbo(weight, closed_form=closed_form)
            return value + shared[:, None] / self.size if isinstance(shared, Tensor) else value

        kl = {name: -total(sites) for name, sites in groups.items()}
        return sum(kl.values(), total({term.name for term in self.terms})), kl

    def kl_by_dimension(self, name: str, *, closed_form: bool = True) -> Tensor:
        """KL of each dimension of a latent site's events, flattened, from its prior: (K, B, D) in nats.

        Raises:
            ValueError: where prior or posterior is no product over the dimensions, or depends on sites that the model
                sums out.
        """
        return torch.cat([draw.kl_by_dimension(name, closed_form=closed_form) for draw in self.draws])

    def entries(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """log p and log q of every local site, each (K, B) in nats, and the entropy of the summed sites, (K, B).

        Entries of enumerated sites, and of sites that depend on them, are expectations under q(y | x) p(c | x, y, z).
        Everything adds up: sum log p - sum log q + entropy is the ELBO of each particle. Detached.
        """
        log_p, log_q, entropy = zip(*(draw.entries() for draw in self.draws), strict=True)
        return _joined(log_p), _joined(log_q), torch.cat(entropy)

    def closed_form_kl(self) -> dict[str, Tensor]:
        """KL(q || p) of each latent site for which it is known and valid, (K, B) in nats."""
        return _joined([draw.closed_form_kl() for draw in self.draws])

    def common_scale(self, counted: Callable[[Term], bool] = lambda _: True) -> float | Tensor:
        """The one `poutine.scale` of all sites, or of those that are counted.

        Raises:
            ValueError: where sites, or places of a nested plate, differ in it, which no bound with a logarithm of a
                mean can mean, nor a level of a KL.
        """
        terms = [term for term in self.terms if counted(term)]
        first = terms[0].scale if terms else 1.0
        if varies_inside(first):
            raise ValueError(
                f"poutine.scale has shape {tuple(first.shape)}, which varies inside a datum; this objective "
                "needs one scale for all sites of a datum: use ELBO()"
            )
        for term in terms:
            if not same(term.scale, first):
                raise ValueError(
                    f"poutine.scale is {term.scale} at site {term.name!r} and {first} at {terms[0].name!r}; this "
                    "objective needs one scale for them: use ELBO(), or ELBO(beta=) to anneal"
                )
        return first

    def mean_scale(self) -> float | Tensor:
        """The mean over the batch of the latent sites' `poutine.scale`: what a level of their KL is multiplied by."""
        scale = self.common_scale(lambda term: term.kind != "observed")
        return scale.mean() if isinstance(scale, Tensor) else scale

    def refuse_enumerated_guide(self) -> None:
        """For objectives that have no meaning for sites that the guide enumerates.

        Raises:
            ValueError: naming them.
        """
        enumerated = [term.name for term in self.terms if term.kind == "guide" and term.enumerated]
        if enumerated:
            raise ValueError(
                f"the guide enumerates {enumerated}, and this objective takes samples; leave out their "
                'infer={"enumerate": "parallel"} to sample them, or use ELBO() or IWAE(5)'
            )

    def refuse_points(self, *, of_value: bool = True) -> None:
        """For gradients that take the guide's density for one with a score whose mean is zero.

        Args:
            of_value: refuse points that move, too, not only those whose log_density does.

        Raises:
            ValueError: naming the sites that the guide puts on a point (Delta) which parameters move at given values
                of what it drew before. An autoguide's f(u) has none, unless f has parameters.
        """
        guide = [term.site for term in self.terms if term.kind == "guide"]
        drawn = {id(site["value"]) for site in guide}
        points = {site["name"]: point for site in guide if (point := point_of(site["fn"])) is not None}
        moved = [
            name
            for name, point in points.items()
            if _follows(point.log_density, drawn) or (of_value and _follows(point.v, drawn))
        ]
        if moved and torch.is_grad_enabled():
            raise ValueError(
                f"the guide puts {moved} on a point (Delta), whose density has no score, so that this objective's "
                "gradient is not that of its value; use ELBO() or IWAE(5)"
            )

    def _enumerates_after_sampling(self) -> bool:
        kinds = [term.enumerated for term in self.terms if term.kind == "guide"]
        return False in kinds[: len(kinds) - 1 - kinds[::-1].index(True)]

    def _collect(self, of: Callable[[Draw], Tensor]) -> Tensor:
        values = [of(draw) for draw in self.draws]
        return values[0] if len(values) == 1 else torch.cat(values, -2)


def _follows(tensor: Tensor, but: set[int]) -> bool:
    """Whether a tensor has a gradient for other leaves than these."""
    if tensor.grad_fn is None:
        return tensor.requires_grad and id(tensor) not in but
    nodes, seen = [tensor.grad_fn], {tensor.grad_fn}
    while nodes:
        node = nodes.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in but:
            return True
        after = {before for before, _ in node.next_functions if before is not None} - seen
        seen |= after
        nodes += after
    return False


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
