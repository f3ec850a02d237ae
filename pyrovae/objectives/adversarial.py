"""Pairs without some density, trained by a density ratio: implicit guides, implicit models, deterministic encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae.distributions.implicit import has_density
from pyrovae.models.base import Structure, evaluation_mode, random_sites
from pyrovae.objectives.density_ratio import RatioObjective, Values, code_in, codes, drawn_code
from pyrovae.objectives.draws import Term
from pyrovae.objectives.dreams import dream, uncondition
from pyrovae.objectives.total_correlation import code_site
from pyrovae.objectives.unscored import unscored
from pyrovae.objectives.weights import Ledger

__all__ = ["AdaptiveContrast", "AdversarialAutoencoder", "AdversarialVB", "JointRatio", "forward_kl", "reverse_kl"]


class AdaptiveContrast(nn.Module):
    r"""A critic of adversarial variational Bayes that compares q(z | x) with a Normal fitted to it, not with p(z).

        log q(z | x) / p(z) = T(x, u) + log r(z | x) - log p(z),    u = (z - E_r z) / sd_r z,    T ~ log q / r

    That holds for any r. The one that `AdversarialVB` fits beside T, by maximum likelihood on draws of q(z | x), has
    the moments of q: T then has the rest of log q to learn, which is little, and is given standardised z.

    Args:
        ratio: of the batch and of z, flattened to (L,): `DensityRatio(event_shape, L)`.
        reference: r, called with the batch, gives a distribution over vectors (L,) that has mean and stddev:
            `nn.Sequential(MLP(event_shape, (200,)), DiagonalNormal(200, L))`.

    Source: Mescheder, Nowozin & Geiger 2017, https://arxiv.org/abs/1701.04722, "Adaptive contrast". Their r has moments
    by Monte Carlo over the noise of a network made for it; a fitted one asks nothing of the guide.

    >>> from pyrovae import DensityRatio, conditionals, nets
    >>> r = nn.Sequential(nets.MLP(4, (16,)), conditionals.DiagonalNormal(16, 2))
    >>> AdaptiveContrast(DensityRatio(4, 2), r)(torch.ones(5, 4), torch.zeros(3, 5, 2)).shape
    torch.Size([3, 5])
    """

    def __init__(self, ratio: nn.Module, reference: nn.Module) -> None:
        super().__init__()
        self.ratio, self.reference = ratio, reference

    def forward(self, *values: Tensor) -> Tensor:
        """T(x, u), of the batch and z."""
        *given, z = values
        with torch.no_grad():  # r follows its likelihood alone
            r = self.reference(*given)
            loc, scale = r.mean, r.stddev
        return self.ratio(*given, (z - loc) / scale)


class AdversarialVB(RatioObjective):
    r"""The ELBO of a guide without a density: a critic of (x, z) stands in for the ratio of posterior and prior.

        E_q [log p(x | z) - T(x, z)],    T(x, z) ~ log q(z | x) / p(z)

    At the best T it is the ELBO, and so is its gradient: T's own dependence on the guide vanishes in the mean, that on
    a learned prior is put in, -grad log p(z). The critic tells (x, z) with z ~ q(z | x) from (x, z) with z ~ p(z), at
    the same x. `AdaptiveContrast` compares q(z | x) with a Normal of its moments: better where q and p hardly overlap.

    Guides with a density are welcome too. The value is an estimate by the critic, no bound on log p(x): too high where
    T is too small. Evaluate with `pyrovae.ais`. What has no ratio, such as a q(z | x) on points, has no finite T.

    Args:
        critic: of the batch, as the guide is called with, and of z, flattened to (L,): `DensityRatio(event_shape, L)`,
            or an `AdaptiveContrast` of one, whose loss has -log r added.
        num_particles: samples of z per datum.
        critic_steps, critic_optimizer: see `RatioObjective`.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for pairs with other latents than one site per datum, for guides whose samples have no gradient,
            and for a learned prior without a density.

    Source: Mescheder, Nowozin & Geiger 2017, https://arxiv.org/abs/1701.04722, algorithm 1, propositions 1
    and 2.

    >>> from pyrovae import VAE, DensityRatio, conditionals
    >>> vae, x = VAE(4, 2, hidden=(8,), posterior=conditionals.Implicit), torch.ones(16, 4)
    >>> objective = AdversarialVB(DensityRatio(4, 2, hidden=(8,)))
    >>> objective.loss(vae.model, vae.guide, x) > 0  # in stock Pyro: see `RatioObjective`
    True
    """

    of_x = True

    def draw(self, pair: Any, *batch: Any, known: Structure) -> Ledger:
        """K particles, log q(z | x) left out."""
        hidden = _latent if self._reference is None else _nothing
        return super().draw(unscored(pair, model=hidden, guide=_everything), *batch, known=known)

    def samples(self, pair: Any, *batch: Any, known: Structure) -> tuple[Values, Values]:
        """Each x with z of the guide, and with z of the prior, or of the reference."""
        z = drawn_code(pair.guide, batch, known)
        if self._reference is None:
            other = drawn_code(uncondition(pair.model), batch, known)
        else:
            other = self._reference(*batch).sample()
        return (*batch, z), (*batch, other)

    def learned_from(self, of_q: Values, of_p: Values) -> Tensor:
        """The logistic loss, and -log r(z | x) of the guide's draws where there is a reference."""
        loss = super().learned_from(of_q, of_p)
        return loss if self._reference is None else loss - self._reference(*of_q[:-1]).log_prob(of_q[-1]).mean()

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The mean over particles, (B,)."""
        term, z = _path(drawn), codes(drawn)
        if self._reference is None:
            value = drawn.elbo(_observed, closed_form=False) + term.scale * _gradient_of_prior(drawn)
        else:
            with torch.no_grad(), evaluation_mode(self._reference):
                r = self._reference(*drawn.batch)
            value = drawn.elbo(closed_form=False) - term.scale * r.log_prob(z)
        return (value - term.scale * self.logit(*drawn.batch, z)).mean(0)

    @property
    def _reference(self) -> nn.Module | None:
        return self.critic.reference if isinstance(self.critic, AdaptiveContrast) else None


def reverse_kl(log_ratio: Tensor) -> Tensor:
    """T itself: the mean under p is -KL(p || q)."""
    return log_ratio


def forward_kl(log_ratio: Tensor) -> Tensor:
    """exp T: the mean under p has, with T fixed, minus the gradient of KL(q || p) for p."""
    return log_ratio.exp()


class JointRatio(RatioObjective):
    r"""The ELBO up to log q(x) of pairs of which guide and model may both lack a density, by a critic of (x, z).

        -E_q [T(x, z)] ~ E_q [log p(x, z) - log q(x, z)] = -KL(q || p)

        T(x, z) ~ log q(x) q(z | x) / p(z) p(x | z),    q(x) the data

    Nothing of the pair is scored. The guide follows the value through z, as in `AdversarialVB`. The model is not in
    that mean: it follows E_p [h(T(x, z))] through draws (x, z) of its own, with T fixed,

        h(T) = T        grad E_p [T] = -grad KL(p || q)            `reverse_kl`, as a generator is trained
        h(T) = exp T    grad E_p [exp T] = -grad KL(q || p)        `forward_kl`: the value's own gradient, the ELBO's

    of which the second is that of the value, and vanishes where the model's draws are not like data yet. Both are 0 at
    q = p only.

    The value is an estimate by the critic of -KL(q || p), 0 at best: log p(x) of such a pair is known to nobody.

    Args:
        critic: of the batch, as the guide is called with, and of z, flattened to (L,): `DensityRatio(event_shape, L)`.
        num_particles: samples of z per datum.
        of_model: h; `reverse_kl` or `forward_kl`.
        critic_steps, critic_optimizer: see `RatioObjective`.
        plate: name of the data plate, where it is not plain.

    Raises:
        TypeError: for an h that can't be called.
        ValueError: for pairs with other latents than one site per datum, for draws that have no gradient, for models
            whose data are no tensors of the batch, and with a `pyro.factor`.

    Source: Huszar 2017, https://arxiv.org/abs/1702.08235 (joint-contrastive); Tran, Ranganath & Blei 2017,
    https://arxiv.org/abs/1702.08896; the samples compared are those of Dumoulin et al. 2017 (ALI) and Donahue et al.
    2017 (BiGAN); h = exp is the dual of Nguyen, Wainwright & Jordan 2010.

    >>> from pyrovae import VAE, DensityRatio, conditionals
    >>> vae = VAE(4, 2, hidden=(8,), posterior=conditionals.Implicit, likelihood=conditionals.Implicit)
    >>> objective = JointRatio(DensityRatio(4, 2, hidden=(8,)))
    >>> abs(objective.loss(vae.model, vae.guide, torch.ones(16, 4))) < 100
    True
    """

    of_x = True

    def __init__(
        self,
        critic: nn.Module,
        num_particles: int = 1,
        *,
        of_model: Callable[[Tensor], Tensor] = reverse_kl,
        critic_steps: int = 1,
        critic_optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, lr=1e-3),  # noqa: B008
        plate: str | None = None,
    ):
        super().__init__(
            critic, num_particles, critic_steps=critic_steps, critic_optimizer=critic_optimizer, plate=plate
        )
        if not callable(of_model):
            raise TypeError(f"of_model is {of_model!r}, a function of T is wanted; pass reverse_kl")
        self.of_model = of_model

    def draw(self, pair: Any, *batch: Any, known: Structure) -> Ledger:
        """K particles of the guide, nothing scored."""
        return super().draw(unscored(pair, model=_everything, guide=_everything), *batch, known=known)

    def samples(self, pair: Any, *batch: Any, known: Structure) -> tuple[Values, Values]:
        """Data with z of the guide, and x with z of the model."""
        return (*batch, drawn_code(pair.guide, batch, known)), self._dreamt(pair, batch, known)

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The mean over particles, (B,)."""
        term, z = _path(drawn), codes(drawn)
        value = -self.logit(*drawn.batch, z).mean(0)
        if torch.is_grad_enabled():
            of_model = self.of_model(self.logit(*self._dreamt(drawn.pair, drawn.batch, drawn.known)))
            value = value + of_model - of_model.detach()
        return term.scale * value

    def _dreamt(self, pair: Any, batch: Sequence[Any], known: Structure) -> Values:
        trace, given = dream(pair, batch, known)
        for site in random_sites(trace):
            if torch.is_grad_enabled() and not site["fn"].has_rsample:
                raise ValueError(
                    f"model site {site['name']!r} ({type(site['fn']).__name__}) has no reparametrised samples, so that "
                    "this objective has no gradient for the model; pass objective=pyrovae.AdversarialVB(critic)"
                )
        return (*given, code_in(trace, known))


class AdversarialAutoencoder(RatioObjective):
    r"""Reconstruction, with the aggregate posterior held to the prior by a critic of z.

        E_q [log p(x | z)] - weight E_q [T(z)],    T(z) ~ log q(z) / p(z),    q(z) = 1/N sum_n q(z | x_n)

    The mean of T is KL(q(z) || p(z)), and so is its gradient, that for a learned prior too. There is no KL per datum,
    so that a deterministic encoder will do (`conditionals.Implicit` with noise_dim=0, or Pyro's Delta). The value is
    reconstruction less a penalty and no bound on log p(x), and in validation an estimate by the critic of that epoch.
    At weight 1 it is the mean ELBO plus the information I(x; z).

    The authors' encoder is trained against the classifier itself (it minimises log 1 - D or maximises log D), which at
    the best T is another divergence with the same optimum; here it is the KL, in nats.

    Args:
        critic: of z, flattened to (L,): `DensityRatio(L)`.
        num_particles: samples of z per datum.
        weight: of the divergence; a number or a schedule. The authors take turns between the two instead.
        critic_steps, critic_optimizer: see `RatioObjective`.
        plate: name of the data plate, where it is not plain.

    Raises:
        ValueError: for a weight below 0, and as for `AdversarialVB`.

    Source: Makhzani, Shlens, Jaitly, Goodfellow & Frey 2016, https://arxiv.org/abs/1511.05644, section 2.

    >>> from pyrovae import VAE, DensityRatio, conditionals
    >>> points = partial(conditionals.Implicit, noise_dim=0)
    >>> vae, x = VAE(4, 2, hidden=(8,), posterior=points), torch.ones(16, 4)
    >>> objective = AdversarialAutoencoder(DensityRatio(2, hidden=(8,)), weight=10.0)
    >>> objective.is_bound
    False
    """

    def __init__(
        self,
        critic: nn.Module,
        num_particles: int = 1,
        *,
        weight: Any = 1.0,
        critic_steps: int = 1,
        critic_optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, lr=1e-3),  # noqa: B008
        plate: str | None = None,
    ):
        super().__init__(
            critic, num_particles, critic_steps=critic_steps, critic_optimizer=critic_optimizer, plate=plate
        )
        if not hasattr(weight, "value") and not weight >= 0:
            raise ValueError(f"weight is {weight}, that of the divergence from the prior; pass 1.0, or another above 0")
        self.weight = weight

    def draw(self, pair: Any, *batch: Any, known: Structure) -> Ledger:
        """K particles, log q(z | x) left out."""
        return super().draw(unscored(pair, model=_latent, guide=_everything), *batch, known=known)

    def samples(self, pair: Any, *batch: Any, known: Structure) -> tuple[Values, Values]:
        """z of each datum, and as many draws of p(z)."""
        other = drawn_code(uncondition(pair.model), batch, known)
        return (drawn_code(pair.guide, batch, known),), (other,)

    def per_datum(self, drawn: Ledger) -> Tensor:
        """The mean over particles, (B,)."""
        weight = getattr(self.weight, "value", self.weight) * _path(drawn).scale
        divergence = self.logit(codes(drawn)) - _gradient_of_prior(drawn)
        return (drawn.elbo(_observed, closed_form=False) - weight * divergence).mean(0)


def _everything(site: dict[str, Any]) -> bool:
    return True


def _latent(site: dict[str, Any]) -> bool:
    return not site["is_observed"]


def _nothing(site: dict[str, Any]) -> bool:
    return False


def _observed(term: Term) -> float | Tensor:
    return term.scale if term.kind == "observed" else 0.0


def _path(drawn: Ledger) -> Term:
    """The guide's one term, whose draws have a gradient."""
    term = code_site(drawn, independent=False)
    if torch.is_grad_enabled() and not term.site["fn"].has_rsample:
        raise ValueError(
            f"guide site {term.name!r} ({type(term.site['fn']).__name__}) has no reparametrised samples, so that this "
            "objective has no gradient for it; pass objective=pyrovae.VIMCO(5)"
        )
    return term


def _gradient_of_prior(drawn: Ledger) -> Tensor:
    """Zero, (K, B), with the gradient of log p(z) for the prior's own parameters.

    The best T has minus that, of which a T that is held fixed has nothing.
    """
    each = []
    for draw in drawn.draws:
        site = next(term.site for term in draw.terms if term.kind == "latent")
        prior, z = site["fn"].base_dist, site["value"].detach()
        if has_density(prior):
            each.append(prior.log_prob(z).reshape(-1, drawn.rows))
        elif prior.rsample().requires_grad:
            raise ValueError(
                f"the prior of {site['name']!r} is implicit and learned, and has no density that would give it a "
                "gradient; fix its parameters, or pass objective=pyrovae.JointRatio(critic)"
            )
    log_p = torch.cat(each) if each else torch.zeros((), device=drawn.terms[0].log_prob.device)
    return log_p - log_p.detach()
