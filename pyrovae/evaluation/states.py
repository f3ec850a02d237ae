"""Hidden paths of any pair's sequences: posterior, marginals, the most probable path."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from pyrovae.distributions import MarkovChain
from pyrovae.evaluation.chunks import check_support
from pyrovae.evaluation.running import evaluating
from pyrovae.objectives.states import hidden_markov

__all__ = ["pair_marginals", "posterior_marginals", "state_posterior", "viterbi"]


def state_posterior(pair: Any, *batch: Any, site: str = "x", seed: int = 0) -> MarkovChain:
    r"""p(s | x), a Markov chain itself, of a model whose observed site is a `HiddenMarkov` or Pyro's `DiscreteHMM`.

        p(s_t | s_{t-1}, x) prop. to p(s_t | s_{t-1}) p(x_t, ..., x_n | s_t)

    Sites that the model samples, such as parameters with a prior, are drawn from the guide. The pair runs in evaluation
    mode, and there are no gradients.

    Args:
        pair: see `pyrovae.as_pair`.
        batch: what model and guide are called with, or the data, as `pyrovae.data.match` takes them.
        site: name of the observed sequences.
        seed: of what the guide draws.

    Returns:
        the chain, batch shape (B,); s_1 is the state of the first datum, for Pyro's chain too.

    Raises:
        ValueError: where the site is no observed sequence of either kind, and for data that the pair refuses or the
            likelihood cannot give.

    Source: Rabiner 1989, https://doi.org/10.1109/5.18626

    >>> import torch, pyro, pyro.distributions as dist
    >>> def model(x):
    ...     emission = dist.Normal(torch.tensor([-1.0, 1.0]), 1.0)
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("x", dist.DiscreteHMM(torch.zeros(2), torch.zeros(2, 2), emission, duration=3), obs=x)
    >>> chain = state_posterior((model, lambda x: None), torch.tensor([[-5.0, 0.0, 5.0]]))
    >>> chain.marginals.round(decimals=2)
    tensor([[[1.0000, 0.0000],
             [0.5000, 0.5000],
             [0.0000, 1.0000]]])
    """
    # All rows at once, for one chain; the smaller of this and their number is taken.
    with evaluating(pair, batch[0] if len(batch) == 1 else batch, seed=seed, batch_size=sys.maxsize) as on:
        rows = on.batch()
        check_support(on, rows)
        found, value = hidden_markov(on.pair, *rows, site=site)
        return found.posterior(value)


def posterior_marginals(pair: Any, *batch: Any, site: str = "x", seed: int = 0) -> Tensor:
    """p(s_t | x), (B, T, S): zeros after the end of a sequence; arguments as for `state_posterior`."""
    return state_posterior(pair, *batch, site=site, seed=seed).marginals


def pair_marginals(pair: Any, *batch: Any, site: str = "x", seed: int = 0) -> Tensor:
    """p(s_t, s_{t+1} | x), (B, T - 1, S, S), old state first; arguments as for `state_posterior`."""
    return state_posterior(pair, *batch, site=site, seed=seed).pair_marginals


def viterbi(pair: Any, *batch: Any, site: str = "x", seed: int = 0) -> Tensor:
    """The most probable path given x, (B, T) integers, 0 after the end; arguments as for `state_posterior`."""
    return state_posterior(pair, *batch, site=site, seed=seed).mode
