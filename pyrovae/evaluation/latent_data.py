"""A trained guide's latents as data: features to learn from, drawn anew each time they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.data import Data, Split
from pyrovae.evaluation.running import evaluating
from pyrovae.evaluation.sites import latent_site

__all__ = ["latent_data"]

_SCALE = "x_scale"


def latent_data(
    pair: Any,
    data: Data,
    *,
    site: str | None = None,
    min_std: float = 0.0,
    plate: str | None = None,
    seed: int = 0,
) -> tuple[Data, list[int]]:
    """The latents of data under a guide, as data: the features of M1, for another pair or any classifier.

    Training rows are drawn from q(z | x) anew whenever they are read, validation and test rows are its means. All
    passes of the encoder are made here, once.

    Args:
        pair, plate: see `evaluating`.
        data: Data in memory.
        site: a latent whose q(z | x) is a diagonal Normal. Default: the first continuous one.
        min_std: leave out dimensions whose mean varies less over the training rows: those that the guide does not use.
        seed: of the transforms of the splits, applied once.

    Returns:
        Data with x (N, number kept) and the other tensors as they were, partly labelled splits (`PartlyLabelled`) again
        such; and which dimensions these are.

    Raises:
        TypeError: for data that are no Data of rows in memory.
        ValueError: for a latent of another kind, or if no dimension varies so much.

    Source: Kingma et al. 2014, https://arxiv.org/abs/1406.5298; their code leaves out what varies less than 0.1.

    >>> import pyrovae as pv
    >>> codes, kept = latent_data(pv.VAE((1, 8, 8), 5, hidden=(20,)), pv.data.load("digits"))
    >>> codes, kept
    (Data('digits': train 1437, validation 180, test 180 rows; event_shape (5,)), [0, 1, 2, 3, 4])
    """
    found = data.splits if isinstance(data, Data) else {}
    in_memory = {part: split for part, split in found.items() if isinstance(split, Split)}
    if not found or len(in_memory) < len(found):
        raise TypeError(f"data is {type(data).__name__}, Data of rows in memory is wanted; pass pyrovae.data.Data(...)")
    normals = {part: _normal(pair, split, site, plate, seed) for part, split in in_memory.items()}
    kept = (normals["train"][0].std(0) > min_std).nonzero()[:, 0].tolist()
    if not kept:
        raise ValueError(f"no dimension's mean varies by more than min_std={min_std}; pass a smaller one")
    splits: dict[str, Any] = {}
    for part, split in in_memory.items():
        loc, scale = (values[:, kept] for values in normals[part])
        others = {name: tensor for name, tensor in split.fixed(seed).tensors.items() if name != "x"}
        noise = {_SCALE: scale.clone()} if part == "train" else {}
        transform = _drawn if part == "train" else None
        splits[part] = split.replace({"x": loc.clone(), **others, **noise}, transform=transform)
    return dataclasses.replace(data, **splits, levels=None, vocabulary=None), kept


def _drawn(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    x, scale = tensors["x"], tensors[_SCALE]
    return {**tensors, "x": x + scale * torch.randn_like(x)}


def _normal(pair: Any, split: Split, site: str | None, plate: str | None, seed: int) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (N, L), on the CPU."""
    with evaluating(pair, split, plate=plate, seed=seed) as on:
        name = latent_site(on, site, dims=(1,))["name"]
        parts: list[Sequence[Tensor]] = []
        for run, batch, _ in on:
            fn = poutine.trace(run.guide).get_trace(*batch).nodes[name]["fn"]
            while isinstance(fn, torch.distributions.Independent):
                fn = fn.base_dist
            if not isinstance(fn, dist.Normal):
                raise ValueError(f"q of {name!r} is {type(fn).__name__}, not a diagonal Normal; name another site=")
            parts.append((fn.loc, fn.scale.expand_as(fn.loc)))
        loc, scale = (on.join([part[which] for part in parts]).cpu() for which in (0, 1))
        return loc, scale
