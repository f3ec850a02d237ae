"""Which pictures a pair allows, by what it has: images, labels given or latent, masks, layers, topics, components."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyrovae import plots
from pyrovae.data import Data, Split, Stream
from pyrovae.evaluation import (
    active_layers,
    active_units,
    classify,
    elbo,
    encode,
    generate,
    impute,
    interpolate,
    manifold,
    reconstruct,
    responsibilities,
    traverse,
)
from pyrovae.evaluation import topics as topic_tools
from pyrovae.evaluation.clustering import components
from pyrovae.evaluation.running import evaluating, first_rows
from pyrovae.evaluation.sites import observed_site, rows_first
from pyrovae.models.base import Structure, structure

__all__ = ["drawings_of", "latent_dim"]

Drawing = tuple[str, Callable[[], Any]]


def drawings_of(
    pair: Any,
    data: Any,
    rows: Split | Stream,
    labels: Tensor | None,
    *,
    site: str | None = None,
    plate: str | None = None,
    seed: int = 0,
) -> Iterator[Drawing]:
    """The pictures that a pair allows: their names, and what draws them.

    Args:
        pair: with `model` and `guide`.
        data: what the rows are of; its vocabulary names the columns of x.
        rows: what the pictures are made of, in the order in which the model takes them.
        labels: what colours the scatter of latents.
        site: the observed site that is drawn. Default: x, or the only one.
        plate: name of the data plate, where it is not plain.
        seed: of all draws.
    """
    on: dict[str, Any] = {"plate": plate, "seed": seed}
    of_site = {**on, "site": site}
    batch = first_rows(pair, rows, seed, 10)  # all for an autoguide
    known = structure(pair, *batch, plate=plate)
    several = len(set(known.latent) - set(known.enumerated)) > 1
    vocabulary = data.vocabulary if isinstance(data, Data) else None
    yield "latents", lambda: plots.latent_scatter(encode(pair, rows, **on), labels)
    yield "latent_kl", lambda: plots.latent_kl(_kl_per_unit(pair, rows, **on))
    if isinstance(getattr(pair, "component_means", None), Tensor):
        yield "components", lambda: _components(pair, rows, **of_site)
    if several:
        yield "layers", lambda: _layers(pair, rows, **on)
    if vocabulary is not None:  # one bar for each word says more than a line through all of them
        yield from _topics(pair, rows, vocabulary, **on)
        return
    yield (
        "reconstructions",
        lambda: plots.reconstructions(_observed(pair, batch, **of_site)[:10], reconstruct(pair, batch, **of_site)[:10]),
    )
    yield "samples", lambda: plots.samples(generate(pair, 64, like=batch, **of_site), columns=16)
    yield "interpolation", lambda: plots.interpolation(interpolate(pair, batch, steps=10, **of_site)[:5])
    yield "traversals", lambda: _traversals(pair, rows, batch, **of_site)
    if _given_labels(known, rows) is not None:
        yield "classes", lambda: _classes(pair, known, rows, batch, **of_site)
    if (label := _partly_known_label(known, rows)) is not None:
        yield "classes", lambda: _latent_classes(pair, label, rows, batch, **of_site)
        yield "styles", lambda: _styles(pair, label, rows, batch, **of_site)
    if {"x", "mask"} <= set(rows.names):
        yield "completions", lambda: _completions(pair, rows, **on)
    if several:
        yield "samples_by_layer", lambda: _samples_by_layer(pair, known, batch, **of_site)
    if known.enumerated:
        yield from _clusters(pair, rows, batch, labels, **of_site)
    if latent_dim(pair, batch, plate) == 2:
        yield "manifold", lambda: plots.manifold(*manifold(pair, like=batch, **of_site))


def _observed(pair: Any, data: Any, *, site: str | None, plate: str | None, seed: int) -> Tensor:
    """The data themselves, rows first: what the drawn site observes, whichever argument of the model it is."""
    with evaluating(pair, data, plate=plate, seed=seed) as on:
        name, parts = observed_site(on.known, site), []
        for run, batch, _ in on:
            guided = poutine.trace(run.guide).get_trace(*batch)  # no draws from a prior, which may be flat
            node = poutine.trace(poutine.replay(run.model, trace=guided)).get_trace(*batch).nodes[name]
            parts.append(rows_first(node["value"], node))
        return on.join(parts).cpu()


@torch.no_grad()
def _components(pair: Any, rows: Split | Stream, **on: Any) -> Any:
    """Ellipses over data in the plane; else each component's mean, from the heaviest down."""
    means, weights = pair.component_means.cpu(), pair.component_weights.cpu()
    if means.shape[1:] == (2,) and hasattr(pair, "component_covariances"):
        x = _observed(pair, first_rows(pair, rows, on["seed"], 1000), **on)
        return plots.component_ellipses(x, means, pair.component_covariances.cpu(), weights)
    order = weights.argsort(descending=True)
    return plots.samples(means[order])


def latent_dim(pair: Any, batch: tuple[Tensor, ...], plate: str | None) -> int | None:
    """Length of the first continuous latent of a pair; None where it has none, or no vector."""
    try:
        z = encode(pair, batch, plate=plate)
        return z.size(1) if z.dim() == 2 else None
    except ValueError:
        return None


def _kl_per_unit(pair: Any, rows: Split | Stream, **on: Any) -> Tensor:
    units = active_units(pair, rows, **on)
    if units.kl is None:
        raise ValueError("the KL of this pair is not a sum over latent dimensions")
    return units.kl


def _layers(pair: Any, rows: Split | Stream, **on: Any) -> Any:
    units, kl = active_layers(pair, rows, **on), elbo(pair, rows, **on).kl
    name = type(pair).__name__
    counts = {site: f"{found.count} / {len(found.variance)}" for site, found in units.items()}
    return plots.layers({name: {site: kl[site] for site in units}}, {name: counts})


def _traversals(pair: Any, rows: Split | Stream, batch: tuple[Tensor, ...], *, site: str | None, **on: Any) -> Any:
    kl = _kl_per_unit(pair, rows, **on)
    dims = kl.argsort(descending=True)[:10].tolist()
    values = torch.linspace(-3, 3, 9)
    images = traverse(pair, batch, dims=dims, values=values, site=site, **on)
    return plots.traversals(images, [f"z[{dim}], {kl[dim]:.2f} nats" for dim in dims], values=values)


def _given_labels(known: Structure, rows: Split | Stream) -> Tensor | None:
    """The labels that the model is given, each once: a whole number y for each row, of which it has no site."""
    sites = {*known.latent, *known.observed}
    if not isinstance(rows, Split) or "y" not in rows.names or sites & {"y", "y_observed"}:
        return None
    y = rows["y"]
    return y.unique() if y.dim() == 1 and not y.is_floating_point() else None


def _classes(pair: Any, known: Structure, rows: Split | Stream, batch: tuple[Tensor, ...], **of_site: Any) -> Any:
    """A row of samples for each label, in whose columns the noise is the same: what the label changes, and what z."""
    labels, at = _given_labels(known, rows), rows.names.index("y")
    assert labels is not None
    images = []
    for label in labels[:20]:
        like = (*batch[:at], torch.full_like(batch[at], int(label)), *batch[at + 1 :])
        images.append(generate(pair, 10, like=like, **of_site))
    return plots.rows(torch.stack(images), [str(int(label)) for label in labels[:20]])


def _partly_known_label(known: Structure, rows: Split | Stream) -> str | None:
    """The name in the data of a label that is latent where it is unknown, -1."""
    names = [site.removesuffix("_unobserved") for site in known.enumerated if site in known.latent]
    return next((name for name in names if f"{name}_observed" in known.observed and name in rows.names), None)


def _of_each_class(
    pair: Any,
    label: str,
    rows: Split | Stream,
    batch: tuple[Tensor, ...],
    fixed: dict[str, Tensor],
    *,
    site: str | None,
    **on: Any,
) -> Tensor:
    """What the model generates for each class, (C, B, *event), from the same noise or the same latents."""
    at = rows.names.index(label)
    like = (*batch[:at], torch.full_like(batch[at], -1), *batch[at + 1 :])
    classes = range(classify(pair, like, site=label, **on).size(1))
    labels = {c: {f"{label}_unobserved": torch.full_like(batch[at], c)} for c in classes[:20]}
    of_site = {**on, "site": site}
    return torch.stack(
        [generate(pair, len(batch[0]), like=like, fixed={**fixed, **labels[c]}, **of_site) for c in labels]
    )


def _latent_classes(pair: Any, label: str, rows: Split | Stream, batch: tuple[Tensor, ...], **of_site: Any) -> Any:
    """A row of samples for each class, in whose columns the other latents are the same."""
    images = _of_each_class(pair, label, rows, batch, {}, **of_site)
    return plots.rows(images, [str(number) for number in range(len(images))])


def _styles(
    pair: Any, label: str, rows: Split | Stream, batch: tuple[Tensor, ...], *, site: str | None, **on: Any
) -> Any:
    """Each datum, and what its uppermost continuous latent looks like in each class: analogies."""
    known = structure(pair, *batch, plate=on["plate"])
    latent = next(name for name in known.latent if name not in known.enumerated)
    codes = {latent: encode(pair, batch, site=latent, **on)}
    images = _of_each_class(pair, label, rows, batch, codes, site=site, **on)
    x = _observed(pair, batch, site=site, **on)
    labels = batch[rows.names.index(label)].tolist()
    grid = torch.cat([x[:, None].to(images), images.movedim(0, 1)], 1)  # (B, 1 + C, *event)
    return plots.rows(grid, ["?" if value < 0 else f"a {value}" for value in labels])


def _completions(pair: Any, rows: Split | Stream, **on: Any) -> Any:
    """Data, what is observed of them, the mean of p(x | x_obs) and draws from it."""
    imputer = pair.partial_vae() if hasattr(pair, "partial_vae") else pair
    some = {name: value[:10] for name, value in zip(rows.names, next(rows.sequential(10)), strict=True)}
    found = impute(imputer, Split(some).select(*rows.names), num_imputations=4, num_samples=500, **on)
    ax = plots.completions(some["x"], some["mask"], torch.cat([found.mean[None], found.x]))
    ax.set_yticklabels(["data", "observed", "mean", "1", "2", "3", "4"])
    return ax


def _clusters(
    pair: Any,
    rows: Split | Stream,
    batch: tuple[Tensor, ...],
    labels: Tensor | None,
    *,
    site: str | None,
    **on: Any,
) -> Iterator[Drawing]:
    """Of a pair whose prior of z is a mixture: its components, samples of each, and the data that are surest of it."""
    try:
        found = components(pair, batch, **on)
    except (ValueError, NotImplementedError):
        return
    ((cluster, values),) = found.samples.items()
    names = [f"{cluster} = {number}, {share:.0%}" for number, share in enumerate(found.weights)]

    def samples() -> Any:  # with the same noise in a column
        images = [generate(pair, 10, like=batch, fixed={cluster: value[None]}, site=site, **on) for value in values]
        return plots.rows(torch.stack(images), names)

    def likeliest() -> Any:
        x = _observed(pair, rows, site=site, **on)
        probabilities = responsibilities(pair, rows, site=cluster, **on).cpu()
        best = probabilities.topk(min(10, len(x)), 0).indices.T  # (C, 10)
        sizes = probabilities.argmax(-1).bincount(minlength=len(best))
        return plots.rows(x[best], [f"{cluster} = {number}: {int(size)}" for number, size in enumerate(sizes)])

    if found.loc.size(1) > 1:
        z = encode(pair, rows, **on)
        yield "clusters", lambda: plots.clusters(z, found.weights, found.loc, found.covariance, labels)
    yield "samples_by_cluster", samples
    yield "likeliest_by_cluster", likeliest


def _samples_by_layer(pair: Any, known: Structure, batch: tuple[Tensor, ...], *, site: str | None, **on: Any) -> Any:
    """Samples whose upper latents keep the values that the guide gives them for the first row: one layer more a row."""
    first = tuple(tensor[:1] for tensor in batch)
    # The same seed, so that these are one draw of all latents together.
    z = {latent: encode(pair, first, site=latent, sample=True, **on) for latent in known.latent}
    images = [
        generate(pair, 10, like=first, fixed={latent: z[latent] for latent in known.latent[:count]}, site=site, **on)
        for count in range(len(known.latent) + 1)
    ]
    fixed = ["nothing", *known.latent[:1], *(f"{known.latent[0]} to {latent}" for latent in known.latent[1:])]
    return plots.rows(torch.stack(images), [f"{sites} fixed" for sites in fixed])


def _topics(pair: Any, rows: Split | Stream, vocabulary: Any, **on: Any) -> Iterator[Drawing]:
    weights = getattr(pair, "topics", None)
    if not isinstance(weights, Tensor):
        return
    coherence = topic_tools.npmi(weights, rows, num_words=min(10, weights.shape[1]))

    def topics() -> Any:
        best = coherence.argsort(descending=True)[:10]
        titles = [f"topic {int(k)}, NPMI {float(coherence[k]):.2f}" for k in best]
        return plots.topic_words(weights[best].detach().cpu(), vocabulary, titles=titles)

    yield "topics", topics
    if hasattr(getattr(pair, "likelihood", None), "shares"):  # z gives each document a share of each topic
        yield "documents", lambda: _documents(pair, rows, weights, vocabulary, **on)


def _documents(pair: Any, rows: Split | Stream, weights: Tensor, vocabulary: Any, **on: Any) -> Any:
    shares = topic_tools.document_topics(pair, next(rows.sequential(9)), seed=on["seed"])
    names = [", ".join(words) for words in topic_tools.topic_words(weights, vocabulary, num_words=2)]
    titles = [f"document {number}" for number in range(len(shares))]
    return plots.topic_words(shares.cpu(), names, num_words=5, titles=titles, columns=3)
