"""Factorised distributions of enumerated sites: their coordinate ascent, over the tables of a draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pyro.ops import packed
from torch import Tensor

from pyrovae.objectives.draws import Draw, Term

__all__ = ["mean_field", "probabilities"]

LOG_ZERO = -1e30  # stands for log 0, whose product with a probability 0 would be NaN

Named = tuple[
    Tensor, str
]  # a tensor and a letter for each of its dims, as Pyro packs them: plates and enumerated sites


def mean_field(draw: Draw, sweeps: int, start: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Coordinate ascent on sum over terms of E_q [log p] + H[q], q a product over the model's enumerated sites.

    Returns:
        the probability that q gives to each entry of each local term, as `Draw.shares` does for the exact posterior,
        and the entropy of q, (1, B).
    """
    _check_plates(draw)
    tables = [_pack(term, value.clamp(min=LOG_ZERO)) for term, value in zip(draw.local, draw.counted(), strict=True)]
    sites = {
        symbol: (term, dims)
        for term, (_, dims) in zip(draw.local, tables, strict=True)
        if term.kind == "latent" and term.enumerated and (symbol := term.site["infer"]["_enumerate_symbol"]) in dims
    }
    sizes = {letter: size for table, dims in tables for letter, size in zip(dims, table.shape, strict=True)}
    factors: dict[str, Named] = {}
    for symbol, (term, dims) in sites.items():
        own = symbol + "".join(letter for letter in dims if letter not in sites)  # site first, then its plates
        shape = [sizes[letter] for letter in own]
        uniform = tables[0][0].new_full(shape, 1 / shape[0])
        factors[symbol] = start[term.name].movedim(-1, 0).reshape(shape) if term.name in start else uniform, own
    for _ in range(sweeps):
        for symbol in sites:
            around = [table for table in tables if symbol in table[1]]
            factor, dims = factors[symbol]
            factor = factor.detach().requires_grad_()
            (expected,) = _derivatives(around, {**factors, symbol: (factor, dims)}, [factor])
            factors[symbol] = expected.softmax(0), dims
    leaves = [table.detach().requires_grad_() for table, _ in tables]
    named = [(leaf, dims) for leaf, (_, dims) in zip(leaves, tables, strict=True)]
    shares = [
        share.reshape(value.shape)
        for share, value in zip(_derivatives(named, factors, leaves), draw.counted(), strict=True)
    ]
    entropy = draw._zeros(1)
    for symbol, (term, _) in sites.items():
        each = torch.special.entr(factors[symbol][0]).sum(0).reshape(_plates(term))
        entropy = entropy + draw._per_datum(each, term.site["cond_indep_stack"])
    return shares, entropy


def probabilities(draw: Draw, shares: Sequence[Tensor]) -> dict[str, Tensor]:
    """The probabilities of each enumerated site's values, (nested plates..., B, C), from the shares of one particle."""
    found = {}
    for term, share in zip(draw.local, shares, strict=True):
        if term.kind == "latent" and term.enumerated:
            own = term.site["infer"]["_enumerate_dim"]
            plates = {frame.dim for frame in term.site["cond_indep_stack"]}
            others = [dim for dim in range(-share.dim(), 0) if dim != own and dim not in plates]
            kept = share.sum(others, keepdim=True) if others else share
            found[term.name] = kept.movedim(own, -1).reshape(*_plates(term), -1)
    return found


def _derivatives(tables: Sequence[Named], factors: Mapping[str, Named], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of the sum over all tables of their expectation under the factors."""
    with torch.enable_grad():
        total = inputs[0].new_zeros(())
        for table, dims in tables:
            of_table = [factors[letter] for letter in dims if letter in factors]
            equation = ",".join([dims, *(own for _, own in of_table)]) + "->"
            total = total + torch.einsum(equation, table, *(factor for factor, _ in of_table))
        return torch.autograd.grad(total, inputs)


def _pack(term: Term, value: Tensor) -> Named:
    table = packed.pack(value, term.site["infer"]["_dim_to_symbol"])
    return table, table._pyro_dims


def _plates(term: Term) -> list[int]:
    """The batch shape that a site's plates give it."""
    sizes = {frame.dim: frame.size for frame in term.site["cond_indep_stack"]}
    return [sizes.get(dim, 1) for dim in range(min(sizes), 0)]


def _check_plates(draw: Draw) -> None:
    for term in draw.local:
        for frame in term.site["cond_indep_stack"]:
            if frame.name != draw.known.plate and frame.full_size not in (None, frame.size):
                raise ValueError(
                    f"site {term.name!r} lies in plate {frame.name!r}, which subsamples; only the data plate may do so "
                    "for a mean-field posterior"
                )
