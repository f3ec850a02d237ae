"""Pictures of topics: their words, and how much of each a document has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyrovae.plots.figures import BLUE, Values, finite, new_figure, verbatim

__all__ = ["topic_words"]


def topic_words(
    topics: Values,
    vocabulary: Sequence[str],
    *,
    num_words: int = 8,
    titles: Sequence[str] | None = None,
    columns: int = 5,
    color: str = BLUE,
) -> np.ndarray:
    """For each topic the words that it weighs most, as bars whose length is the weight.

    Args:
        topics: (T, V), the weights of each word in each topic.
        vocabulary: V words.
        num_words: how many of each topic.
        titles: one for each topic. Default: topic 0, topic 1, ...
        columns: topics side by side.
        color: of the bars.

    Returns:
        The Axes, (rows, columns); those beyond the last topic are empty.

    Raises:
        ValueError: for weights that are not (T, V), or titles or words of another number.

    >>> topic_words(np.eye(3), ["orbit", "guns", "law"], num_words=2).shape
    (1, 3)
    """
    weights = finite("topics", topics)
    if weights.ndim != 2 or weights.shape[1] != len(vocabulary):
        raise ValueError(f"topics have shape {weights.shape} for {len(vocabulary)} words; pass (T, {len(vocabulary)})")
    if titles is not None and len(titles) != len(weights):
        raise ValueError(f"titles are {len(titles)} for {len(weights)} topics; pass one for each")
    if num_words < 1 or columns < 1:
        raise ValueError(f"num_words is {num_words} and columns {columns}; pass at least 1")
    columns, num_words = min(columns, len(weights)), min(num_words, len(vocabulary))
    rows = -(-len(weights) // columns)
    figure = new_figure(1.9 * columns, (0.17 * num_words + 0.45) * rows)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for number, ax in enumerate(axes.flat):
        ax.set_axis_off()
        if number >= len(weights):
            continue
        top = np.argsort(-weights[number], kind="stable")[:num_words]
        values = weights[number][top]
        ax.set_axis_on()
        ax.barh(np.arange(num_words), values, height=0.75, color=color)
        ax.set_yticks(np.arange(num_words), [verbatim(vocabulary[word]) for word in top], fontsize=7)
        ax.invert_yaxis()
        ax.set_xlim(min(0.0, values.min()), max(values.max(), 0.0) or 1.0)
        ax.set_xticks([])
        ax.tick_params(length=0, pad=2)
        ax.spines[["top", "right", "bottom"]].set_visible(False)
        ax.set_title(f"topic {number}" if titles is None else titles[number], fontsize=8)
    return axes
