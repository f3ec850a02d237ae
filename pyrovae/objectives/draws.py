"""One run of guide and model as terms per site: the arithmetic over particles, nested plates and enumerated dims."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeGuard

import torch
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrovae.models.base import PairLike, Structure, random_sites
from pyrovae.models.traces import is_point
from pyrovae.objectives.particles import PARTICLES, traces, without_autocast
from pyrovae.objectives.unscored import check_density

__all__ = ["Draw", "Term", "Weight", "density", "draw_terms", "expected", "one", "same", "scored", "varies_inside"]


@dataclass(frozen=True)
class Term:
    """What one site contributes to log p ("observed", "latent") or to log q ("guide"), or minus its KL for both ("kl").

    Attributes:
        name: the site's.
        kind: "observed", "latent", "guide" or "kl".
        site: Pyro's own record of it.
        log_prob: nats, unscaled, zero where masked; (enumerated dims..., K, nested plates..., B). Half precision comes
            as float32, so that all sums over sites, particles and rows are; those over the event's dims are the
            distribution's own.
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


def one(_: Term) -> float:
    """The weight of a plain sum."""
    return 1.0


class Draw:
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
            if summed and not summed.isdisjoint(_symbols(term)):
                inside.append(term)
            else:
                value = _times(weight(term), term.log_prob)  # before the sum over plates: a tensor may vary inside
                total = total + term.sign * self._per_datum(value, term.site["cond_indep_stack"])
        total = total + self._summed_out(inside, summed, weight) if inside else total
        # A site of one value is not summed: what depends on it has a dim of size 1 more.
        return total if keep_guide and self.guide_symbols else total.reshape(total.shape[-2:])

    def log_q_enumerated(self, weight: Weight | None) -> Tensor:
        """log q(y | x), (y dims..., K or 1, B): masked and weighted as a cost; with weight None as a probability."""
        total = self._zeros(1)
        for term in self.local:
            if term.kind == "guide" and term.enumerated:
                plates = {frame.name for frame in term.site["cond_indep_stack"]} - {self.known.plate, PARTICLES}
                if plates:
                    raise ValueError(
                        f"the guide enumerates {term.name!r} inside the nested plate {min(plates)!r}; enumerate it in "
                        "the model instead, or pass objective=pyro.infer.TraceEnum_ELBO()"
                    )
                value = term.unmasked if weight is None else _times(weight(term), term.log_prob)
                total = total + self._per_datum(value, term.site["cond_indep_stack"])
        return total

    def log_q(self, counted: Callable[[Term], bool]) -> Tensor:
        """log q of the sampled local sites of the guide that are counted, (K, B)."""
        total = self._zeros(self.num_particles)
        for term in self.local:
            if term.kind == "guide" and not term.enumerated and counted(term):
                total = total + self._per_datum(term.log_prob, term.site["cond_indep_stack"])
        return total

    def global_log_weights(self, weight: Weight) -> Tensor | float:
        """Weighted log p - log q of the terms outside the data plate, (K,)."""
        total: Tensor | float = 0.0
        local = {id(term) for term in self.local}
        for term in self.terms:
            if id(term) not in local:
                value = self._sum_nested(_times(weight(term), term.log_prob), term.site["cond_indep_stack"])
                total = total + term.sign * value.reshape(-1).expand(self.num_particles)
        return total

    def closed_form_kl(self) -> dict[str, Tensor]:
        """KL(q || p) of the sites where it is valid, (K, B); for enumerated y its mean under q(y | x)."""
        draw = self.with_closed_form_kl()
        log_q = self.log_q_enumerated(None)
        zeros = self._zeros(self.num_particles)
        return {
            t.name: zeros - expected(self._per_datum(t.log_prob, t.site["cond_indep_stack"]), log_q)
            for t in draw.local
            if t.kind == "kl"
        }

    @property
    def depend_on_summed(self) -> set[str]:
        """Names of the latent sites that the model enumerates, and of those that depend on them."""
        if not self.model_symbols:
            return set()
        return {
            term.name
            for term in self.local
            if term.kind != "observed" and not self.model_symbols.isdisjoint(_symbols(term))
        }

    def kl_by_dimension(self, name: str, *, closed_form: bool) -> Tensor:
        """See `Ledger.kl_by_dimension`; (K, B, D)."""
        p, q = (
            next((t for t in self.local if t.name == name and t.kind == kind), None) for kind in ("latent", "guide")
        )
        if p is None or q is None or name in self.depend_on_summed or is_point(q.site["fn"]):
            raise ValueError(
                f"site {name!r} depends on what the model enumerates, is on a point, or is not sampled for each datum "
                "by model and guide, so that it has no KL of each dimension; take its KL as a whole"
            )
        fns = []
        for term in (q, p):
            fn = term.site["fn"]
            while isinstance(fn, torch.distributions.Independent):
                fn = fn.base_dist
            if fn.event_dim:
                raise ValueError(
                    f"{'q' if term is q else 'p'} of site {name!r} ({type(fn).__name__}) is no product over its "
                    "dimensions, which have no KL of their own; take its KL as a whole"
                )
            fns.append(fn)
        valid = closed_form and any(t.name == name and t.kind == "kl" for t in self.with_closed_form_kl().terms)
        value = q.site["value"]
        kl = torch.distributions.kl_divergence(*fns) if valid else fns[0].log_prob(value) - fns[1].log_prob(value)
        event_dim = q.site["fn"].event_dim
        kl = at_least_float32(kl).flatten(kl.dim() - event_dim) if event_dim else at_least_float32(kl)[..., None]
        kl = p.scale * kl.movedim(-1, 0)  # (D, y dims..., K, nested plates..., B)
        dims = max(kl.dim(), 2 + self.known.max_plate_nesting)
        kl = scale_and_mask(kl.reshape(len(kl), *(1,) * (dims - kl.dim()), *kl.shape[1:]), mask=p.site["mask"])
        kl = self._per_datum(kl, p.site["cond_indep_stack"]).movedim(0, -1)  # (y dims..., K or 1, B, D)
        log_q = self.log_q_enumerated(None)[..., None]
        kl = log_q.exp() * torch.where(log_q == -math.inf, 0.0, kl)
        kl = kl.flatten(0, -4).sum(0) if kl.dim() > 3 else kl
        return self._zeros(self.num_particles)[..., None] + kl

    def with_closed_form_kl(self) -> Draw:
        """This draw with -KL(q || p) as one term in place of log p and log q, where that is valid."""
        guide = {term.name: term for term in self.terms if term.kind == "guide"}
        latent = {term.name: term for term in self.terms if term.kind == "latent"}
        order = list(guide)
        replaced: dict[str, Term] = {}
        for index, (name, p) in enumerate(latent.items()):
            q = guide.get(name)
            if q is None or q.enumerated or not set(list(latent)[:index]) <= set(order[: order.index(name)]):
                continue
            if not same(p.scale, q.scale) or p.site["mask"] is not q.site["mask"]:
                continue
            if is_point(q.site["fn"]):  # Pyro's KL leaves out its log_density, an autoguide's log-Jacobian
                continue
            try:
                minus_kl = -at_least_float32(torch.distributions.kl_divergence(q.site["fn"], p.site["fn"]))
            except NotImplementedError:
                continue
            masked = scale_and_mask(minus_kl, mask=p.site["mask"])
            replaced[name] = Term(name, "kl", p.site, masked, minus_kl, p.scale)
        kept = [term for term in self.terms if term.name not in replaced]
        return Draw([*kept, *replaced.values()], self.known, self.num_particles, self.plate_to_symbol)

    def counted(self) -> list[Tensor]:
        """What each local term counts with: log_prob, unmasked where its site is summed out."""
        return [t.unmasked if self._sums(t, self.model_symbols) else t.log_prob for t in self.local]

    def shares(self) -> tuple[Tensor, list[Tensor]]:
        """The ELBO of each particle, (K, B), and its derivatives by `counted`: probabilities of enumerated values."""
        log_q_enumerated = self.log_q_enumerated(None).detach()
        leaves = [replace(t, log_prob=_leaf(t.log_prob), unmasked=_leaf(t.unmasked)) for t in self.local]
        with torch.enable_grad():
            draw = Draw(leaves, self.known, self.num_particles, self.plate_to_symbol)
            cost = draw.log_q_enumerated(one)
            elbo = expected(draw.log_weights(one, keep_guide=True) - cost, log_q_enumerated)
            shares = torch.autograd.grad(elbo.sum(), draw.counted(), allow_unused=True, materialize_grads=True)
        return elbo.detach(), list(shares)

    def spent(self, shares: Sequence[Tensor]) -> list[Tensor]:
        """Of each local term its share times what it counts, (K, B): a part of the ELBO, differentiable in the term."""
        parts = []
        for term, value, share in zip(self.local, self.counted(), shares, strict=True):
            product = share * value.masked_fill(share == 0, 0.0)  # 0 x -inf is 0
            part = self._per_datum(product, term.site["cond_indep_stack"], rescale=False)
            parts.append(self._zeros(self.num_particles) + _sum_leading(part))
        return parts

    def entries(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """See `Ledger.entries`: the probability of an enumerated value is a derivative of the log-sum."""
        elbo, shares = self.shares()
        log_p: dict[str, Tensor] = {}
        log_q: dict[str, Tensor] = {}
        for term, part in zip(self.local, self.spent(shares), strict=True):
            into = log_q if term.kind == "guide" else log_p
            into[term.name] = term.sign * part.detach()
        zeros = self._zeros(self.num_particles)
        entropy = elbo - sum(log_p.values(), zeros) + sum(log_q.values(), zeros)
        return log_p, log_q, entropy

    def _sums(self, term: Term, summed: set[str]) -> bool:
        if term.kind != "latent" or not term.enumerated:
            return False
        symbol = term.site["infer"]["_enumerate_symbol"]
        return symbol in summed and symbol in _symbols(term)  # a site of one value has no dim to sum over

    def _summed_out(self, terms: list[Term], summed: set[str], weight: Weight) -> Tensor:
        """log sum over the enumerated dims `summed` of the product of terms, (other enumerated dims..., K, B)."""
        first = next(t for t in terms if self._sums(t, summed))
        common = weight(first)
        if varies_inside(common):
            raise ValueError(
                f"enumerated site {first.name!r} has a weight of shape {tuple(common.shape)}, which varies inside a "
                "datum; give it one poutine.scale, or one for each datum"
            )
        tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        frames: dict[str, CondIndepStackFrame] = {}
        for term in terms:
            if term.kind != "observed" and not same(weight(term), common):
                raise ValueError(
                    f"site {term.name!r} has weight {weight(term)}, the enumerated sites that it depends on {common}; "
                    "give all of them the same poutine.scale or beta"
                )
            if term.kind == "observed" and not same(weight(term), common) and _is_zero(common):
                raise ValueError(
                    f"the enumerated sites have weight 0, but observed site {term.name!r} depends on them, so that "
                    "no bound is left; use a weight above 0"
                )
            # A site that is summed out sums to one also where it is masked: its mask silences what depends on it.
            value = term.unmasked if self._sums(term, summed) else term.log_prob
            value = -value if term.kind == "guide" else value
            factor = _packed(term, value if same(weight(term), common) else _times(weight(term) / common, value))
            for frame in term.site["cond_indep_stack"]:
                if frame.name != self.known.plate and frame.full_size != frame.size:
                    raise ValueError(
                        f"site {term.name!r} depends on enumerated sites inside plate {frame.name!r}, which "
                        "subsamples; only the data plate may subsample there"
                    )
                frames[self.plate_to_symbol[frame.name]] = frame
            ordinal = frozenset(self.plate_to_symbol[f.name] for f in term.site["cond_indep_stack"])
            tree.setdefault(ordinal, []).append(factor)
        total = self._zeros(self.num_particles)
        symbol_to_dim = {symbol: frame.dim for symbol, frame in frames.items()}
        for term in terms:
            dim_to_symbol = term.site["infer"]["_dim_to_symbol"]
            symbol_to_dim |= {s: d for d, s in dim_to_symbol.items() if s in self.guide_symbols}
        with without_autocast(total):  # Pyro sums in matrix products
            contracted = contract_tensor_tree(tree, set(summed), cache={})
        for ordinal, factors in contracted.items():
            for factor in factors:
                value = packed.unpack(factor, symbol_to_dim)
                total = total + self._per_datum(value, [frames[symbol] for symbol in ordinal])
        return _times(common, total)

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


def _symbols(term: Term) -> str:
    """The dims that a term really has, as symbols."""
    return getattr(_packed(term, term.log_prob), "_pyro_dims")  # noqa: B009


def _packed(term: Term, value: Tensor) -> Tensor:
    return packed.pack(value, term.site["infer"]["_dim_to_symbol"])


def expected(value: Tensor, log_q: Tensor) -> Tensor:
    """Mean of value (y dims..., K or 1, B) under q(y | x), whose log_q is (y dims..., K or 1, B); 0 x inf is 0."""
    return _sum_leading(log_q.exp() * torch.where(log_q == -math.inf, 0.0, value))


def _sum_leading(value: Tensor) -> Tensor:
    return value.flatten(0, -3).sum(0) if value.dim() > 2 else value


def at_least_float32(value: Tensor) -> Tensor:
    """`value`, in float32 where autocast made it half: for sums and densities."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_()


def same(a: float | Tensor, b: float | Tensor) -> bool:
    """Whether two weights are equal, whatever the values that tensors may take later."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or _same_value(a, b)
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def _same_value(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def _times(weight: float | Tensor, log_prob: Tensor) -> Tensor:
    """Their product, in which what weighs nothing has no part, whatever its density: 0 x -inf is 0."""
    return weight * log_prob if isinstance(weight, Tensor) or weight else torch.zeros_like(log_prob)


def _is_zero(weight: float | Tensor) -> bool:
    return bool((weight == 0).any()) if isinstance(weight, Tensor) else weight == 0


def varies_inside(weight: float | Tensor) -> TypeGuard[Tensor]:
    """Whether a weight may differ between the places of a nested plate."""
    return isinstance(weight, Tensor) and weight.shape[:-1].numel() > 1


def draw_terms(
    pair: PairLike, batch: Sequence[Any], num_particles: int, known: Structure, *, detached: bool = False
) -> Draw:
    """Run guide and model once, and score every site."""
    model_trace, guide_trace = traces(
        pair, batch, num_particles, known, enumerate_sites=bool(known.enumerated), detached=detached
    )
    terms = [*scored(model_trace, in_guide=False), *scored(guide_trace, in_guide=True)]
    if known.enumerated:
        guide_trace.symbolize_dims()
        model_trace.symbolize_dims(guide_trace.plate_to_symbol)
        return Draw(terms, known, num_particles, model_trace.plate_to_symbol)
    return Draw(terms, known, num_particles, {})


def scored(trace: Trace, *, in_guide: bool) -> Iterator[Term]:
    """The terms of a trace's random sites.

    Raises:
        ValueError: for one without a density, by its name.
    """
    for site in random_sites(trace):
        check_density(site, in_guide=in_guide)
        value = at_least_float32(density(site["name"], site["fn"], site["value"], *site["args"], **site["kwargs"]))
        kind: Any = "guide" if in_guide else "observed" if site["is_observed"] else "latent"
        yield Term(site["name"], kind, site, scale_and_mask(value, mask=site["mask"]), value, _scale(site, value))


def density(name: str, fn: Any, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """log-density of a site's distribution at a value.

    Raises:
        ValueError: as `scoring` does.
    """
    with scoring(name, fn):
        return fn.log_prob(value, *args, **kwargs)


@contextmanager
def scoring(name: str, fn: Any) -> Iterator[None]:
    """Say what is wrong where a density can't be computed.

    Raises:
        ValueError: where a transform without inverse did not draw the value itself.
    """
    try:
        yield
    except (KeyError, NotImplementedError) as error:
        raise ValueError(
            f"the density of site {name!r} ({type(fn).__name__}) can't be computed at a value that was not just drawn "
            f"from it ({' '.join(str(error).split())[:120]}); use transforms with an inverse, such as those of "
            "pyrovae.conditionals.PlanarFlow, or an objective that scores its own samples, such as IWAE(K)"
        ) from error


def _scale(site: dict[str, Any], log_prob: Tensor) -> float | Tensor:
    scale = site["scale"]
    got = tuple(scale.shape) if isinstance(scale, Tensor) else ()
    its = (1,) * len(got) + tuple(log_prob.shape)
    if any(size not in (1, full) for size, full in zip(reversed(got), reversed(its), strict=False)):
        raise ValueError(
            f"poutine.scale at site {site['name']!r} has shape {got}, the site only {tuple(log_prob.shape)}; put it "
            "inside the plates that it has a number for each place of"
        )
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            scale = scale / (frame.full_size / frame.size)
    return 1.0 if not isinstance(scale, Tensor) and abs(scale - 1) < 1e-12 else scale
