"""Which codes of a codebook, or classes of a categorical latent, data make use of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyrovae.evaluation.predictive import encode

__all__ = ["code_perplexity", "perplexity_of"]


def perplexity_of(shares: Tensor) -> float:
    """exp of the entropy of shares (K) that sum to one: K where all are equal, 1 where one has all.

    >>> round(perplexity_of(torch.full((8,), 1 / 8)), 6), perplexity_of(torch.tensor([1.0, 0.0]))
    (8.0, 1.0)
    """
    return float(torch.special.entr(shares.double()).sum().exp())


def code_perplexity(pair: Any, data: Any, *, site: str, num_codes: int | None = None, **options: Any) -> float:
    """How many codes data use in effect: the perplexity of the shares of all codes in all data.

    Args:
        pair: any pair whose guide draws whole numbers, or one-hot vectors, at the site.
        data: rows, or one batch for the perplexity of a batch.
        site: the latent.
        num_codes: K, to check that none is above it.
        options: of `encode`.

    Returns:
        between 1 and K.

    Raises:
        ValueError: for a site of other values.

    Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937 (the measure of the authors' code).
    """
    k = encode(pair, data, site=site, sample=True, **options)
    if k.is_floating_point():
        if not ((k == 0) | (k == 1)).all() or not (k.sum(-1) == 1).all():
            raise ValueError(f"latent {site!r} has values that are no codes; name a latent of whole numbers or one-hot")
        k = k.argmax(-1)
    counts = k.flatten().bincount(minlength=num_codes or 0).double()
    if num_codes is not None and len(counts) > num_codes:
        raise ValueError(f"latent {site!r} has code {len(counts) - 1}, num_codes is {num_codes}; pass {len(counts)}")
    return perplexity_of(counts / counts.sum())
