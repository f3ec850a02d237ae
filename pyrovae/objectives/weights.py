r"""The seam: importance weights of any pair, per datum and in nats, with a ledger of every site.

    w_kb = p(x_b, z_kb) / q(z_kb | x_b),    z_kb ~ q(z | x_b),    k = 1..K particles, b = 1..B data

Bounds, objectives, evaluation and diagnostics are a few lines each on top of it.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

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

__all__ = ["Ledger", "Term", "ledger", "log_weights"]

PARTICLES = "_particles"


def log_weights(pair: Any, *batch: Any, num_particles: int = 1, plate: str | None = None) -> Tensor:
    """Log importance weights log p(x, z_k) - log q(z_k | x) of each datum.

    Discrete sites marked `infer={"enumerate": "parallel"}`, of the model or the guide, are summed inside the weight.
    Masked sites count where their mask is true; the data plate's own subsampling scale N/B and `poutine.scale` do not
    count, so that the values are densities per datum.

    Args:
        pair: see `pyrovae.as_pair`.
        batch: what model and guide are called with.
        num_particles: K, drawn at once in an outer plate where the pair allows it.
        plate: name of the data plate, where it is not plain.

    Returns:
        shape (K, B), nats per datum, differentiable.

    Raises:
        ValueError: for a pair with global latent sites, which have no weight per datum, or with sites that do not match.

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
    pair: Any, *batch: Any, num_particles: int = 1, plate: str | None = None, known: Structure | None = None
) -> Ledger:
    """Draw K particles from the guide and account for every site of model and guide.

    Args:
        pair, batch, num_particles, plate: as for `log_weights`.
        known: the pair's `structure`, where it has been found already: saves the dry run.

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
    if num_particles > 1 and not _vectorises(pair, batch, known):
        draws = [_draw(pair, batch, 1, known) for _ in range(num_particles)]
    else:
        draws = [_draw(pair, batch, num_particles, known)]
    return Ledger(draws, known)


@dataclass(frozen=True)
class Term:
    """What one site contributes to log p ("observed", "latent") or to log q ("guide"), or minus its KL for both ("kl").

    Attributes:
        name: the site's.
        kind: "observed", "latent", "guide" or "kl".
        site: Pyro's own record of it.
        log_prob: nats, unscaled, zero where masked; (enumerated dims..., K, nested plates..., B).
        unmasked: the same without the mask.
        scale: the user's own `poutine.scale`, free of what plates scale by.
    """

    name: str
    kind: Literal["observed", "latent", "guide", "kl"]
    site: dict[str, Any]
    log_prob: Tensor
    unmasked: Tensor
    scale: float | Tensor

    @property
    def sign(self) -> float:
        """+1 for a part of log p, -1 for a part of log q."""
        return -1.0 if self.kind == "guide" else 1.0

    @property
    def enumerated(self) -> bool:
        """Whether the site's values are enumerated along a dim of their own."""
        return self.site["infer"].get("_enumerate_dim") is not None


Weight = Callable[[Term], "float | Tensor"]


def _one(_: Term) -> float:
    return 1.0


class Ledger:
    """K particles of a pair on one batch: what every site contributes, and the sums that bounds are made of.

    In formulas below, y stands for the guide's enumerated sites (if there are any), c for the model's, z for the
    sampled ones; sums over c are always taken, inside the logarithm.
    """

    def __init__(self, draws: Sequence[_Draw], known: Structure):
        self.draws = draws
        self.known = known

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
        self._refuse_global()
        return self._collect(lambda draw: draw.log_weights(_one, keep_guide=False))

    def bound(self, reduce: Callable[[Tensor], Tensor]) -> Tensor:
        """E_q(y|x) [reduce(log w(x, y)) - log q(y | x)], shape (B,): what training maximises.

        `reduce` takes log-weights (..., K, B) to (..., 1, B): a mean over K gives the ELBO, a log-mean-exp IWAE.
        Where the guide samples some z before y, each particle is averaged over its own y first, which is a bound too;
        for q(z | x) q(y | x) the guide that draws y first has the tighter one.
        """
        self._refuse_global()
        log_weights = self._collect(lambda draw: draw.log_weights(_one, keep_guide=True))
        if not self.draws[0].guide_symbols:
            return reduce(log_weights).squeeze(-2)
        cost = self._collect(lambda draw: draw.log_q_enumerated(_one))
        log_q = self._collect(lambda draw: draw.log_q_enumerated(None))
        if self._enumerates_after_sampling():
            return reduce(_expected(log_weights - cost, log_q)).squeeze(-2)
        return _expected(reduce(log_weights) - cost[..., :1, :], log_q[..., :1, :]).squeeze(-2)

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

        def weighted(draw: _Draw) -> Tensor:
            draw = draw.with_closed_form_kl() if closed_form else draw
            value = draw.log_weights(weight, keep_guide=True)
            if not draw.guide_symbols:
                return value
            return _expected(value - draw.log_q_enumerated(weight), draw.log_q_enumerated(None))

        return self._collect(weighted)

    def global_elbo(self, weight: Weight | None = None) -> Tensor | float:
        """log p - log q of the latent sites outside the data plate, (K,), or zero: for all data together."""
        weight = (lambda term: term.scale) if weight is None else weight
        values = [draw.global_log_weights(weight) for draw in self.draws]
        return torch.cat(values) if isinstance(values[0], Tensor) else 0.0

    def entries(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """log p and log q of every local site, each (K, B) in nats, and the entropy of the summed sites, (K, B).

        Entries of enumerated sites, and of sites that depend on them, are expectations under q(y | x) p(c | x, y, z).
        Everything adds up: sum log p - sum log q + entropy is the ELBO of each particle. Detached.
        """
        parts = [draw.entries() for draw in self.draws]
        log_p, log_q = ({name: torch.cat([part[i][name] for part in parts]) for name in parts[0][i]} for i in (0, 1))
        return log_p, log_q, torch.cat([part[2] for part in parts])

    def closed_form_kl(self) -> dict[str, Tensor]:
        """KL(q || p) of each latent site for which it is known and valid, (K, B) in nats."""
        parts = [draw.closed_form_kl() for draw in self.draws]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def common_scale(self) -> float | Tensor:
        """The one `poutine.scale` of all sites.

        Raises:
            ValueError: where sites differ in it, which no bound with a logarithm of a mean can mean.
        """
        first = self.terms[0].scale
        for term in self.terms:
            if not _same(term.scale, first):
                raise ValueError(
                    f"poutine.scale is {term.scale} at site {term.name!r} and {first} at {self.terms[0].name!r}; an "
                    "importance-weighted bound needs one scale for all sites: use ELBO(), or ELBO(beta=) to anneal"
                )
        return first

    def _enumerates_after_sampling(self) -> bool:
        kinds = [term.enumerated for term in self.terms if term.kind == "guide"]
        return False in kinds[: len(kinds) - 1 - kinds[::-1].index(True)]

    def _collect(self, of: Callable[[_Draw], Tensor]) -> Tensor:
        values = [of(draw) for draw in self.draws]
        return values[0] if len(values) == 1 else torch.cat(values, -2)

    def _refuse_global(self) -> None:
        if self.known.global_latent:
            raise ValueError(
                f"latent sites {list(self.known.global_latent)} lie outside the plate {self.known.plate!r}, so a datum "
                "has no importance weight of its own; use ELBO(), or condition on them with pyro.poutine.condition"
            )


class _Draw:
    """One run of guide and model: the arithmetic over particles, nested plates and enumerated dims."""

    def __init__(self, terms: list[Term], known: Structure, num_particles: int, plate_to_symbol: dict[str, str]):
        self.terms = terms
        self.known = known
        self.num_particles = num_particles
        self.plate_to_symbol = plate_to_symbol
        self.local = [term for term in terms if any(f.name == known.plate for f in term.site["cond_indep_stack"])]
        self.rows = next(f.size for f in self.local[0].site["cond_indep_stack"] if f.name == known.plate)
        in_guide = {term.name for term in terms if term.kind == "guide"}
        symbols = {t.name: t.site["infer"]["_enumerate_symbol"] for t in terms if t.enumerated}
        self.guide_symbols = {symbol for name, symbol in symbols.items() if name in in_guide}
        self.model_symbols = set(symbols.values()) - self.guide_symbols

    def log_weights(self, weight: Weight, *, keep_guide: bool) -> Tensor:
        """Weighted log p - log q of the local terms, (y dims..., K, B), but for log q(y | x).

        The model's enumerated sites are summed inside; the guide's too, unless their dims are to be kept.
        """
        summed = self.model_symbols if keep_guide else self.model_symbols | self.guide_symbols
        total = self._zeros(self.num_particles)
        inside: list[Term] = []
        for term in self.local:
            if term.kind == "guide" and term.enumerated:
                continue
            if summed and not summed.isdisjoint(_packed(term, term.log_prob)._pyro_dims):
                inside.append(term)
            else:
                total = total + term.sign * weight(term) * self._per_datum(term.log_prob, term.site["cond_indep_stack"])
        return total + self._summed_out(inside, summed, weight) if inside else total

    def log_q_enumerated(self, weight: Weight | None) -> Tensor:
        """log q(y | x), (y dims..., K or 1, B): masked and weighted as a cost; with weight None as a probability."""
        total = self._zeros(1)
        for term in self.local:
            if term.kind == "guide" and term.enumerated:
                if nested := [
                    f.name for f in term.site["cond_indep_stack"] if f.name not in (self.known.plate, PARTICLES)
                ]:
                    raise ValueError(
                        f"the guide enumerates {term.name!r} inside the nested plate {nested[0]!r}; enumerate it in the "
                        "model instead, or pass objective=pyro.infer.TraceEnum_ELBO()"
                    )
                value = term.unmasked if weight is None else weight(term) * term.log_prob
                total = total + self._per_datum(value, term.site["cond_indep_stack"])
        return total

    def global_log_weights(self, weight: Weight) -> Tensor | float:
        """Weighted log p - log q of the terms outside the data plate, (K,)."""
        total: Tensor | float = 0.0
        local = {id(term) for term in self.local}
        for term in self.terms:
            if id(term) not in local:
                value = self._sum_nested(term.log_prob, term.site["cond_indep_stack"])
                total = total + term.sign * weight(term) * value.reshape(-1).expand(self.num_particles)
        return total

    def closed_form_kl(self) -> dict[str, Tensor]:
        """KL(q || p) of the sites where it is valid, (K, B); for enumerated y its mean under q(y | x)."""
        draw = self.with_closed_form_kl()
        log_q = self.log_q_enumerated(None)
        zeros = self._zeros(self.num_particles)
        return {
            t.name: zeros - _expected(self._per_datum(t.log_prob, t.site["cond_indep_stack"]), log_q)
            for t in draw.local
            if t.kind == "kl"
        }

    def with_closed_form_kl(self) -> _Draw:
        """This draw with -KL(q || p) as one term in place of log p and log q, where that is valid."""
        guide = {term.name: term for term in self.terms if term.kind == "guide"}
        latent = {term.name: term for term in self.terms if term.kind == "latent"}
        order = list(guide)
        replaced: dict[str, Term] = {}
        for index, (name, p) in enumerate(latent.items()):
            q = guide.get(name)
            if q is None or q.enumerated or not set(list(latent)[:index]) <= set(order[: order.index(name)]):
                continue
            if not _same(p.scale, q.scale) or p.site["mask"] is not q.site["mask"]:
                continue
            if self.model_symbols and not self.model_symbols.isdisjoint(_packed(p, p.log_prob)._pyro_dims):
                continue
            try:
                minus_kl = -torch.distributions.kl_divergence(q.site["fn"], p.site["fn"])
            except NotImplementedError:
                continue
            masked = scale_and_mask(minus_kl, mask=p.site["mask"])
            replaced[name] = Term(name, "kl", p.site, masked, minus_kl, p.scale)
        kept = [term for term in self.terms if term.name not in replaced]
        return _Draw([*kept, *replaced.values()], self.known, self.num_particles, self.plate_to_symbol)

    def entries(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """See `Ledger.entries`: the probability of an enumerated value is a derivative of the log-sum."""
        log_q_enumerated = self.log_q_enumerated(None).detach()
        leaves = [replace(t, log_prob=_leaf(t.log_prob), unmasked=_leaf(t.unmasked)) for t in self.local]
        with torch.enable_grad():
            draw = _Draw(leaves, self.known, self.num_particles, self.plate_to_symbol)
            cost = draw.log_q_enumerated(_one)
            elbo = _expected(draw.log_weights(_one, keep_guide=True) - cost, log_q_enumerated)
            counted = [t.unmasked if draw._sums(t, draw.model_symbols) else t.log_prob for t in leaves]
            shares = torch.autograd.grad(elbo.sum(), counted, allow_unused=True, materialize_grads=True)
        log_p: dict[str, Tensor] = {}
        log_q: dict[str, Tensor] = {}
        for term, value, share in zip(leaves, counted, shares, strict=True):
            spent = torch.where(share == 0, 0.0, share * value.detach())  # 0 x -inf is 0
            entry = self._per_datum(spent, term.site["cond_indep_stack"], rescale=False)
            into = log_q if term.kind == "guide" else log_p
            into[term.name] = self._zeros(self.num_particles) + term.sign * _sum_leading(entry)
        zeros = self._zeros(self.num_particles)
        entropy = elbo.detach() - sum(log_p.values(), zeros) + sum(log_q.values(), zeros)
        return log_p, log_q, entropy

    def _sums(self, term: Term, summed: set[str]) -> bool:
        return term.kind == "latent" and term.enumerated and term.site["infer"]["_enumerate_symbol"] in summed

    def _summed_out(self, terms: list[Term], summed: set[str], weight: Weight) -> Tensor:
        """log sum over the enumerated dims `summed` of the product of terms, (other enumerated dims..., K, B)."""
        common = next(weight(t) for t in terms if self._sums(t, summed))
        tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        frames: dict[str, CondIndepStackFrame] = {}
        for term in terms:
            if term.kind != "observed" and not _same(weight(term), common):
                raise ValueError(
                    f"site {term.name!r} has weight {weight(term)}, the enumerated sites that it depends on {common}; "
                    "give all of them the same poutine.scale or beta"
                )
            if term.kind == "observed" and not _same(weight(term), common) and float(common) == 0:
                raise ValueError(
                    f"the enumerated sites have weight 0, but observed site {term.name!r} depends on them, so that "
                    "no bound is left; use a weight above 0"
                )
            # A site that is summed out sums to one also where it is masked: its mask silences what depends on it.
            factor = _packed(term, term.unmasked if self._sums(term, summed) else term.log_prob)
            if term.kind == "guide":
                factor = packed.neg(factor)
            if not _same(weight(term), common):
                factor = packed.scale_and_mask(factor, scale=weight(term) / common)
            for frame in term.site["cond_indep_stack"]:
                if frame.name != self.known.plate and frame.full_size != frame.size:
                    raise ValueError(
                        f"site {term.name!r} depends on enumerated sites inside plate {frame.name!r}, which subsamples; "
                        "only the data plate may subsample there"
                    )
                frames[self.plate_to_symbol[frame.name]] = frame
            ordinal = frozenset(self.plate_to_symbol[f.name] for f in term.site["cond_indep_stack"])
            tree.setdefault(ordinal, []).append(factor)
        total = self._zeros(self.num_particles)
        symbol_to_dim = {symbol: frame.dim for symbol, frame in frames.items()}
        for term in terms:
            dim_to_symbol = term.site["infer"]["_dim_to_symbol"]
            symbol_to_dim |= {s: d for d, s in dim_to_symbol.items() if s in self.guide_symbols}
        for ordinal, factors in contract_tensor_tree(tree, set(summed), cache={}).items():
            for factor in factors:
                value = packed.unpack(factor, symbol_to_dim)
                total = total + self._per_datum(value, [frames[symbol] for symbol in ordinal])
        return common * total

    def _per_datum(self, value: Tensor, frames: Iterable[CondIndepStackFrame], *, rescale: bool = True) -> Tensor:
        """Sum over nested plates: (enumerated dims..., K, nested plates..., B) to (enumerated dims..., K or 1, B)."""
        value = self._sum_nested(value, frames, rescale=rescale)
        dims = 1 + self.known.max_plate_nesting
        value = value.reshape((1,) * (dims - value.dim()) + value.shape)
        value = value.reshape((*value.shape[: 1 - dims], value.size(-1)))
        return value.expand(*value.shape[:-1], self.rows)

    def _sum_nested(self, value: Tensor, frames: Iterable[CondIndepStackFrame], *, rescale: bool = True) -> Tensor:
        for frame in frames:
            if frame.name in (self.known.plate, PARTICLES):
                continue
            if frame.dim is not None and value.dim() >= -frame.dim:
                value = value.sum(frame.dim, keepdim=True)
            if rescale and frame.full_size is not None and frame.full_size != frame.size:
                value = value * (frame.full_size / frame.size)
        return value

    def _zeros(self, num_particles: int) -> Tensor:
        return self.local[0].log_prob.new_zeros((num_particles, self.rows))


def _packed(term: Term, value: Tensor) -> Tensor:
    return packed.pack(value, term.site["infer"]["_dim_to_symbol"])


def _expected(value: Tensor, log_q: Tensor) -> Tensor:
    """Mean of value (y dims..., K or 1, B) under q(y | x), whose log_q is (y dims..., K or 1, B)."""
    return _sum_leading(log_q.exp() * value)


def _sum_leading(value: Tensor) -> Tensor:
    return value.flatten(0, -3).sum(0) if value.dim() > 2 else value


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


def _same(a: float | Tensor, b: float | Tensor) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is b or bool(torch.equal(torch.as_tensor(a), torch.as_tensor(b)))
    return a == b


def _draw(pair: PairLike, batch: Sequence[Any], num_particles: int, known: Structure) -> _Draw:
    model_trace, guide_trace = _traces(pair, batch, num_particles, known, enumerate_sites=bool(known.enumerated))
    terms: list[Term] = []
    for trace, in_guide in ((model_trace, False), (guide_trace, True)):
        for site in random_sites(trace):
            value = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
            kind: Any = "guide" if in_guide else "observed" if site["is_observed"] else "latent"
            terms.append(Term(site["name"], kind, site, scale_and_mask(value, mask=site["mask"]), value, _scale(site)))
    if known.enumerated:
        guide_trace.symbolize_dims()
        model_trace.symbolize_dims(guide_trace.plate_to_symbol)
        return _Draw(terms, known, num_particles, model_trace.plate_to_symbol)
    return _Draw(terms, known, num_particles, {})


def _traces(
    pair: PairLike, batch: Sequence[Any], num_particles: int, known: Structure, *, enumerate_sites: bool
) -> tuple[Trace, Trace]:
    """Traces of model and guide, the model replayed against the guide."""
    model, guide = pair.model, pair.guide
    if num_particles > 1:
        dim = -1 - known.max_plate_nesting
        model = pyro.plate(PARTICLES, num_particles, dim=dim)(model)
        guide = pyro.plate(PARTICLES, num_particles, dim=dim)(guide)
    if enumerate_sites:
        guide = EnumMessenger(first_available_dim=-2 - known.max_plate_nesting)(guide)
        model = EnumMessenger()(model)
    guide_trace = poutine.trace(guide).get_trace(*batch)
    return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*batch), guide_trace


def _scale(site: dict[str, Any]) -> float | Tensor:
    scale = site["scale"]
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            scale = scale / (frame.full_size / frame.size)
    return 1.0 if not isinstance(scale, Tensor) and abs(scale - 1) < 1e-12 else scale


def _vectorises(pair: PairLike, batch: Sequence[Any], known: Structure) -> bool:
    """Whether two particles drawn at once score as they do one by one; found out once, in evaluation mode."""
    if known.vectorises is None:
        with evaluation_mode(pair, *known.modules), isolated_random_state(), torch.no_grad():
            difference = _difference_from_loop(pair, batch, known)
        known.vectorises = difference is None
        if difference is not None:
            warnings.warn(
                f"the pair does not vectorise over particles ({difference}); looping over them instead. "
                "Networks must accept leading dims: flatten them, or index from the right",
                stacklevel=4,
            )
    return known.vectorises


def _difference_from_loop(pair: PairLike, batch: Sequence[Any], known: Structure) -> str | None:
    try:
        together = _traces(pair, batch, 2, known, enumerate_sites=False)
        for k in (0, 1):
            one = {site["name"]: site for trace in together for site in random_sites(trace) if not site["is_observed"]}
            drawn = Trace()
            for trace in together:
                for name, site in trace.nodes.items():
                    if site["type"] == "sample" and (name in one or site_is_subsample(site)) and name not in drawn:
                        event_dim = 0 if site_is_subsample(site) else site["fn"].event_dim
                        drawn.add_node(name, **{**site, "value": _particle(site["value"], k, event_dim, known)})
            guide = poutine.replay(pair.guide, trace=drawn)
            alone = Functions(poutine.replay(pair.model, trace=drawn), guide)
            for trace, single in zip(together, _traces(alone, batch, 1, known, enumerate_sites=False), strict=True):
                for site in random_sites(trace):
                    other = single.nodes[site["name"]]
                    value = _particle(site["fn"].log_prob(site["value"]), k, 0, known)
                    expected = other["fn"].log_prob(other["value"])
                    if not torch.allclose(*torch.broadcast_tensors(value, expected), rtol=1e-4, atol=1e-3):
                        return f"site {site['name']!r} scores differently"
    except Exception as error:  # whatever a program raises when its tensors get one more dim
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None


def _particle(value: Tensor, k: int, event_dim: int, known: Structure) -> Tensor:
    dim = value.dim() - event_dim - 1 - known.max_plate_nesting
    return value.select(dim, k) if dim >= 0 and value.size(dim) == 2 else value
