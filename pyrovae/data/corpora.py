"""Corpora: bags of words with their vocabulary, from sparse matrices, texts or files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyrovae.data.readers import Parts, contents
from pyrovae.data.rows import Data
from pyrovae.data.sparse import SparseRows, is_sparse
from pyrovae.data.splits import hold_out

__all__ = ["check_counts", "load_corpus"]

PARTS = ("train", "validation", "test")


def load_corpus(
    source: Any,
    vocabulary: Sequence[str] | Mapping[str, int] | None = None,
    *,
    vectorizer: Any = None,
    drop_empty: bool = False,
    validation: int | float | None = None,
    test: int | float | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Data:
    """Documents as counts of the words of a vocabulary: x (V,), kept sparse; batches are dense.

    The source is one of

    * a scipy or torch sparse matrix (N, V) of counts, or an array, with its vocabulary; or a mapping of such matrices
      with the keys train, validation and test, of which the first is needed
    * a list of texts, or a mapping of such lists
    * a folder with train.npz (`scipy.sparse.save_npz`), vocab.txt with one word a line, and validation.npz or test.npz
      if there are any: this project's 20 Newsgroups, say
    * a folder of text files (*.txt, in subfolders too), one document each
    * "20newsgroups": scikit-learn's, without headers, footers and quotes, downloaded by it where it has to

    Texts go through scikit-learn's CountVectorizer, whose vocabulary is that of the training texts.

    Args:
        source: see above.
        vocabulary: the words of the columns of x, or the column of each word, such as scikit-learn's `vocabulary_`; of
            texts, files and folders it is found.
        vectorizer: for texts. Default: `CountVectorizer(stop_words="english", max_features=2000)`.
        drop_empty: leave documents without a word of the vocabulary out, where they would be an error.
        validation, test: rows to hold out, or their fraction of the training rows; default 0.1, unless the source has
            its own; 0 for none.
        seed: of the rows held out; torch's global generators do not move.
        name: for titles and tables.

    Returns:
        Data with a vocabulary, on the CPU.

    Raises:
        FileNotFoundError: for files that are not there.
        TypeError: for another source.
        ValueError: for negative, fractional or missing counts and empty documents, with their rows, and for a
            vocabulary of another length or of other columns.

    >>> texts = ["the cat sat", "a cat and a dog", "dog days", "cats", "sat nav"]
    >>> data = load_corpus(texts, validation=0, test=1, drop_empty=True)
    >>> data.vocabulary
    ['cat', 'cats', 'days', 'dog', 'nav', 'sat']
    >>> data.train["x"]
    SparseRows(4 x 6, 7 values)
    """
    label = name or (Path(source).stem if isinstance(source, str | os.PathLike) else "corpus")
    parts: dict[str, Any]
    if isinstance(source, str | os.PathLike):
        parts, vocabulary = _named(source, vocabulary)
    else:
        parts = dict(source) if isinstance(source, Mapping) else {"train": source}
    if unknown := [str(part) for part in parts if part not in PARTS]:
        raise ValueError(f"source has {', '.join(unknown)}; the parts are {', '.join(PARTS)}, of which train is needed")
    if "train" not in parts:
        raise ValueError(f"source has {', '.join(parts) or 'nothing'} and no train; pass {{'train': ...}}")
    texts = [part for part, content in parts.items() if isinstance(content, list | tuple)]
    if texts:
        if vocabulary is not None and vectorizer is not None:
            raise ValueError("vocabulary and vectorizer are both given; pass CountVectorizer(vocabulary=...) alone")
        parts, vocabulary = _counted(parts, vocabulary, vectorizer)
    if vocabulary is None:
        raise ValueError("vocabulary is None, the words of the columns are wanted; pass a list of one word for each")
    words = [str(word) for word in (_in_order(vocabulary) if isinstance(vocabulary, Mapping) else vocabulary)]
    columns: Parts = {}
    for part, matrix in parts.items():
        if not is_sparse(matrix):
            if getattr(matrix, "ndim", 0) != 2:
                kind = type(matrix).__name__
                raise TypeError(f"{part} is a {kind}, a sparse matrix, an array (N, V) or texts are wanted; convert it")
            matrix = torch.as_tensor(matrix).to_sparse()
        rows = SparseRows.of(matrix)
        if rows.shape[1] != len(words):
            raise ValueError(
                f"vocabulary has {len(words)} words, {part} has {rows.shape[1]} columns; pass one word for each column"
            )
        if drop_empty:
            rows = rows[(rows.sum(1) != 0).nonzero()[:, 0]]
        check_counts(rows, part)
        columns[part] = {"x": rows}
    splits = hold_out(label, columns, {"validation": validation, "test": test}, None, seed)
    return Data(**splits, name=label, vocabulary=words)


def check_counts(x: Any, what: str = "x") -> None:
    """Refuse what are no counts of words: negative, fractional or missing ones, and documents without words.

    Args:
        x: dense or sparse rows (N, V).
        what: what the message calls them.

    Raises:
        ValueError: with the first rows at fault.

    >>> check_counts(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "test")
    Traceback (most recent call last):
    ValueError: test has 1 empty documents, row 1; leave them out, in load_corpus with drop_empty=True
    """
    rows = SparseRows.of(x if is_sparse(x) else torch.as_tensor(x).to_sparse())
    values = rows.values
    for kind, bad in (
        ("NaN or infinite", ~values.isfinite()),
        ("negative", values < 0),
        ("fractional", values != values.round()),
    ):
        if bad.any():
            first = _rows(rows.row_of_values()[bad].unique())
            raise ValueError(f"{what} has {kind} counts in {first}; counts of words are 0, 1, 2, ...")
    empty = (rows.sum(1) == 0).nonzero()[:, 0]
    if len(empty):
        raise ValueError(
            f"{what} has {len(empty)} empty documents, {_rows(empty)}; leave them out, in load_corpus with "
            "drop_empty=True"
        )


def _rows(index: torch.Tensor) -> str:
    shown = ", ".join(str(int(row)) for row in index[:5])
    return f"row{'s' if len(index) > 1 else ''} {shown}{', ...' if len(index) > 5 else ''}"


def _in_order(columns: Mapping[str, int]) -> list[str]:
    """The words by their columns, whatever the order of the mapping."""
    if (found := sorted(columns.values())) != list(range(len(columns))):
        shown = ", ".join(map(str, found[:5]))
        raise ValueError(
            f"vocabulary has {len(columns)} words for the columns {shown}{', ...' if len(columns) > 5 else ''}, 0 to "
            f"{len(columns) - 1} are wanted; pass a list of one word for each column"
        )
    return sorted(columns, key=columns.__getitem__)


def _named(source: str | os.PathLike[str], vocabulary: Any) -> tuple[dict[str, Any], Any]:
    """What a name or a path stands for: matrices with their vocabulary, or texts."""
    if source == "20newsgroups":
        from sklearn.datasets import fetch_20newsgroups

        found = {part: fetch_20newsgroups(subset=part, remove=("headers", "footers", "quotes")) for part in PARTS[::2]}
        return {part: list(bundle.data) for part, bundle in found.items()}, vocabulary
    folder = Path(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; pass one with train.npz and vocab.txt, or of .txt files")
    if (folder / "train.npz").exists():
        if vocabulary is None:
            if not (folder / "vocab.txt").exists():
                raise FileNotFoundError(f"{folder} has no vocab.txt; pass vocabulary=, a list of words")
            vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
            vocabulary = vocabulary[:-1] if vocabulary[-1] == "" else vocabulary
        files = {part: folder / f"{part}.npz" for part in PARTS}
        return {part: _matrix(file) for part, file in files.items() if file.exists()}, vocabulary
    texts = sorted(file for file in folder.rglob("*.txt") if file.is_file())
    if not texts:
        raise FileNotFoundError(f"{folder} has neither train.npz nor .txt files; pass a folder that has")
    return {"train": [file.read_text(encoding="utf-8", errors="replace") for file in texts]}, vocabulary


def _matrix(file: Path) -> Any:
    content = contents(file)
    if not is_sparse(content.get("x")):
        have = ", ".join(content) or "nothing"
        raise ValueError(f"{file} has {have}, a sparse matrix is wanted; save it with scipy.sparse.save_npz")
    return content["x"]


def _counted(
    parts: dict[str, Any], vocabulary: Sequence[str] | Mapping[str, int] | None, vectorizer: Any
) -> tuple[dict[str, Any], Sequence[str]]:
    """Texts as matrices of counts, and the words of their columns."""
    from sklearn.feature_extraction.text import CountVectorizer

    if vectorizer is None:
        vectorizer = CountVectorizer(
            stop_words="english", max_features=2000 if vocabulary is None else None, vocabulary=vocabulary
        )
    for part, texts in parts.items():
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"{part} holds something else than texts; pass a list of str for each part")
    counts = {"train": vectorizer.fit_transform(parts["train"])}
    counts |= {part: vectorizer.transform(texts) for part, texts in parts.items() if part != "train"}
    return counts, list(vectorizer.get_feature_names_out())
