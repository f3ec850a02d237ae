"""log p(z) and log p(x, z) at any continuous latents z, in unconstrained coordinates; discrete ones are summed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyrovae.distributions.implicit import has_density
from pyrovae.distributions.supports import bijection
from pyrovae.evaluation.sites import is_discrete
from pyrovae.models.base import PairLike, Structure, random_sites
from pyrovae.objectives.draws import Draw, Term, density, one
from pyrovae.objectives.particles import PARTICLES, vectorises

__all__ = ["Joint"]


class Joint:
    r"""The densities of a batch at K points: of the start of a path, and of model and data together.

    Each continuous latent z is T(u) for the bijection T from real numbers to its support, and counts with
    log |det dT/du|; the u of all sites of a datum are one vector of D numbers. Discrete latents are summed, also those
    that no program marks for enumeration. Masked latents have their density nevertheless, so that all are proper.

    Args:
        run: a pair.
        batch: what its model takes.
        known: the pair's structure.
        start: "prior", p(z), or "guide", q(z | x).

    Attributes:
        size: D; 0 where there are discrete latents only.

    Raises:
        ValueError: for latents outside the data plate, discrete ones that cannot be enumerated, nested plates that
            subsample, sites of the model without a density, and for a guide whose density at a given z is no product
            over its sites.
    """

    def __init__(self, run: PairLike, batch: Sequence[Any], known: Structure, *, start: str = "prior"):
        if start not in ("prior", "guide"):
            raise ValueError(f'start is {start!r}; pass "prior" or "guide"')
        known.refuse_improper()
        if known.global_latent:
            raise ValueError(
                f"latent sites {list(known.global_latent)} lie outside the plate {known.plate!r}, so a datum has no "
                "log p(x) of its own; condition on them with pyro.poutine.condition"
            )
        self.run, self.batch, self.known, self.start = run, batch, known, start
        self.together = vectorises(run, batch, known)
        trace = poutine.trace(run.model).get_trace(*batch)
        latent = {site["name"]: site for site in random_sites(trace) if not site["is_observed"]}
        discrete = [name for name, site in latent.items() if name in known.enumerated or is_discrete(site)]
        for name in discrete:
            if not latent[name]["fn"].has_enumerate_support:
                raise ValueError(
                    f"latent {name!r} ({type(latent[name]['fn']).__name__}) is discrete and cannot be enumerated; "
                    "sample its numbers in a nested plate instead of .to_event, or use log_likelihood"
                )
        for site in random_sites(trace):
            if not has_density(site["fn"]):
                raise ValueError(
                    f"model site {site['name']!r} is implicit and has no density, so that log p(x, z) is not known at "
                    "any z; give the model a density there, conditionals.LearnedNormal for example"
                )
            for frame in site["cond_indep_stack"]:
                if frame.name != known.plate and frame.full_size not in (None, frame.size):
                    raise ValueError(f"plate {frame.name!r} subsamples inside a datum, so no density stays the same")
        self.rows = next(f.size for f in next(iter(latent.values()))["cond_indep_stack"] if f.name == known.plate)
        self.discrete = frozenset(discrete)
        self.continuous = [name for name in latent if name not in discrete]
        if start == "guide":
            _check_guide(run, batch, self.discrete)
        self.shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}  # nested plates, unconstrained event
        self.size = self.draw(1).size(-1)

    def draw(self, num_points: int) -> Tensor:
        """Points from the start, (K, B, D)."""
        return self._each(num_points, lambda k, plated: self._drawn(k, plated))

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density of the start, and of model and data, at points (K, B, D): each (K, B), nats."""
        if self.together:
            return self._densities(points, True)
        each = [self._densities(point.unsqueeze(0), False) for point in points]
        starts, joints = zip(*each, strict=True)
        return torch.cat(starts), torch.cat(joints)

    def coordinates(self, model: Callable[..., Any], num_points: int = 1) -> Tensor:
        """The points (K, B, D) that a program of the model's sites gives, run in the plate of points."""
        points = self._each(num_points, lambda k, plated: self._recorded(self._plated(model, k, plated)))
        return points.expand(num_points, *points.shape[1:])  # a program that draws nothing gives one point

    def _each(self, num_points: int, of: Callable[[int, bool], Tensor]) -> Tensor:
        return of(num_points, True) if self.together else torch.cat([of(1, False) for _ in range(num_points)])

    def _plated(self, program: Callable[..., Any], num_points: int, plated: bool) -> Callable[..., Any]:
        dim = -1 - self.known.max_plate_nesting
        return pyro.plate(PARTICLES, num_points, dim=dim)(program) if plated else program

    def _drawn(self, num_points: int, plated: bool) -> Tensor:
        model = self._plated(self.run.model, num_points, plated)
        if self.start == "guide":
            guide = self._plated(self.run.guide, num_points, plated)
            model = poutine.replay(model, trace=poutine.trace(guide).get_trace(*self.batch))
        return self._recorded(model)

    def _recorded(self, model: Callable[..., Any]) -> Tensor:
        """The latents of one run, as points (K, B, D)."""
        trace = poutine.trace(model).get_trace(*self.batch)
        parts = []
        for name in self.continuous:
            site = trace.nodes[name]
            u = bijection(name, site["fn"].support).inv(site["value"])
            batch_dims = site["value"].dim() - site["fn"].event_dim
            missing = 1 + self.known.max_plate_nesting - batch_dims
            u = u.reshape((1,) * missing + tuple(u.shape))  # (K or 1, nested plates..., B, event)
            nested, event = u.shape[1 : self.known.max_plate_nesting], u.shape[1 + self.known.max_plate_nesting :]
            self.shapes[name] = (tuple(nested), tuple(event))
            parts.append(u.movedim(self.known.max_plate_nesting, 1).reshape(len(u), self.rows, -1))
        if not parts:
            return torch.zeros(1, self.rows, 0)
        return torch.cat(parts, -1)

    def _sites(self, points: Tensor, plated: bool) -> dict[str, Tensor]:
        """Points (K, B, D) as the unconstrained values of sites, (K, nested plates..., B, *event)."""
        sizes = [torch.Size(nested + event).numel() for nested, event in self.shapes.values()]
        values = {}
        for (name, (nested, event)), u in zip(self.shapes.items(), points.split(sizes, -1), strict=True):
            value = u.reshape(*u.shape[:2], *nested, *event).movedim(1, 1 + len(nested))
            values[name] = value if plated else _bare(value, nested)
        return values

    @pyro.validation_enabled(False)  # a trajectory that leaves the numbers is rejected, not an error
    def _densities(self, points: Tensor, plated: bool) -> tuple[Tensor, Tensor]:
        num_points = len(points)
        given = _Given(self._sites(points, plated))
        model = poutine.infer_config(self.run.model, self._enumerate)
        model = self._plated(model, num_points, plated)
        first = -2 - self.known.max_plate_nesting
        with given, EnumMessenger(first_available_dim=first):  # it passes by what is given already
            trace = poutine.trace(model).get_trace(*self.batch)
        trace.symbolize_dims()
        terms = [_term(site, given.log_dets.get(site["name"])) for site in random_sites(trace)]
        latent = [term for term in terms if term.kind == "latent"]
        joint = self._sum(terms, num_points, trace)
        if self.start == "prior":
            return self._sum(latent, num_points, trace), joint
        guide = poutine.replay(self._plated(self.run.guide, num_points, plated), trace=given.values)
        guided = poutine.trace(guide).get_trace(*self.batch)
        q = [_term(site, given.log_dets[site["name"]]) for site in random_sites(guided) if not site["is_observed"]]
        return self._sum(q, num_points, trace), joint

    def _sum(self, terms: list[Term], num_points: int, trace: Trace) -> Tensor:
        draw = Draw(terms, self.known, num_points, trace.plate_to_symbol)
        return draw.log_weights(one, keep_guide=False).double()

    def _enumerate(self, site: dict[str, Any]) -> dict[str, Any]:
        return {"enumerate": "parallel"} if site["name"] in self.discrete else {}


class _Given(Messenger):
    """Gives the latents the values that unconstrained ones stand for."""

    def __init__(self, unconstrained: dict[str, Tensor]):
        super().__init__()
        self.unconstrained = unconstrained
        self.log_dets: dict[str, Tensor] = {}
        self.values = Trace()

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.unconstrained:
            return
        u = self.unconstrained[msg["name"]]
        transform = bijection(msg["name"], msg["fn"].support)
        value = transform(u)
        log_det = transform.log_abs_det_jacobian(u, value)
        self.log_dets[msg["name"]] = sum_rightmost(log_det, log_det.dim() - (value.dim() - msg["fn"].event_dim))
        msg["value"], msg["done"] = value, True
        self.values.add_node(msg["name"], name=msg["name"], type="sample", value=value, is_observed=False, infer={})


def _term(site: dict[str, Any], log_det: Tensor | None) -> Term:
    value = density(site["name"], site["fn"], site["value"], *site["args"], **site["kwargs"])
    if site["is_observed"]:
        return Term(site["name"], "observed", site, scale_and_mask(value, mask=site["mask"]), value, 1.0)
    value = value if log_det is None else value + log_det
    return Term(site["name"], "latent", site, value, value, 1.0)


def _bare(value: Tensor, nested: tuple[int, ...]) -> Tensor:
    """(1, nested plates..., B, *event) without the leading dims of size 1: as a program alone gives it."""
    value = value.squeeze(0)
    for size in nested:
        if size > 1:
            break
        value = value.squeeze(0)
    return value


def _check_guide(run: PairLike, batch: Sequence[Any], discrete: frozenset[str]) -> None:
    for site in random_sites(poutine.trace(run.guide).get_trace(*batch)):
        if not has_density(site["fn"]):
            raise ValueError(
                f'guide site {site["name"]!r} is implicit and has no density to start from; pass start="prior"'
            )
        if site["name"] in discrete or site["infer"].get("is_auxiliary"):
            kind = "discrete" if site["name"] in discrete else "auxiliary"
            raise ValueError(f'guide site {site["name"]!r} is {kind}, so q(z | x) is a sum over it; pass start="prior"')
