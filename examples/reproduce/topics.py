"""NVDM and ProdLDA on 20 Newsgroups (Miao et al. 2016; Srivastava & Sutton 2017): perplexity, coherence, topics.

The corpus is a folder `20news` with train.npz, test.npz and vocab.txt (`pyrovae.data.load_corpus`): here that of
ProdLDA's authors, 11,258 training and 7,487 test documents, 1,995 words without stop words and rare words, counts as
they are. A tenth of the training documents is held out to end training; the test documents serve for the figures alone.

Perplexities leave the multinomial coefficient out and are those of the bound, as in the papers, and of importance
samples. ProdLDA's dropout is 0.2: with the 0.6 of the authors' code its topics repeated each other (seed 0: diversity
0.44, NPMI 0.13 on the training documents). NPMI is over the ten largest words of each topic, with the training
documents as reference and whole documents as windows. The authors' sizes and optimizers, but for NVDM's 5e-5 over a
thousand alternating epochs: 1e-3 over few joint ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes

import pyrovae as pv
from examples.reproduce.datasets import folder
from examples.reproduce.runner import Cell, Finished, Result, Schedule
from pyrovae.data import Data
from pyrovae.evaluation import topics as tools

TOPICS = 50
NOTES = ("weapon", "medical", "company", "define", "israel", "book")  # the lecture notes' words, as they are here


def corpus(root: str | None) -> Data:
    return pv.data.load_corpus(folder(root, "20news"), validation=0.1)


def unigram_perplexity(data: Data) -> float:
    """Of the words' frequencies, whatever the document: what a model without topics reaches."""
    frequency = data.train["x"].sum(0) + 0.01
    x = data.test["x"]
    log_p = (frequency / frequency.sum()).log()
    words = torch.zeros(len(x)).index_add(0, x.row_of_values(), x.values * log_p[x.columns])
    return math.exp(-float((words / x.sum(1)).mean()))


def quality(pair: pv.Pair, run: pv.Run, data: Data, num_samples: int) -> dict[str, Any]:
    words = data.vocabulary
    bound = tools.perplexity(pv.elbo(pair, data, num_particles=20).elbo, data)
    weighted = tools.perplexity(pv.log_likelihood(pair, data, num_samples=num_samples), data)
    coherence = tools.npmi(pair.topics, data)
    lists = tools.topic_words(pair.topics, words)
    return {
        "perplexity": bound.per_document,
        "perplexity_per_corpus": bound.per_corpus,
        "perplexity_weighted": weighted.per_document,
        "perplexity_weighted_per_corpus": weighted.per_corpus,
        "unigram_perplexity": unigram_perplexity(data),
        "npmi": float(coherence.mean()),
        "topic_diversity": tools.topic_diversity(pair.topics),
        "topics": TOPICS,
        "words_of_topics": {
            f"{k}, NPMI {float(coherence[k]):.2f}": " ".join(lists[k]) for k in coherence.argsort(descending=True)
        },
        "nearest_words": {
            word: [near for near, _ in tools.nearest_words(pair.topics, words, word)] for word in NOTES if word in words
        },
    }


def pictures(finished: Mapping[str, Finished]) -> dict[str, Axes]:
    """The words of ProdLDA's ten most coherent topics."""
    pair, data = finished["ProdLDA"].trained()
    coherence = tools.npmi(pair.topics, data)
    best = coherence.argsort(descending=True)[:10]
    titles = [f"topic {int(k)}, NPMI {float(coherence[k]):.2f}" for k in best]
    return {"topics": pv.plots.topic_words(pair.topics[best], data.vocabulary, titles=titles)}


RESULT = Result(
    source="20 Newsgroups, 1,995 words, 50 topics: perplexity (paper: a re-implementation of NVDM), by importance "
    "samples; NPMI (paper: .23 to .25 of the topics that ProdLDA's authors released)",
    load=corpus,
    cells={
        "NVDM": Cell(
            lambda data: pv.NVDM(len(data.vocabulary), TOPICS),
            paper={"perplexity": 769.5},
            options={"batch_size": 64, "lr": 1e-3, "patience": 4, "validation": None},
            evaluate=quality,
        ),
        "ProdLDA": Cell(
            lambda data: pv.ProdLDA(len(data.vocabulary), TOPICS),
            options={"optimizer": partial(torch.optim.Adam, betas=(0.99, 0.999), fused=True), "validation": None},
            evaluate=quality,
        ),
    },
    paper=Schedule(epochs=1000, batch_size=200, num_samples=1000, lr=2e-3),
    reduced=Schedule(epochs=80, batch_size=200, num_samples=100, lr=2e-3),
    figure=("perplexity", "perplexity_weighted", "npmi"),
    pictures=pictures,
)
