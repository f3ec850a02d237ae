"""A pair's codes as features of scikit-learn's estimators."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import pyro
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from pyrovae.data.sparse import is_sparse
from pyrovae.evaluation.predictive import encode
from pyrovae.evaluation.running import Evaluation
from pyrovae.models.base import as_pair

__all__ = ["Features"]


class Features(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """The guide's means E_q[z | x] of a pair as a scikit-learn transformer, from arrays to arrays.

    As any estimator it is copied where scikit-learn copies, so that it works in `Pipeline`, `cross_val_score` and
    `GridSearchCV`. Features of unlabelled data come from a pair that has been fitted to these before (the default:
    `fit` learns nothing more), or from `train`, which then sees the rows of each fold.

    Args:
        pair: with a guide that takes x alone, see `pyrovae.as_pair`. It is copied, not changed, and so are the
            parameters in Pyro's store that it uses by name.
        train: how `fit` trains the copy: called as `train(pair, x)`, such as `partial(pyrovae.fit, max_epochs=20)` or
            `partial(pyrovae.pretrain_stacked, ...)`. None: the pair is used as it is.
        event_shape: shape of one x, into which rows of X are brought. Default: the pair's `event_shape` if it has one,
            else that of the rows.
        site: the latent; see `pyrovae.evaluation.encode`.
        seed: of what `encode` draws where the mean has no closed form.

    Attributes:
        pair_: the pair that transforms, after `fit`.
        n_features_in_: numbers in a row of X.

    Raises:
        ValueError: for X that are sparse, no real numbers or of other rows than `fit` saw; for a `train` of functions
            that refer to networks, which no copy has of its own.
        sklearn.exceptions.NotFittedError: from `transform` before `fit`.

    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from pyrovae.models import VAE
    >>> X, y = np.eye(4, dtype=np.float32), [0, 0, 1, 1]
    >>> classifier = make_pipeline(Features(VAE(4, latent_dim=2, hidden=(5,))), LogisticRegression())
    >>> classifier[:1].fit_transform(X).shape, classifier.fit(X, y).predict(X).shape
    ((4, 2), (4,))
    """

    def __init__(
        self,
        pair: Any,
        *,
        train: Callable[..., Any] | None = None,
        event_shape: tuple[int, ...] | None = None,
        site: str | None = None,
        seed: int = 0,
    ) -> None:
        self.pair = pair
        self.train = train
        self.event_shape = event_shape
        self.site = site
        self.seed = seed

    def fit(self, X: Any, y: Any = None) -> Features:
        """Copy the pair, train it on X if there is a `train`, and note how long its codes are.

        Args:
            X: rows (N, ...), an array or a tensor.
            y: ignored.
        """
        copies: dict[int, Any] = {}
        store = pyro.get_param_store()
        # Both together, so that a network's parameters in the store are those of the copied network.
        pair, self._store = copy.deepcopy((as_pair(self.pair), store.get_state()), copies)
        shape = getattr(pair, "event_shape", None) if self.event_shape is None else self.event_shape
        rows = _numbers(X)
        self.event_shape_ = tuple(rows.shape[1:] if shape is None else shape)
        self.n_features_in_ = prod(rows.shape[1:])
        x = self._rows(rows)
        if self.train is not None:
            with store.scope({**self._store}):  # parameters that start in here are forgotten
                _refuse_shared(pair, x[:1], copies)
            with store.scope(self._store):
                self.train(pair, x)
        self.pair_ = pair
        self._n_features_out = self._codes(x[:1]).shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The codes of rows X (N, ...), as an array (N, F)."""
        check_is_fitted(self)
        return self._codes(self._rows(_numbers(X)))

    def _rows(self, rows: torch.Tensor) -> torch.Tensor:
        if prod(rows.shape[1:]) != self.n_features_in_ or self.n_features_in_ != prod(self.event_shape_):
            raise ValueError(
                f"X has rows of shape {tuple(rows.shape[1:])}, fitted were {self.n_features_in_} numbers and the pair "
                f"takes {self.event_shape_}; pass rows of that shape or flattened, or event_shape="
            )
        return rows.reshape(len(rows), *self.event_shape_)

    def _codes(self, x: torch.Tensor) -> np.ndarray:
        with pyro.get_param_store().scope(self._store):
            return encode(self.pair_, x, site=self.site, seed=self.seed).flatten(1).cpu().numpy()


def _refuse_shared(pair: Any, x: torch.Tensor, copies: dict[int, Any]) -> None:
    """A function is not copied, and so the networks are not that it refers to."""
    own = {id(value) for value in copies.values()}
    for module in Evaluation(pair, x).known.modules:
        if id(module) not in own and [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise ValueError(
                f"pair runs a {type(module).__name__} that a copy of it shares, so that train would change the "
                "caller's; pass an object whose attributes hold it, such as a Pair, or train first and leave train out"
            )


def _numbers(X: Any) -> torch.Tensor:
    if is_sparse(X):
        raise ValueError("X is sparse, a dense array is wanted; pass X.toarray() or X.to_dense()")
    rows = X if isinstance(X, torch.Tensor) else np.asarray(X)
    if rows.is_complex() if isinstance(rows, torch.Tensor) else rows.dtype.kind not in "biuf":
        raise ValueError(f"X is of {rows.dtype}, real numbers are wanted; pass X.astype('float32'), say")
    rows = torch.as_tensor(rows)
    if rows.dim() < 2 or len(rows) == 0:
        raise ValueError(f"X has shape {tuple(rows.shape)}, one row at least is wanted; pass shape (N, F)")
    return rows.to(torch.get_default_dtype())
