r"""Hamiltonian Monte Carlo over the continuous latent sites of a model, for all data and chains at once.

Data are independent given the parameters, so each datum of each chain is moved, and accepted, on its own: one
acceptance for a whole batch, as in `pyro.infer.HMC`, would fall with the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from pyrovae.distributions.supports import bijection
from pyrovae.models.base import Functions, Structure, isolated_random_state, structure
from pyrovae.models.local import latent_sites, substituted
from pyrovae.objectives.particles import PARTICLES, vectorises
from pyrovae.objectives.weights import Ledger, ledger

__all__ = ["Chains"]

TARGET = 0.8  # acceptance that step sizes adapt to


class Chains:
    r"""K chains for each datum, whose states are draws from p(z | x; theta) in the end.

    They live on the unconstrained reals u, z = T(u), with density p(x, T(u)) |det dT/du|; discrete sites, which are
    enumerated, are summed out of it. They start from the prior. T is that of the site's support, given the latents
    before it and the parameters.

    Args:
        model: a Pyro model whose parameters may change between moves.
        batch: what it is called with.
        chains: K, at least 2.
        step_size: of the leapfrog, to start from; each datum adapts its own.
        known: the structure of the model with its prior as guide.

    Attributes:
        position: u of each site, (K, nested plates..., B, *event).
        values: z of each site, alike; they stay when the parameters change, until the next moves.
        step_size: (B,).
        acceptance: mean probability of the last moves, (B,).

    Raises:
        ValueError: where there is no continuous site, one lies outside the data plate, its support depends on a
            discrete one, or the model does not vectorise.

    Source: Neal 2011.
    """

    def __init__(self, model: Callable[..., Any], *batch: Any, chains: int, step_size: float = 0.2, known: Structure):
        self.model, self.batch, self.chains = config_enumerate(model, "parallel"), batch, chains
        self.batch_dims = 1 + known.max_plate_nesting
        if known.global_latent or known.rows != len(batch[0]):
            raise ValueError(
                f"latent sites {list(known.global_latent)} lie outside the plate {known.plate!r}, or it subsamples by "
                "itself, and each datum is moved on its own; pass e_step=Ascent() with a guide, or use pyro.infer.NUTS"
            )
        prior = poutine.block(model, hide_fn=lambda site: bool(site.get("is_observed")))
        if not vectorises(Functions(model, prior), batch, known):
            raise ValueError("the model does not take leading dims, as chains are; pass e_step=Ascent() with a guide")
        sites = latent_sites(pyro.plate(PARTICLES, chains, dim=-self.batch_dims)(self.model), *batch)
        if not sites:
            raise ValueError("the model has no continuous latent site to move; pass e_step=Exact()")
        if discrete := [name for name, site in sites.items() if site["fn"].support.is_discrete]:
            raise ValueError(f"latent sites {discrete} are discrete and cannot be summed; pass e_step=Ascent()")
        self.position = {n: bijection(n, site["fn"].support).inv(site["value"]) for n, site in sites.items()}
        self.values, again = self._values(seed=0), self._values(seed=1)
        if moved := [name for name, z in self.values.items() if not torch.equal(z, again[name])]:
            raise ValueError(
                f"the support of site {moved[0]!r} depends on a discrete site, which is summed, so that no trajectory "
                "stays in it; pass e_step=Ascent() with a guide"
            )
        one = {name: u[0] for name, u in self.position.items()}
        known = structure(Functions(self.model, self._guide(one)), *batch, plate=known.plate)
        self.known = replace(known, vectorises=True)
        self.step_size = next(iter(one.values())).new_full((known.rows,), step_size)
        self.acceptance = torch.ones_like(self.step_size)

    def log_joint(self) -> Tensor:
        """log p(x, z) at the present states, discrete sites summed out; (K, B), differentiable in the parameters."""
        return self._ledger(self._held).log_weights()

    def mean(self) -> Tensor:
        """The mean of `log_joint`; terms outside the data plate, such as log-priors, count once for all N data."""
        drawn = self._ledger(self._held)
        value, shared = drawn.log_weights().mean(), drawn.global_elbo()
        return value + shared.mean() / drawn.size if isinstance(shared, Tensor) else value

    def move(self, transitions: int, *, leapfrog: int = 10) -> None:
        """Move all chains; step sizes adapt in the first half, and are fixed in the second."""
        for transition in range(transitions):
            self.acceptance = self._transition(leapfrog).mean(0)
            if transition < transitions // 2:
                self.step_size = self.step_size * (self.acceptance - TARGET).div(2).exp()
        self.values = self._values()

    def _transition(self, leapfrog: int) -> Tensor:
        """One proposal and its acceptance; the probabilities of that, (K, B)."""
        jitter = 0.8 + 0.4 * torch.rand(self.chains, len(self.step_size)).to(self.step_size)  # no periodic orbits
        step = {name: self._beside(name, jitter * self.step_size) for name in self.position}
        momentum = {name: torch.randn_like(u) for name, u in self.position.items()}
        position = self.position
        log_density, gradient = self._gradient(position)
        before = log_density - self._kinetic(momentum)
        for _ in range(leapfrog):
            momentum = {name: p + step[name] / 2 * gradient[name] for name, p in momentum.items()}
            position = {name: u + step[name] * momentum[name] for name, u in position.items()}
            log_density, gradient = self._gradient(position)
            momentum = {name: p + step[name] / 2 * gradient[name] for name, p in momentum.items()}
        log_ratio = (log_density - self._kinetic(momentum) - before).nan_to_num(nan=-torch.inf).clamp(max=0.0)
        accepted = torch.rand_like(log_ratio).log() < log_ratio
        self.position = {n: torch.where(self._beside(n, accepted), position[n], u) for n, u in self.position.items()}
        return log_ratio.exp()

    def _gradient(self, position: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.enable_grad():
            leaves = {name: u.detach().requires_grad_() for name, u in position.items()}
            log_density = self._ledger(self._guide(leaves)).log_weights()
            gradients = torch.autograd.grad(log_density.sum(), list(leaves.values()))
        return log_density.detach(), dict(zip(leaves, gradients, strict=True))

    def _ledger(self, guide: Callable[..., Any]) -> Ledger:
        with pyro.validation_enabled(False):  # what leaves the numbers is rejected, not an error
            return ledger(Functions(self.model, guide), *self.batch, num_particles=self.chains, known=self.known)

    def _guide(self, position: dict[str, Tensor]) -> Callable[..., Any]:
        """The guide that puts all mass where the chains are, and minus the log of the Jacobian in place of log q."""

        def at(name: str, fn: Any) -> dist.Distribution:
            transform = bijection(name, fn.support)
            z = transform(position[name])
            log_jacobian = transform.log_abs_det_jacobian(position[name], z)  # of the event as a whole
            return dist.Delta(z, log_density=-log_jacobian, event_dim=fn.event_dim)

        return substituted(self.model, {name: partial(at, name) for name in position})

    def _held(self, *batch: Any) -> None:
        """The guide that puts all mass on `values`, in coordinates of the sites themselves."""

        def at(name: str, fn: Any) -> dist.Distribution:
            return dist.Delta(self.values[name], event_dim=fn.event_dim)

        substituted(self.model, {name: partial(at, name) for name in self.values})(*batch)

    def _values(self, seed: int | None = None) -> dict[str, Tensor]:
        """z of each site, (K, nested plates..., B, *event)."""
        guide = pyro.plate(PARTICLES, self.chains, dim=-self.batch_dims)(self._guide(self.position))
        with pyro.validation_enabled(False), isolated_random_state(seed), torch.no_grad():
            trace = poutine.trace(guide).get_trace(*self.batch)
        return {name: trace.nodes[name]["value"] for name in self.position}

    def _beside(self, name: str, value: Tensor) -> Tensor:
        """A value (K, B) with the dims of a site."""
        event = (1,) * (self.position[name].dim() - self.batch_dims)
        return value.reshape(len(value), *(1,) * (self.batch_dims - 2), value.size(1), *event)

    def _kinetic(self, momentum: dict[str, Tensor]) -> Tensor:
        """Half the square of the momentum, (K, B)."""
        total = torch.zeros(())
        for p in momentum.values():
            nested = p.shape[1 : self.batch_dims - 1].numel()
            total = total.to(p) + (p**2 / 2).reshape(len(p), nested, len(self.step_size), -1).sum((1, 3))
        return total
