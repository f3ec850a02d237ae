"""Codebooks: K vectors, of which each vector that comes in is given the nearest one's number."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from pyrovae.nets.layers import as_size

__all__ = ["Codebook", "EMACodebook"]

FLOOR = 1e-12  # of a running share: far below one vector's, far above the smallest float32


class Codebook(nn.Module):
    r"""K vectors e_k that learn by gradient.

        k(h) = argmin_k |h - e_k|^2,    the first of those that tie

    In training mode each call counts which codes are used, as a running mean of their shares, and codes that were
    hardly used restart at vectors of the batch, drawn at random, before codes are given; so do all at the first call,
    unless `initialise_` came before or `revive_below` is 0. Nothing moves in evaluation mode.

    Args:
        num_codes: K.
        code_dim: D.
        decay: of the running shares, for each call in training mode.
        revive_below: a code whose running share is below this many times 1/K restarts, with share 1/K; 0 for never.
            By 0.1 a code that nobody uses restarts after log(0.1) / log(decay) calls, 229 by default.

    Returns:
        From `forward(h)`: k (...), integers, of h (..., D).

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, a decay outside [0, 1), a share outside
            [0, 1), and at the call for vectors of another length.

    Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, eqs. 1 and 2; restarts: Dhariwal et al. 2020
    (Jukebox), https://arxiv.org/abs/2005.00341, section 3.1.

    >>> book = Codebook(3, 2)
    >>> with torch.no_grad():
    ...     _ = book.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]]))
    >>> book.eval()(torch.tensor([[0.9, 0.1], [0.1, 1.2]]))
    tensor([1, 2])
    """

    offset: Tensor
    usage: Tensor

    def __init__(self, num_codes: int, code_dim: int, *, decay: float = 0.99, revive_below: float = 0.1) -> None:
        super().__init__()
        self.num_codes, self.code_dim = as_size(num_codes, "num_codes"), as_size(code_dim, "code_dim")
        self.decay, self.revive_below = _fraction("decay", decay), _fraction("revive_below", revive_below)
        # Below the threshold: codes far from all data would be dead for hundreds of calls, but for one.
        self.register_buffer("usage", torch.full((self.num_codes,), (self.revive_below / 2 or 1) / self.num_codes))
        self._start(torch.randn(self.num_codes, self.code_dim))

    def _start(self, vectors: Tensor) -> None:
        self.weight = nn.Parameter(vectors)
        # Restarts write here: the optimizer's own tensor is never changed behind its back.
        self.register_buffer("offset", torch.zeros_like(vectors))

    @property
    def vectors(self) -> Tensor:
        """e, (K, D)."""
        return self.weight + self.offset

    def embed(self, k: Tensor) -> Tensor:
        """e_k, (..., D), of k (...)."""
        return self.vectors[k.long()]

    def forward(self, h: Tensor) -> Tensor:
        """The numbers of the nearest codes."""
        if h.size(-1) != self.code_dim:
            raise ValueError(
                f"the vectors have length {h.size(-1)}, the codebook's {self.code_dim}; pass code_dim={h.size(-1)}"
            )
        with torch.no_grad():
            h = h.detach().to(self.usage.dtype)
            if self.training:
                self._observe(h.reshape(-1, self.code_dim))
            return self._nearest(h)

    def _nearest(self, h: Tensor) -> Tensor:
        vectors = self.vectors
        with torch.autocast(h.device.type, enabled=False):  # in half precision another code would often come out
            return (vectors.square().sum(-1) - 2 * h @ vectors.T).argmin(-1)  # |h|^2 is the same for all codes

    def _observe(self, h: Tensor) -> None:
        """Restart codes that are not used, then count who is: h (N, D)."""
        dead = self.usage < self.revive_below / self.num_codes
        candidates = h[torch.randint(len(h), (self.num_codes,), device=h.device)]
        self._restart(dead[:, None], candidates)
        self.usage.copy_(torch.where(dead, 1 / self.num_codes, self.usage))
        used = self._nearest(h)[:, None] == torch.arange(self.num_codes, device=h.device)  # (N, K)
        self._learn(used.to(h), h)
        # Shares, not counts: several processes average their buffers over rows, which is then that of the whole batch.
        self.usage.lerp_(used.to(h).mean(0), 1 - self.decay).clamp_(min=FLOOR)

    def _restart(self, dead: Tensor, candidates: Tensor) -> None:
        self.offset.copy_(torch.where(dead, candidates - self.weight, self.offset))

    def _learn(self, used: Tensor, h: Tensor) -> None:
        """What the codebook learns from a batch by itself, of one-hot codes (N, K) and vectors (N, D): nothing."""

    @torch.no_grad()
    def initialise_(self, h: Tensor) -> Self:
        """Set the codes to K different ones of the vectors h (..., D), drawn at random.

        Args:
            h: vectors, of an encoder on some data, say.

        Returns:
            This module.

        Raises:
            ValueError: if there are fewer than K different ones.
        """
        distinct = h.reshape(-1, self.code_dim).unique(dim=0)
        if len(distinct) < self.num_codes:
            raise ValueError(
                f"the codebook has {self.num_codes} codes, and there are {len(distinct)} different vectors among "
                f"{h.numel() // self.code_dim} to start them from; pass more data or num_codes={max(len(distinct), 1)}"
            )
        chosen = distinct[torch.randperm(len(distinct), device=h.device)[: self.num_codes]]
        self.usage.fill_(1 / self.num_codes)
        self._restart(torch.ones_like(self.usage, dtype=torch.bool)[:, None], chosen.to(self.usage))
        return self


class EMACodebook(Codebook):
    r"""K vectors e_k, each the running mean of the vectors that were nearest to it: buffers, without a gradient.

        n_k <- decay n_k + (1 - decay) (share of the batch's vectors with code k)
        m_k <- decay m_k + (1 - decay) (sum of these vectors) / (number of all vectors)        e_k = m_k / n_k

    In training mode each call moves the codes first and then gives them, so that model and guide, both of which read
    the codebook within one step, read the same. A code that nobody uses stays where it is: n_k falls to 1e-12 and not
    below, which would leave 0 / 0.

    Args:
        num_codes, code_dim, decay, revive_below: as in `Codebook`; n_k is the running share.

    Returns:
        From `forward(h)`: k (...), integers, of h (..., D).

    Raises:
        TypeError, ValueError: as in `Codebook`.

    Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, appendix A.1, eqs. 6 to 8, whose counts are
    shares here.
    """

    sums: Tensor

    def _start(self, vectors: Tensor) -> None:
        self.register_buffer("sums", vectors * self.usage[:, None])

    @property
    def vectors(self) -> Tensor:
        """e, (K, D)."""
        return self.sums / self.usage[:, None]

    def _restart(self, dead: Tensor, candidates: Tensor) -> None:
        self.sums.copy_(torch.where(dead, candidates / self.num_codes, self.sums))

    def _learn(self, used: Tensor, h: Tensor) -> None:
        with torch.autocast(h.device.type, enabled=False):
            moved = self.sums.lerp(used.T @ h / len(h), 1 - self.decay)
        gone = self.usage.lerp(used.mean(0), 1 - self.decay) < FLOOR
        self.sums.copy_(torch.where(gone[:, None], FLOOR * self.vectors, moved))


def _fraction(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}, a number in [0, 1) is wanted; pass {name}=0.5, say")
    return float(value)
