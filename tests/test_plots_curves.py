"""The pictures are compared with the numbers they were given: curves, and the bars and lines of checks."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from pyrovae import plots


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_training_curves_are_the_columns():
    nan = float("nan")
    history = {
        "epoch": [0.5, 1.0, 1.5, 2.0],
        "train_loss": [9.0, 7.0, 5.0, 3.0],
        "validation_loss": [8.0, nan, 6.0, 6.5],
        "train_kl": [1.0, None, 3.0, float("inf")],
        "validation_kl": [nan, nan, nan, nan],  # no line, no place in the legend
        "seconds": [1, 2, 3, 4],
    }
    ax = plots.training_curves(history)
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == {"train loss", "validation loss", "train kl", "best validation (epoch 1.5)"}
    np.testing.assert_array_equal(
        lines["train loss"].get_xydata(), list(zip(history["epoch"], [9, 7, 5, 3], strict=True))
    )
    np.testing.assert_array_equal(lines["validation loss"].get_xydata(), [[0.5, 8], [1.5, 6], [2, 6.5]])
    np.testing.assert_array_equal(lines["train kl"].get_xydata(), [[0.5, 1], [1.5, 3]])
    np.testing.assert_array_equal(lines["best validation (epoch 1.5)"].get_xydata(), [[1.5, 6]])
    assert lines["train loss"].get_color() == lines["validation loss"].get_color() != lines["train kl"].get_color()
    assert lines["train loss"].get_alpha() < lines["validation loss"].get_alpha() == 1
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "nats per datum")
    one = plots.training_curves({"epoch": [1], "train_loss": [2.0]})
    assert one.lines[0].get_marker() == "o"  # a line through one point would not show


def test_predictive_check_shows_observed_beside_replicated(rng):
    replicated = rng.normal(size=400)
    ax = plots.predictive_check(torch.tensor(3.25), torch.tensor(replicated), 0.0125, "mean")
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [3.25, 3.25])
    heights, edges = np.histogram(replicated, bins=20)
    np.testing.assert_array_equal([bar.get_height() for bar in ax.patches], heights)
    np.testing.assert_allclose([bar.get_x() for bar in ax.patches], edges[:-1])
    assert ax.get_title(loc="left") == "mean\np = 0.0125"
    assert ax.get_xlim()[1] > 3.25


@pytest.mark.parametrize("level", [0.0, 1.0, 0.3, -1e12])
def test_a_statistic_that_never_varies_is_one_bar(level):
    jitter = level * (1 + np.array([0, 1, 2, 0]) * 2.0**-52)  # equal up to rounding
    ax = plots.predictive_check(level, jitter, 1.0, "largest pixel")
    (bar,) = [bar for bar in ax.patches if bar.get_height()]
    assert bar.get_height() == 4
    assert bar.get_x() <= level <= bar.get_x() + bar.get_width()


def test_predictive_checks_are_panels_in_order(rng):
    checks = [
        {
            "observed": k,
            "replicated": rng.normal(size=50),
            "p_value": k / 10,
            "name": f"statistic {k}",
            "kind": "posterior",
        }
        for k in range(4)
    ]
    panels = plots.predictive_checks(checks)
    assert panels.shape == (4,)
    assert len(panels[0].figure.axes) == 4  # no empty panel is left
    assert [panel.lines[0].get_xdata()[0] for panel in panels] == [0, 1, 2, 3]
    assert [panel.get_title(loc="left") for panel in panels] == [f"statistic {k}\np = {k / 10:g}" for k in range(4)]
    given = Figure().subplots(2, 2)
    drawn = plots.predictive_checks(checks, axes=given)
    assert list(drawn) == list(given.ravel())
    assert all(panel.get_xlabel() and panel.get_ylabel() for panel in drawn)
