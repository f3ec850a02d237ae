"""Many particles of each datum, in chunks that memory holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyro import poutine
from torch import Tensor
from tqdm import tqdm

from pyrovae.evaluation.running import BUDGET, Evaluation
from pyrovae.models.base import Functions, PairLike, Structure, structure
from pyrovae.objectives import Ledger, ledger

__all__ = ["Chunk", "check_support", "chunks", "from_prior", "numbers"]


@dataclass
class Chunk:
    """Some of the particles of a batch of data, not yet drawn.

    Attributes:
        pair: what draws them.
        batch: the data.
        num_particles: how many, K.
        known: the pair's structure; None where it is to be found at each draw.
    """

    pair: PairLike
    batch: tuple[Tensor, ...]
    num_particles: int
    known: Structure | None

    def ledger(self) -> Ledger:
        """The particles, drawn now."""
        return ledger(self.pair, *self.batch, num_particles=self.num_particles, known=self.known)


def chunks(
    on: Evaluation, num_samples: int, *, proposal: str = "guide", chunk: int | None = None, progress: bool = False
) -> Iterator[Iterator[Chunk]]:
    """For each batch of data, chunks that have `num_samples` particles together.

    Args:
        on: the pair on data, in `ready`.
        num_samples, proposal, chunk, progress: see `pyrovae.log_likelihood`.

    Raises:
        ValueError: see `pyrovae.log_likelihood`.
    """
    if proposal not in ("guide", "prior"):
        raise ValueError(f'proposal is {proposal!r}; pass "guide" or "prior"')
    on.known.refuse_improper()
    known = on.known if proposal == "guide" else None
    with tqdm(total=len(on.rows), desc="log-likelihood", unit="datum", disable=not progress) as bar:
        for run, batch, covered in on:
            check_support(on, batch)
            if proposal == "prior":
                run = from_prior(run)
                known = structure(run, *batch, plate=on.known.plate) if known is None else known
            if chunk is None:
                first = ledger(run, *batch, known=known)
                chunk = max(1, BUDGET // (first.rows * numbers(first)))
            sizes = [min(chunk, num_samples - done) for done in range(0, num_samples, chunk)]
            yield (Chunk(run, batch, size, known) for size in sizes)
            bar.update(covered.stop - bar.n)


def from_prior(pair: PairLike) -> PairLike:
    """The pair with its model's own latent sites as guide: z ~ p(z).

    Sites that the model enumerates become sites that the guide enumerates, so that z is drawn for each of their values.
    """
    return Functions(pair.model, poutine.block(pair.model, hide_fn=lambda site: site.get("is_observed", False)))


def numbers(drawn: Ledger) -> int:
    """How many numbers the sites of one particle of one datum take, enumerated values counted each."""
    each = (term.log_prob.numel() * max(1, term.site["fn"].event_shape.numel()) for term in drawn.terms)
    return max(1, sum(each) // (drawn.rows * drawn.draws[0].num_particles))


def check_support(on: Evaluation, batch: Sequence[Tensor]) -> None:
    """Every observed value is one that its likelihood can give."""
    for site, (position, support) in on.known.supports.items():
        try:
            valid = support.check(batch[position])
        except (NotImplementedError, RuntimeError):  # supports that depend on parameters, or on other rows
            continue
        if not valid.all():
            name, low, high = on.rows.names[position], batch[position].min().item(), batch[position].max().item()
            raise ValueError(
                f"{name} has values that the likelihood at site {site!r} cannot give: they lie in [{low:g}, {high:g}], "
                f"its support is {support}; scale or binarise the data as for training"
            )
