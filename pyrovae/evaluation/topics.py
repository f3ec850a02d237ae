r"""Topics of any model of bags of words: perplexity, coherence and diversity, words of topics, topics of documents.

A topic is a row of weights over the vocabulary, (T, V), or a list of words: the tools know no model. Those of the
library's pairs are `pair.topics`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyrovae.data.corpora import check_counts
from pyrovae.data.rows import Data, Split
from pyrovae.data.seeds import DRAWS, derived_seed
from pyrovae.data.sparse import SparseRows, is_sparse
from pyrovae.evaluation.estimates import Estimate
from pyrovae.evaluation.predictive import encode
from pyrovae.evaluation.running import check_counts as check_whole
from pyrovae.evaluation.running import held_out

__all__ = ["Perplexity", "document_topics", "nearest_words", "npmi", "perplexity", "topic_diversity", "topic_words"]


@dataclass
class Perplexity:
    """How many words a model is as unsure about as if they were equally likely; lower is better.

    Attributes:
        per_document: exp(-mean_d log p(x_d) / n_d), in which each document counts alike: the papers' figure.
        per_corpus: exp(-sum_d log p(x_d) / sum_d n_d), in which each word does.
        standard_error: Monte Carlo error of per_corpus, with the data fixed; NaN from a single sample.
        num_documents, num_words: what it is over.
    """

    per_document: float
    per_corpus: float
    standard_error: float
    num_documents: int
    num_words: int

    def __str__(self) -> str:
        return f"{self.per_document:.1f} per document, {self.per_corpus:.1f} per corpus"


def perplexity(estimate: Estimate, data: Any) -> Perplexity:
    r"""The perplexity of documents, from an estimate of their log-likelihood: of the words, in the order they stand in.

        log p(words_d) = log p(x_d | n_d) - log(n_d! / prod_v x_dv!)

    The multinomial coefficient, which is in the density of the counts x, is taken out, as in the papers. With the ELBO
    this is the bound that they report (an upper bound on the perplexity); importance weights give a tighter one.

    Args:
        estimate: of all documents, by a likelihood of counts with its coefficient (`BagOfWords`, Pyro's Multinomial):
            `pv.elbo(pair, data).elbo`, or `pv.log_likelihood(pair, data)`.
        data: what the estimate is of; of `Data` the test split.

    Returns:
        the `Perplexity`.

    Raises:
        ValueError: for another number of documents, empty documents, or what are no counts, with their rows.

    Source: Miao, Yu & Blunsom 2016, https://arxiv.org/abs/1511.06038, section 5.1 (per document); its code prints both.

    >>> from pyrovae.evaluation.likelihood import elbo
    >>> from pyrovae.models.topics import NVDM
    >>> x = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 4.0]])
    >>> result = perplexity(elbo(NVDM(3, 2), x).elbo, x)
    >>> result.num_documents, result.num_words
    (2, 7)
    """
    x = _counts(data)
    if len(x) != len(estimate.per_datum):
        raise ValueError(f"data have {len(x)} documents, the estimate {len(estimate.per_datum)}; pass what it is of")
    check_counts(x, "data")
    lengths, values = x.sum(1).double(), x.values.double()
    factorials = lengths.new_zeros(len(x)).index_add(0, x.row_of_values(), torch.lgamma(values + 1))
    words = estimate.per_datum - (torch.lgamma(lengths + 1) - factorials)
    per_corpus = math.exp(-float(words.sum() / lengths.sum()))
    return Perplexity(
        per_document=math.exp(-float((words / lengths).mean())),
        per_corpus=per_corpus,
        standard_error=per_corpus * estimate.standard_error * len(x) / float(lengths.sum()),
        num_documents=len(x),
        num_words=int(lengths.sum()),
    )


def topic_words(topics: Any, vocabulary: Sequence[str], *, num_words: int = 10) -> list[list[str]]:
    """The words that each topic weighs most, the largest weight first.

    Args:
        topics: weights (T, V): `pair.topics`, say.
        vocabulary: V words.
        num_words: how many of each.

    Raises:
        ValueError: for a vocabulary of another length, or fewer words than num_words.

    >>> topic_words(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.0, 0.4]]), ["orbit", "guns", "law"], num_words=2)
    [['guns', 'law'], ['orbit', 'law']]
    """
    top = _top(topics, num_words)
    _check_vocabulary(vocabulary, _weights("topics", topics).shape[1])
    return [[vocabulary[word] for word in row] for row in top.tolist()]


def nearest_words(topics: Any, vocabulary: Sequence[str], word: str, *, num_words: int = 5) -> list[tuple[str, float]]:
    """The words whose columns of weights have the largest cosine with that of a word, and the cosines.

    For NVDM the columns are the word vectors R of the softmax decoder.

    Args:
        topics, vocabulary: see `topic_words`.
        word: one of the vocabulary.
        num_words: how many.

    Raises:
        ValueError: for a word that is not in the vocabulary, with the nearest spellings.

    >>> near = nearest_words(torch.tensor([[1.0, 0.9, -1.0], [0.0, 0.1, 0.2]]), ["guns", "weapon", "god"], "guns")
    >>> [word for word, _ in near]
    ['weapon', 'god']
    """
    check_whole(num_words=num_words)
    weights = _weights("topics", topics)
    _check_vocabulary(vocabulary, weights.shape[1])
    if word not in vocabulary:
        near = difflib.get_close_matches(word, vocabulary, n=3, cutoff=0.6)
        guess = f"; pass one of its words, such as {', '.join(near)}" if near else "; pass one of its words"
        raise ValueError(f"word {word!r} is not among the {len(vocabulary)} of the vocabulary{guess}")
    at = list(vocabulary).index(word)
    vectors = torch.nn.functional.normalize(weights, dim=0)
    cosines = vectors[:, at] @ vectors
    cosines[at] = -math.inf
    best = cosines.topk(min(num_words, len(vocabulary) - 1))
    return [
        (vocabulary[index], value) for index, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def npmi(topics: Any, data: Any, *, num_words: int = 10) -> Tensor:
    r"""Coherence of each topic: normalised pointwise mutual information of its words, on average over their pairs.

        NPMI(v, w) = log(P(v, w) / (P(v) P(w))) / -log P(v, w),    P = share of the documents that hold v, or both

    It is 1 for words that only come together, 0 for independent ones, -1 for words that never meet (by definition, for
    log 0; also for a word that no document has). The window is the whole document, and nothing is smoothed.

    Args:
        topics: weights (T, V), or indices of words, whole numbers (T, n); tensors, arrays or lists.
        data: the reference corpus: counts (N, V), sparse or dense, or `Split`; of `Data` the training split.
        num_words: how many words of each topic, the largest weights; of indices the first ones.

    Returns:
        (T,), from -1 to 1; its mean is the model's coherence.

    Raises:
        ValueError: for fewer than two words, or a corpus of another vocabulary.

    Source: Bouma 2009; Lau, Newman & Baldwin 2014, whose windows are of ten words in another corpus, so that their
    figures are others.

    >>> x = torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
    >>> npmi(torch.tensor([[0, 1], [0, 2]]), x)
    tensor([ 1., -1.], dtype=torch.float64)
    """
    check_whole(num_words=num_words)
    topics = torch.as_tensor(topics)
    if topics.dim() != 2 or min(num_words, topics.shape[1]) < 2:
        raise ValueError(
            f"topics have shape {tuple(topics.shape)} and num_words is {num_words}; pass two words at least of each, "
            "(T, n)"
        )
    indices = not (topics.is_floating_point() or topics.is_complex() or topics.dtype == torch.bool)
    top = topics[:, :num_words].long() if indices else _top(topics, num_words)
    x = _counts(data.train if isinstance(data, Data) else data)
    size = x.shape[1]
    if (not indices and _weights("topics", topics).shape[1] != size) or int(top.max()) >= size or int(top.min()) < 0:
        raise ValueError(f"topics are over other words than the {size} of the data; pass the corpus' own vocabulary")
    chosen, place = top.cpu().unique(return_inverse=True)
    # A column for each of the words that some topic has, 1 where a document holds it; some documents at a time.
    column = torch.full((size,), -1).scatter(0, chosen, torch.arange(len(chosen)))
    rows, columns = x.row_of_values().cpu(), column[x.columns.cpu().long()]
    kept = (columns >= 0) & (x.values.cpu() != 0)
    rows, columns = rows[kept], columns[kept]
    both, step = torch.zeros(len(chosen), len(chosen), dtype=torch.float64), max(1, 2**24 // len(chosen))
    for start in range(0, len(x), step):
        first, last = torch.searchsorted(rows, torch.tensor([start, start + step])).tolist()
        held = torch.zeros(min(step, len(x) - start), len(chosen))
        held[rows[first:last] - start, columns[first:last]] = 1
        both += (held.T @ held).double()
    both = both / len(x)
    single = both.diagonal()
    pairs = torch.triu_indices(top.shape[1], top.shape[1], 1)
    v, w = place[:, pairs[0]], place[:, pairs[1]]  # (T, pairs)
    joint, product = both[v, w], single[v] * single[w]
    always = joint == 1  # 0 / 0, whose limit is 1
    value = torch.log(joint / product) / -joint.masked_fill(always, 0.5).log()
    value = torch.where(joint == 0, -1.0, torch.where(always, 1.0, value))
    return value.mean(1)


def topic_diversity(topics: Any, *, num_words: int = 25) -> float:
    """The share of different words among the largest of all topics: 1 where none is in two topics, 1/T where all are.

    Args:
        topics: weights (T, V).
        num_words: how many of each.

    Source: Dieng, Ruiz & Blei 2020, https://arxiv.org/abs/1907.04907, section 6 (25 words).

    >>> topic_diversity(torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]]), num_words=2)
    0.75
    """
    top = _top(topics, num_words)
    return len(top.unique()) / top.numel()


def document_topics(
    pair: Any,
    data: Any,
    *,
    num_samples: int = 20,
    site: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """How much of each document is about each topic: E_q[softmax(z) | x], over draws of z from the guide.

    Args:
        pair: a topic model whose latent z is the logit of its topics, such as `ProdLDA`.
        data, seed, batch_size: see `pyrovae.evaluation.encode`.
        num_samples: draws of z.
        site: the latent. Default: the first continuous one.

    Returns:
        (N, T), each row summing to 1.

    >>> from pyrovae.models.topics import ProdLDA
    >>> document_topics(ProdLDA(6, 3), torch.ones(2, 6)).shape
    torch.Size([2, 3])
    """
    check_whole(num_samples=num_samples)
    total = torch.zeros(())
    for draw in range(num_samples):
        own = derived_seed(seed, DRAWS, draw)  # not seed + draw, which another seed has too
        z = encode(pair, data, site=site, sample=True, seed=own, batch_size=batch_size)
        total = total.to(z) + z.softmax(-1)
    return total / num_samples


def _weights(name: str, topics: Any) -> Tensor:
    weights = torch.as_tensor(topics).detach()
    if weights.dim() != 2 or not weights.is_floating_point() or not weights.isfinite().all():
        raise ValueError(
            f"{name} is {weights.dtype} of shape {tuple(weights.shape)}, finite weights (T, V) are wanted; "
            "pass pair.topics"
        )
    return weights


def _top(topics: Any, num_words: int) -> Tensor:
    """The words with the largest weights, (T, num_words)."""
    check_whole(num_words=num_words)
    weights = _weights("topics", topics)
    if num_words > weights.shape[1]:
        raise ValueError(f"num_words is {num_words}, the vocabulary has {weights.shape[1]}; pass fewer")
    return weights.topk(num_words).indices


def _check_vocabulary(vocabulary: Sequence[str], size: int) -> None:
    if len(vocabulary) != size:
        raise ValueError(
            f"vocabulary has {len(vocabulary)} words, the topics are over {size}; pass one for each column"
        )


def _counts(data: Any) -> SparseRows:
    """The counts in what `match` takes, sparse; of `Data` the split to evaluate on."""
    data = held_out(data)[1]
    if isinstance(data, tuple | list) and data and getattr(data[0], "ndim", 0) == 2:
        data = data[0]  # tensors by position, as a model of x takes them
    data = data.tensors if isinstance(data, Split) else data
    if isinstance(data, Mapping):
        if "x" not in data:
            names = ", ".join(map(str, data))
            raise ValueError(f"data hold {names}, the counts of words are wanted as x; pass {{'x': counts}}")
        data = data["x"]
    return SparseRows.of(data if is_sparse(data) else torch.as_tensor(data).to_sparse()).to("cpu")
