"""What sums a pair up: its figures, as JSON and as a table, and its pictures."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy
import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyrovae import plots
from pyrovae.checks import Check, check
from pyrovae.data import Data, Split
from pyrovae.drawings import drawings_of, latent_dim
from pyrovae.evaluation import (
    Surgery,
    active_layers,
    active_units,
    ais,
    elbo,
    encode,
    gaps,
    log_likelihood,
    manifold,
    surgery,
)
from pyrovae.evaluation.estimates import Estimate
from pyrovae.evaluation.running import Evaluation, first_rows, fixed_rows, held_out
from pyrovae.evaluation.sites import observed_site
from pyrovae.evaluation.topics import npmi, perplexity, topic_diversity
from pyrovae.models.base import as_pair
from pyrovae.training.checkpoint import version_of
from pyrovae.training.history import History
from pyrovae.training.loop import Callback, Run

__all__ = ["LatentSpace", "draw_all", "evaluate", "held_out", "pictures", "table", "write_json", "write_text"]

EXAMPLES = 1000  # rows that pictures are made of


def evaluate(
    pair: Any,
    data: Any,
    *,
    num_samples: int = 1000,
    num_replicates: int = 200,
    with_ais: bool = False,
    with_surgery: bool = False,
    with_gaps: bool = False,
    site: str | None = None,
    plate: str | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[dict[str, Any], Check | None]:
    """ELBO and its parts, log-likelihood, active units and predictive checks of any pair on held-out data.

    Args:
        pair: see `pyrovae.as_pair`.
        data: `Data`, whose test split is used, or what `pyrovae.data.match` takes.
        num_samples: K of the importance-weighted log-likelihood.
        num_replicates: replicated data sets of each predictive check.
        with_ais: the log-likelihood by annealed importance sampling too, with its default ladder.
        with_surgery: the parts of the average KL too.
        with_gaps: approximation and amortisation gap too.
        site: the observed site that is checked. Default: x, or the only one.
        plate: name of the data plate, where it is not plain.
        seed: of all draws.
        progress: show bars.

    Returns:
        the figures as plain values, nats per datum, and the `Check` for its picture; no log-likelihood (None) for
        latents outside the data plate, no check (None) where `site` would have to say of what.
    """
    pair = as_pair(pair)
    split, rows = held_out(data)[0], fixed_rows(pair, data, seed)
    parts = elbo(pair, rows, plate=plate, seed=seed)
    checked, unchecked = None, None if site is not None else _no_site(pair, rows, plate, seed)
    if unchecked is None:
        checked = check(pair, rows, num_replicates=num_replicates, site=site, plate=plate, seed=seed)
    figures: dict[str, Any] = {
        "split": split,
        "rows": len(rows),
        "reconstruction": parts.reconstruction,
        "kl": parts.kl,
    }
    on: dict[str, Any] = {"plate": plate, "seed": seed, "progress": progress}
    if parts.is_bound:  # an auto-encoder has no log-likelihood
        likelihood = None  # of latents that all data share no datum has one of its own
        known = Evaluation(pair, rows, plate=plate, seed=seed).known
        if not (known.global_latent or known.global_auxiliary):
            likelihood = log_likelihood(pair, rows, num_samples=num_samples, **on)
        figures |= {
            "elbo": parts.elbo.value,
            "elbo_standard_error": parts.elbo.standard_error,
            "log_likelihood": likelihood and likelihood.value,
            "standard_error": likelihood and likelihood.standard_error,
            "data_standard_error": likelihood and likelihood.data_standard_error,
            "num_samples": num_samples,
            "is_density": parts.elbo.is_density,
            "heavy_tails": likelihood and likelihood.heavy_tails,
        }
    annealed = ais(pair, rows, **on) if with_ais else None
    if annealed is not None:
        figures["ais"] = {"log_likelihood": annealed.value, "standard_error": annealed.standard_error}
    if with_surgery:
        figures["surgery"] = _surgery_figures(surgery(pair, rows, **on))
    if with_gaps:
        found = gaps(pair, rows, annealed=annealed, **on)
        figures["gaps"] = {
            "bound": found.bound,
            "log_likelihood": found.log_likelihood.value,
            "refined_elbo": found.refined.value,
            "amortised_elbo": found.amortised.value,
            "approximation": found.approximation,
            "approximation_error": found.approximation_error,
            "amortisation": found.amortisation,
            "amortisation_error": found.amortisation_error,
        }
    try:
        units = active_units(pair, rows, plate=plate, seed=seed)
        figures |= {"active_units": units.count, "latent_dim": len(units.variance)}
    except ValueError:  # a pair without a vector of continuous latents
        figures |= {"active_units": None, "latent_dim": None}
    if len(parts.kl) > 1:
        layers = {} if figures["active_units"] is None else active_layers(pair, rows, plate=plate, seed=seed)
        figures["active_layers"] = {site: [found.count, len(found.variance)] for site, found in layers.items()}
    if isinstance(data, Data) and data.vocabulary is not None:
        figures["topics"] = _topic_figures(pair, rows, parts.elbo)
    figures["checks"] = {"rows": [], "left_out": unchecked} if checked is None else checked.to_dict()
    figures["versions"] = versions()
    return figures, checked


def _no_site(pair: Any, rows: Any, plate: str | None, seed: int) -> str | None:
    """Why it is not clear which observed site is meant, if it is not."""
    try:
        observed_site(Evaluation(pair, rows, plate=plate, seed=seed).known)
    except ValueError as error:
        return str(error)
    return None


def _topic_figures(pair: Any, rows: Any, bound: Estimate) -> dict[str, Any]:
    """Perplexity of bags of words, by the bound; coherence and diversity of the topics, if the pair has any."""
    found = perplexity(bound, rows)
    figures: dict[str, Any] = {"perplexity": found.per_document, "perplexity_per_corpus": found.per_corpus}
    if isinstance(weights := getattr(pair, "topics", None), Tensor):
        words = weights.shape[1]
        figures |= {"npmi": float(npmi(weights, rows, num_words=min(10, words)).mean())}
        figures["diversity"] = topic_diversity(weights, num_words=min(25, words))
    return figures


def _surgery_figures(parts: Surgery) -> dict[str, Any]:
    names = [
        name for name in ("kl", "information", "marginal_kl", "total_correlation") if getattr(parts, name) is not None
    ]
    figures: dict[str, Any] = {name: getattr(parts, name) for name in names}
    figures |= {f"{name}_error": parts.standard_errors[name] for name in names}
    if parts.dimension_kl is not None:
        figures["dimension_kl"] = parts.dimension_kl.tolist()
        figures["dimension_kl_sum"] = sum(figures["dimension_kl"])
        figures["dimension_kl_sum_error"] = parts.standard_errors["dimension_kl_sum"]
    return figures | {"inactive": parts.inactive, "rows": parts.rows}


def versions() -> dict[str, str]:
    """What a figure depends on besides its seed."""
    return {
        "python": platform.python_version(),
        "pyrovae": version_of("pyrovae"),
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
        "numpy": numpy.__version__,
        "scikit-learn": version_of("scikit-learn"),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def table(figures: dict[str, Any]) -> str:
    """The figures as aligned text, for a terminal."""
    if "elbo" in figures:
        rows = [
            ("ELBO", f"{figures['elbo']:.3f} ± {figures['elbo_standard_error']:.3f}", "nats per datum"),
            *((f"  reconstruction {site}", f"{value:.3f}", "") for site, value in figures["reconstruction"].items()),
            *((f"  KL {site}", f"{value:.3f}", "") for site, value in figures["kl"].items()),
        ]
    else:
        note = "nats per datum; no bound on log p(x)"
        rows = [(f"reconstruction {site}", f"{value:.3f}", note) for site, value in figures["reconstruction"].items()]
    if figures.get("log_likelihood") is not None:
        label = "log-likelihood" if figures["is_density"] else "score (no density)"
        value = f"{figures['log_likelihood']:.3f} ± {figures['standard_error']:.3f}"
        note = f"{figures['num_samples']} importance samples; ± {figures['data_standard_error']:.3f} over data"
        rows.append((label, value, note))
    if figures.get("heavy_tails"):
        rows.append(("  Pareto k-hat above 0.7", f"{figures['heavy_tails']} of {figures['rows']}", "too few samples"))
    rows += _further(figures)
    layers, topics = figures.get("active_layers"), figures.get("topics", {})
    rows += [(f"active units {site}", f"{count} of {total}", "") for site, (count, total) in (layers or {}).items()]
    notes = {"perplexity": "of the bound, per document", "npmi": "in these documents"}
    rows += [(name.replace("_", " "), f"{value:.3f}", notes.get(name, "")) for name, value in topics.items()]
    if figures["active_units"] is not None and not layers:
        rows.append(("active units", f"{figures['active_units']} of {figures['latent_dim']}", ""))
    rows += [
        (f"p-value {row['statistic']}", f"{row['p_value']:.3f}", row["label"]) for row in figures["checks"]["rows"]
    ]
    width = max(len(name) for name, _, _ in rows)
    head = f"{figures['split']} data, {figures['rows']} rows"
    return "\n".join([head, *(f"  {name:<{width}}  {value:>18}  {note}".rstrip() for name, value, note in rows)])


def _further(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of the table for what was asked for besides."""
    rows = []
    if "ais" in figures:
        found = figures["ais"]
        rows.append(("log-likelihood by AIS", f"{found['log_likelihood']:.3f} ± {found['standard_error']:.3f}", ""))
    labels = {"kl": "average KL", "information": "  index-code information", "marginal_kl": "  marginal KL"}
    labels |= {"total_correlation": "    total correlation", "dimension_kl_sum": "    dimension-wise KL"}
    parts = figures.get("surgery", {})
    rows += [
        (label, f"{parts[name]:.3f} ± {parts[f'{name}_error']:.3f}", "")
        for name, label in labels.items()
        if name in parts
    ]
    if parts.get("inactive"):
        rows.append(("  collapsed dimensions", ", ".join(map(str, parts["inactive"])), ""))
    for name in ("approximation", "amortisation") if "gaps" in figures else ():
        found = figures["gaps"]
        note = f"log p(x) by {found['bound']}" if name == "approximation" else ""
        rows.append((f"{name} gap", f"{found[name]:.3f} ± {found[f'{name}_error']:.3f}", note))
    return rows


def write_json(values: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write plain values as JSON, in which what is not finite is null: the whole file appears, or none."""
    return write_text(json.dumps(_finite(values), indent=2, allow_nan=False) + "\n", path)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a text: the whole file appears, or none."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
    return path


def pictures(
    pair: Any,
    data: Any,
    folder: str | os.PathLike[str],
    *,
    history: History | None = None,
    checked: Check | None = None,
    site: str | None = None,
    plate: str | None = None,
    seed: int = 0,
) -> tuple[list[Path], dict[str, str]]:
    """Draw what can be drawn of a pair: reconstructions, samples, interpolation, traversals, latent space, checks.

    Args:
        pair: see `pyrovae.as_pair`.
        data: as for `evaluate`; labels called y colour the latent scatter.
        folder: where the PNG files go; made if it is not there.
        history: of the run, for the training curves.
        checked: the result of `check`, for its picture.
        site: the observed site that is drawn. Default: x, or the only one.
        plate: name of the data plate, where it is not plain.
        seed: of all draws.

    Returns:
        the files, and for each picture that the pair does not allow the reason.
    """
    pair, folder = as_pair(pair), Path(folder)
    _, split = held_out(data)
    rows = fixed_rows(pair, split, seed, EXAMPLES)
    labels = _labels(split, len(rows))
    drawings = [*drawings_of(pair, data, rows, labels, site=site, plate=plate, seed=seed)]
    if history is not None:
        drawings.append(("training_curves", history.plot))
    if checked is not None:
        drawings.append(("predictive_checks", checked.plot))
    return draw_all(drawings, folder)


def draw_all(drawings: Iterable[tuple[str, Callable[[], Any]]], folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Save each picture that can be drawn.

    Args:
        drawings: the pictures' names, and what draws them.
        folder: where the PNG files go; made if it is not there.

    Returns:
        the files, and for each picture that can't be drawn the reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn: list[Path] = []
    skipped: dict[str, str] = {}
    for name, draw in drawings:
        try:
            drawn.append(plots.save(draw(), folder / f"{name}.png"))
        except (ValueError, TypeError, RuntimeError) as error:  # the last: what torch says in somebody's own pair
            skipped[name] = " ".join(str(error).split())
    return drawn, skipped


def _labels(split: Any, count: int) -> Tensor | None:
    """What colours the latent scatter of the first `count` rows."""
    return split["y"][:count] if isinstance(split, Split) and "y" in split.fields else None


class LatentSpace(Callback):
    """Draws a two-dimensional latent space while it forms: the decoded manifold, and the training points in z.

    A picture that can't be drawn is left out from then on, with one line that says why.

    Args:
        data: what is encoded, at most 1000 rows; labels called y colour them.
        folder: where the PNG files go.
        steps: after which optimizer steps; the lecture notes' are 1, 25, 125 and 625.
        site: the observed site that the manifold shows. Default: x, or the only one.
    """

    def __init__(
        self,
        data: Any,
        folder: str | os.PathLike[str],
        steps: tuple[int, ...] = (1, 25, 125, 625),
        *,
        site: str | None = None,
    ):
        self.split = data.train if isinstance(data, Data) else data
        self.folder = Path(folder)
        self.steps, self.site = steps, site
        self.skipped: dict[str, str] = {}

    def on_step(self, run: Run) -> None:
        """Draw, if this is one of the steps."""
        if run.step not in self.steps or run.rank:
            return
        pair, plate = run.pair, run.known.plate
        batch = first_rows(pair, self.split, run.seed, 2)
        if latent_dim(pair, batch, plate) != 2:
            return

        def latents() -> Any:
            z = encode(pair, fixed_rows(pair, self.split, run.seed, EXAMPLES), plate=plate)
            return plots.latent_scatter(z, _labels(self.split, len(z)))

        def decoded() -> Any:
            return plots.manifold(*manifold(pair, like=batch, site=self.site, plate=plate))

        for name, draw in {"manifold": decoded, "latents": latents}.items():
            if name not in self.skipped:
                _, skipped = draw_all([(f"{name}_step_{run.step:04d}", draw)], self.folder)
                for reason in skipped.values():
                    self.skipped[name] = reason
                    tqdm.write(f"no picture of {name} while it is trained: {reason}")  # print would break the bar
