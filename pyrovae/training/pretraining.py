"""Starts: layers of an encoder as auto-encoders, one by one; clusters on the codes of a VAE with little KL."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.data import Data, Split, Stream
from pyrovae.models.autoencoder import Autoencoder
from pyrovae.models.base import evaluation_mode
from pyrovae.models.vade import VaDE
from pyrovae.models.vae import filled
from pyrovae.nets import MLP
from pyrovae.objectives import ELBO
from pyrovae.objectives.draws import at_least_float32
from pyrovae.training import checkpoint
from pyrovae.training.fit import fit
from pyrovae.training.loop import Run
from pyrovae.training.preparation import splits

__all__ = ["layers", "pretrain_clusters", "pretrain_stacked"]

Corruption = nn.Module | Callable[[], nn.Module]
dropout = partial(nn.Dropout, 0.2)


def pretrain_stacked(
    pair: Any,
    data: Any,
    *,
    corruption: Corruption = dropout,
    code_corruption: Corruption = dropout,
    finetune_corruption: Corruption = nn.Identity,
    max_epochs: int = 20,
    finetune_epochs: int = 20,
    validation: Any = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    **options: Any,
) -> list[Run]:
    r"""Train a pair's encoder and decoder layer by layer as denoising auto-encoders, then together, in place.

        min E |h_{l-1} - g_l(c'(f_l(c(h_{l-1}))))|^2,    h_0 = x,  h_l = f_l(h_{l-1}),    l = 1, 2, ...

    for corruptions c and c'; the first layer, which reconstructs x, by the pair's likelihood instead. f_l is the l-th
    linear map of the encoder with its activation, the last one the mean in the posterior's head; g_l is its mirror in
    the decoder, the first one the likelihood's head. Each is a `fit` of its own on the codes of the layers before.
    Then `fit(Autoencoder.of(pair), data)`, all layers together.

    The defaults are DEC's, which VaDE took over: dropout of 20 % on both sides of each layer and none while fine-tuning
    (for Vincent et al.'s stacked denoising auto-encoder pass code_corruption=nn.Identity). DEC's networks have ReLU,
    and linear maps to the code and to x, as `MLP(..., activation=nn.ReLU)` makes here; their start N(0, 0.01^2) and
    SGD (256 rows, lr 0.1, 50,000 steps a layer and 100,000 together) are left to the caller.

    Args:
        pair: an `Autoencoder` (its own corruption is used while fine-tuning only if it is passed), a `VAE`, or any pair
            with their parts: encoder and decoder an `MLP` each, whose sizes mirror each other.
        data: as for `fit`; rows in memory. A transform, such as dynamic binarisation, is drawn once for the codes.
        corruption: of the input of each layer; a module or what makes one, see `Autoencoder`.
        code_corruption: of the code of each layer, before it is decoded.
        finetune_corruption: of x while all layers are trained.
        max_epochs: for each layer.
        finetune_epochs: for all layers together; 0 leaves that out.
        validation: as for `fit`.
        out: folder, in which layer_1, layer_2, ... and finetune each hold a run.
        resume: go on from the newest checkpoints in `out`, with the same arguments, as if there had been no
            interruption: finished runs are read, the one that was cut off goes on, and the rest begin.
        options: further arguments of `fit`, for each of the runs.

    Returns:
        the runs, of each layer and of the fine-tuning; fewer after Ctrl-C.

    Raises:
        TypeError, ValueError, FileNotFoundError: as `fit`, and for encoders and decoders that are no mirrored MLPs,
            before training.

    Source: Xie, Girshick & Farhadi 2016 (DEC), https://arxiv.org/abs/1511.06335, section 3.2; Vincent et al. 2010,
    https://jmlr.org/papers/v11/vincent10a.html; Bengio et al. 2007.

    >>> from pyrovae.models import VAE
    >>> vae, x = VAE(6, latent_dim=2, hidden=(5, 4)), torch.rand(32, 6).round()
    >>> runs = pretrain_stacked(vae, x, max_epochs=2, finetune_epochs=1, seed=0, progress=False)
    >>> len(runs)  # 6 - 5, 5 - 4, 4 - 2, and all together
    4
    """
    for name in ("objective", "plate"):
        if name in options:
            raise TypeError(f"{name} is no argument of pretrain_stacked, which fits several pairs; leave it out")
    stack = layers(pair, corruption=corruption, code_corruption=code_corruption)
    whole = Autoencoder.of(pair, corruption=finetune_corruption)
    train, held_out = splits(data, whole, validation)
    if not isinstance(train, Split) or not (held_out is None or isinstance(held_out, Split)):
        raise TypeError("data are read as they are needed, codes of them are kept in memory; pass tensors or a Split")
    rows = Data(train, held_out)
    runs: list[Run] = []
    for number, layer in enumerate(stack, 1):
        kept = _kept(out, f"layer_{number}", resume, first=number == 1)
        runs.append(fit(layer, rows, max_epochs=max_epochs, **kept, **options))
        if runs[-1].interrupted:
            return runs
        if number < len(stack):
            rows = Data(_codes(layer, rows.train), None if held_out is None else _codes(layer, rows.validation))
    if finetune_epochs:
        kept = _kept(out, "finetune", resume)
        runs.append(fit(whole, Data(train, held_out), max_epochs=finetune_epochs, **kept, **options))
    return runs


def pretrain_clusters(
    pair: VaDE,
    data: Any,
    *,
    beta: float = 0.001,
    max_epochs: int = 50,
    num_restarts: int = 10,
    balanced: bool = False,
    validation: Any = None,
    **options: Any,
) -> Run:
    """Give a `VaDE` its start, in place: a VAE of its modules whose KL weighs little, then a mixture on its codes.

    That little KL keeps the codes smooth, where those of an auto-encoder may lie in any shape. It is long enough when
    the likeliest mixtures of several seeds agree; `balanced` says more of what is known of the clusters.

    Args:
        pair: a `VaDE` or `MeanFieldVaDE`.
        data: as for `fit`; rows in memory. A transform, such as dynamic binarisation, is drawn once for the mixture.
        beta: weight of the KL.
        max_epochs: of the VAE.
        num_restarts, balanced: of the mixture, see `VaDE.initialise_`.
        validation: as for `fit`.
        options: further arguments of `fit`.

    Returns:
        the run of the VAE. After Ctrl-C there is no mixture yet: call this again, with `resume=True` if it has `out`.

    Raises:
        TypeError, ValueError, FileNotFoundError: as `fit` and `VaDE.initialise_`; for a pair that is no VaDE.

    Source: Cao et al. 2020 (S3VDC), for the VAE with little KL in place of an auto-encoder; the rest is this library's.

    >>> from pyrovae.models import VaDE
    >>> vade, x = VaDE(6, latent_dim=2, num_components=3, hidden=(5,)), torch.rand(64, 6).round()
    >>> run = pretrain_clusters(vade, x, max_epochs=2, num_restarts=1, seed=0, progress=False)
    >>> run.pair.encoder is vade.encoder
    True
    """
    if not isinstance(pair, VaDE):
        raise TypeError(f"pair is a {type(pair).__name__}, a VaDE is wanted; pass VaDE(...), or fit the pair at once")
    if "objective" in options:
        raise TypeError("objective is no argument of pretrain_clusters; pass beta=, the weight of the KL")
    train, held_out = splits(data, vae := pair.vae(), validation)
    if not isinstance(train, Split):
        raise TypeError("data are read as they are needed, a mixture needs all codes; pass tensors or a Split")
    pair.check_size(len(train))
    run = fit(vae, Data(train, held_out), objective=ELBO(beta=beta), max_epochs=max_epochs, **options)
    if not run.interrupted:
        x = torch.cat([x for x, *_ in train.fixed(0).sequential(1024)])
        pair.initialise_(x, seed=run.seed, num_restarts=num_restarts, balanced=balanced, posterior_scale=False)
    return run


def _kept(out: str | os.PathLike[str] | None, name: str, resume: bool, *, first: bool = False) -> dict[str, Any]:
    """Where a run is kept, and whether it goes on; the first one has to be there, the others may not have begun."""
    folder = None if out is None else Path(out) / name
    began = first or (folder is not None and checkpoint.latest(folder / "checkpoints") is not None)
    return {"out": folder, "resume": resume and began}


def layers(
    pair: Any, *, corruption: Corruption = nn.Identity, code_corruption: Corruption = nn.Identity
) -> list[Autoencoder]:
    """The layers of a pair's encoder with their mirrors, from x to z, each an auto-encoder that shares its modules.

    Args:
        pair, corruption, code_corruption: see `pretrain_stacked`.

    Raises:
        TypeError, ValueError: for encoders and decoders that are no mirrored MLPs.
    """
    whole = Autoencoder.of(pair)
    up, down = _blocks(whole, "encoder"), _blocks(whole, "decoder")[::-1]
    widths, mirrored = ([int(block[0].out_features) for block in blocks] for blocks in (up, down))  # type: ignore[arg-type]
    if widths != mirrored:
        raise ValueError(
            f"the encoder's hidden sizes are {widths}, the decoder's {mirrored[::-1]}, no mirror of them; pass "
            f"hidden={tuple(widths)} to the encoder and {tuple(widths[::-1])} to the decoder"
        )
    if not up:
        return [Autoencoder.of(pair, corruption=corruption)]
    stack = []
    shapes = [whole.event_shape, *((width,) for width in widths), (whole.latent_dim,)]
    for number, (shape, code_shape) in enumerate(pairwise(shapes)):
        first, last = number == 0, number == len(up)
        mirror = [] if first else [down[number - 1]]  # of the first layer it is the likelihood's head
        stack.append(
            Autoencoder(
                shape,
                code_shape[0],
                encoder=nn.Identity() if last else _Flattened(len(shape), up[number]),
                posterior=whole.posterior if last else _Code(),
                decoder=nn.Sequential(filled("code_corruption", code_corruption), *mirror),
                likelihood=whole.likelihood if first else _SquaredError(),
                corruption=corruption,
            )
        )
    return stack


def _blocks(pair: Autoencoder, slot: str) -> list[nn.Sequential]:
    """The linear maps of an MLP, each with what follows it up to the next; they are the MLP's own modules."""
    network = getattr(pair, slot)
    if not isinstance(network, MLP):
        raise TypeError(
            f"{slot} is a {type(network).__name__}, which has no layers to train one by one; pass an MLP, or fit "
            "Autoencoder.of(pair) as a whole"
        )
    starts = [at for at, module in enumerate(network.layers) if isinstance(module, nn.Linear)]
    return [network.layers[start:end] for start, end in pairwise([*starts, len(network.layers)])]


def _codes(layer: Autoencoder, rows: Split | Stream | None) -> Split:
    """What a layer makes of rows, without corruption, on the layer's device."""
    assert isinstance(rows, Split)
    home = next(layer.parameters())
    with torch.no_grad(), evaluation_mode(layer):
        batches = rows.fixed(0).sequential(1024)
        codes = [layer.posterior_of(x.to(home.device, home.dtype)).mean for x, *_ in batches]
    return Split({"x": torch.cat(codes)})


class _Flattened(nn.Module):
    """A block of an MLP, on events of any shape."""

    def __init__(self, event_dims: int, block: nn.Module) -> None:
        super().__init__()
        self.event_dims, self.block = event_dims, block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.flatten(x.dim() - self.event_dims) if self.event_dims else x[..., None])


class _Code(nn.Module):
    """The features themselves as code."""

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        return dist.Delta(at_least_float32(features), event_dim=1)


class _SquaredError(nn.Module):
    """N(features, I): half the squared error of the codes before, and its constant."""

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        loc = at_least_float32(features)
        return dist.Normal(loc, loc.new_ones(())).to_event(1)
