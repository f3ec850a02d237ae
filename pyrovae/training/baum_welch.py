"""The E-step of Baum-Welch: expectation maximisation for hidden Markov models, see `pyrovae.fit_em`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrovae.models.base import PairLike, structure
from pyrovae.objectives.states import hidden_markov
from pyrovae.training.em import EStep, Expectation

__all__ = ["ForwardBackward"]


class ForwardBackward(EStep):
    r"""q is the exact posterior of the hidden path of sequences: `pyrovae.state_posterior`.

    The responsibilities are s, q(s_t), (B, T, S), and s_pairs, q(s_t, s_{t+1}), (B, T - 1, S, S), zeros after the end
    of a sequence. As M-step, `Ascent(steps)` serves any model, `HMM.maximize` is in closed form.

    Args:
        site: the model's sequences, observed from a `HiddenMarkov` or Pyro's `DiscreteHMM`; no site is latent.

    Source: Baum et al. 1970; Rabiner 1989, https://doi.org/10.1109/5.18626

    >>> from pyrovae import HMM, fit_em
    >>> x, lengths = torch.rand(6, 5, 2).round(), torch.tensor([5, 4, 3, 2, 1, 5])
    >>> hmm = HMM((5, 2), num_states=2)
    >>> run = fit_em(hmm, (x, lengths), e_step=ForwardBackward(), m_step=hmm.maximize, max_epochs=3)
    >>> loss = run.history["train_loss"]
    >>> loss[0] > loss[1] > loss[2]
    True
    """

    def __init__(self, site: str = "x"):
        self.site = site

    def prepare(self, batch: tuple[Tensor, ...], plate: str | None, objective: Any) -> None:  # noqa: D102
        self.known = structure(self.pair, *batch, plate=plate)
        if self.known.latent:
            raise ValueError(
                f"the model samples {list(self.known.latent)}, of which ForwardBackward has no posterior; use fit, or "
                "fit_em(e_step=Ascent()) with a guide"
            )

    def __call__(self, *batch: Tensor, whole: bool) -> Expectation:  # noqa: D102
        return _Paths(self.pair, batch, self.site)


class _Paths:
    """q(s | x), held fixed, and F at the model's present parameters."""

    def __init__(self, pair: PairLike, batch: tuple[Tensor, ...], site: str):
        self.pair, self.batch, self.site = pair, batch, site
        with torch.no_grad():
            found, x = hidden_markov(pair, *batch, site=site)
            q = found.posterior(x)
            self.responsibilities = {"s": q.marginals, "s_pairs": q.pair_marginals}
            self._entropy = q.entropy()

    def mean(self) -> Tensor:
        """E_q log p(x, s) + H[q], mean nats per datum."""
        found, x = hidden_markov(self.pair, *self.batch, site=self.site)
        states, pairs = self.responsibilities.values()
        chain = found.chain
        value = _expected(states[:, 0], chain.initial_logits).sum(-1) + _expected(states, found.potentials(x)).sum(
            (1, 2)
        )
        if chain.duration > 1:
            value = value + _expected(pairs, chain.transition_logits).sum((1, 2, 3))
        return (value + self._entropy).mean()


def _expected(weights: Tensor, values: Tensor) -> Tensor:
    """Their product; 0 of what never happens, of which the value may be minus infinity."""
    return weights * torch.where(weights > 0, values, 0.0)
