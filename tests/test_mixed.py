"""Rows of mixed columns: against each column's own distribution, and with values missing."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.conditionals import Mixed
from pyrovae.data import incomplete
from pyrovae.distributions import masked
from pyrovae.evaluation import impute

CLASSES = (0, 3, 2, 0, 5, 3, 2)


@pytest.fixture(autouse=True)
def _seeded():
    pyro.set_rng_seed(0)


def row(*leading):
    columns = [torch.randn(leading) if c == 0 else torch.randint(c, leading).double() for c in CLASSES]
    return torch.stack([column.double() for column in columns], -1)


def by_column(likelihood, features):
    """Each column's distribution, from the heads, in the order of the table."""
    parts = {}
    for kind, module in zip(sorted(set(CLASSES)), likelihood.kinds, strict=True):
        places = [d for d, c in enumerate(CLASSES) if c == kind]
        out = module.head(features)
        for i, d in enumerate(places):
            if kind == 0:
                parts[d] = dist.Normal(out[0][..., i], 1e-4 + (out[1][..., i] / 2).exp())
            elif kind == 2:
                parts[d] = dist.Bernoulli(logits=out[0][..., i])
            else:
                parts[d] = dist.Categorical(logits=torch.stack([o[..., i] for o in out], -1))
    return [parts[d] for d in range(len(CLASSES))]


def test_log_density_is_that_of_each_column():
    likelihood = Mixed(4, 7, num_classes=CLASSES).double()
    features, x = torch.randn(3, 5, 4, dtype=torch.float64), row(3, 5)
    d = likelihood(features)
    assert (d.batch_shape, d.event_shape) == ((3, 5), (7,))
    columns = by_column(likelihood, features)
    each = torch.stack([column.log_prob(x[..., i]) for i, column in enumerate(columns)], -1)
    torch.testing.assert_close(d.log_prob(x), each.sum(-1))
    torch.testing.assert_close(d.base_dist.log_prob(x), each)
    mask = torch.rand(5, 7) < 0.5
    torch.testing.assert_close(masked(d, mask).log_prob(x), (each * mask).sum(-1))
    torch.testing.assert_close(d.expand((2, 3, 5)).log_prob(x), each.sum(-1).expand(2, 3, 5))
    want = torch.stack([column.mean for column in columns], -1)
    torch.testing.assert_close(d.mean, want, equal_nan=True)
    assert d.mean[0, 0].isnan().tolist() == [c > 2 for c in CLASSES]


def test_masses_and_densities_sum_to_one():
    d = Mixed(4, 3, num_classes=(2, 0, 3)).double()(torch.randn(4, dtype=torch.float64))
    real = torch.linspace(-30, 30, 20_001, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(torch.arange(2.0).double(), real, torch.arange(3.0).double(), indexing="ij"), -1)
    assert torch.trapezoid(d.log_prob(grid).exp().sum((0, 2)), real).item() == pytest.approx(1, abs=1e-9)


def test_samples_have_each_columns_distribution():
    likelihood = Mixed(4, 7, num_classes=CLASSES).double()
    features, n = torch.randn(4, dtype=torch.float64), 20_000
    d = likelihood(features)
    x = d.sample((n,))
    assert d.support.check(x).all()
    for i, column in enumerate(by_column(likelihood, features)):
        if CLASSES[i] == 0:
            assert abs(x[:, i].mean() - column.mean) < 4 * column.stddev / math.sqrt(n)
            assert abs(x[:, i].var() - column.variance) < 4 * column.variance * math.sqrt(2 / n)
        else:
            for k in range(CLASSES[i]):
                p = column.log_prob(torch.tensor(float(k), dtype=torch.float64)).exp()
                assert abs((x[:, i] == k).double().mean() - p) < 4 * (p * (1 - p) / n).sqrt()


def test_values_outside_a_columns_classes_are_refused():
    pair, x = pv.VAE(7, 2, likelihood=partial(Mixed, num_classes=CLASSES)), row(20).float()
    x[11, 4] = 5  # classes are 0, ..., 4
    with pytest.raises(ValueError, match=r"row 11 .*columns of Normal \(2\), Bernoulli \(2\), Categorical \(2\)"):
        pv.fit(pair, x, max_epochs=1, progress=False)


def test_a_table_with_missing_values_is_completed():
    """A hidden bit c shows in a real column near 4 c, a class and a bit: any two columns give the third."""
    c = torch.randint(2, (600,)).float()
    x = torch.stack([4 * c + 0.3 * torch.randn(600), 2 * c, c], 1)
    hidden = torch.rand(600, 3) < 0.3
    hidden[hidden.all(1)] = False
    table = incomplete(x.masked_fill(hidden, math.nan))
    pair = pv.PartialVAE(3, 1, hidden=(16,), likelihood=partial(Mixed, num_classes=(0, 3, 2), min_scale=0.1))
    pv.fit(pair, table, max_epochs=12, lr=2e-2, batch_size=50, seed=0, progress=False, compile=False)
    found = impute(pair, table, num_imputations=20, num_samples=200)
    vote = found.x.mode(0).values
    right = [(vote[:, d] == x[:, d])[hidden[:, d]].double().mean().item() for d in (1, 2)]
    error = (found.mean[:, 0] - 4 * c)[hidden[:, 0]].square().mean().sqrt().item()
    print(f"classes right: {right}, rms error of the real column {error:.2f} (sd 2)")
    assert min(right) > 0.95
    assert error < 0.8
    assert found.mean[:, 1][hidden[:, 1]].isnan().all()


@pytest.mark.parametrize(
    ("event", "classes", "message"),
    [
        (3, (0, 2), "num_classes has 2 numbers, the event shape is \\(3,\\)"),
        ((1, 3), (0, 2, 2), "num_classes has 3 numbers, the event shape is \\(1, 3\\)"),
        (2, (0, 1), "num_classes has 1; pass 0 for a real column"),
        (2, (0, -2), "num_classes has -2; pass 0"),
    ],
)
def test_refused(event, classes, message):
    with pytest.raises(ValueError, match=message):
        Mixed(4, event, num_classes=classes)
