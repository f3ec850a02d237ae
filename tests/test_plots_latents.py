"""The pictures are compared with the numbers they were given: dots, bars and colours."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from matplotlib.path import Path
from sklearn.decomposition import PCA

from pyrovae import plots
from pyrovae.plots.figures import BLUE, GREY, PALETTE


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_scatter_draws_z_itself_in_the_colour_of_its_class(rng):
    z = torch.tensor(rng.normal(size=(40, 2)))
    labels = torch.arange(40) % 3
    ax = plots.latent_scatter(z, labels)
    (dots,) = ax.collections
    np.testing.assert_array_equal(dots.get_offsets(), z)
    assert [to_hex(color) for color in dots.get_facecolors()] == [PALETTE[k] for k in labels]
    legend = {
        text.get_text(): to_hex(line.get_color())
        for text, line in zip(ax.get_legend().get_texts(), ax.get_legend().get_lines(), strict=True)
    }
    assert legend == {str(k): PALETTE[k] for k in range(3)}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z[0]", "z[1]")
    assert ax.get_aspect() == 1
    assert plots.latent_scatter(z).get_legend() is None


def test_more_classes_than_colours_get_other_markers(rng):
    z, labels = rng.normal(size=(75, 2)), np.arange(75) % 25
    ax = plots.latent_scatter(z, labels)
    assert len(ax.collections) == 3
    for kind, dots in enumerate(ax.collections):
        chosen = labels // 10 == kind
        np.testing.assert_array_equal(dots.get_offsets(), z[chosen])
        assert [to_hex(color) for color in dots.get_facecolors()] == [PALETTE[k % 10] for k in labels[chosen]]
    looks = {(line.get_marker(), line.get_color()) for line in ax.get_legend().get_lines()}
    assert len(looks) == 25


def test_scatter_finds_a_known_plane():
    """Points on an ellipse with half-axes 3 and 1 in a plane of R^5: variances 9 : 1, directions known."""
    angle = 2 * np.pi * np.arange(12) / 12
    plane = np.stack([3 * np.cos(angle), np.sin(angle)], axis=1)
    basis = np.array([[0.6, -0.8, 0, 0, 0], [0, 0, 0, 0.8, 0.6]])  # its loading of largest size is negative, positive
    ax = plots.latent_scatter(plane @ basis + [5, -2, 1, 0, 7])
    np.testing.assert_allclose(ax.collections[0].get_offsets(), plane * [-1, 1], atol=1e-12)
    assert ax.get_xlabel() == "principal component 1 of z (90% of variance)"
    assert ax.get_ylabel() == "principal component 2 of z (10% of variance)"


def test_components_are_those_of_scikit_learn(rng):
    z = rng.normal(size=(50, 7)) * np.arange(1, 8)
    fitted = PCA(2).fit(z)
    expected = fitted.transform(z)
    expected *= [np.sign(row[np.abs(row).argmax()]) for row in fitted.components_]
    ax = plots.latent_scatter(z)
    np.testing.assert_allclose(ax.collections[0].get_offsets(), expected, atol=1e-10)
    shares = [f"{share:.0%}" for share in fitted.explained_variance_ratio_]
    assert shares[0] in ax.get_xlabel()
    assert shares[1] in ax.get_ylabel()


def test_scatter_of_collapsed_and_of_one_dimensional_latents():
    assert "(0% of variance)" in plots.latent_scatter(np.ones((4, 3))).get_xlabel()
    z, labels = np.array([[3.0], [1.0], [9.0], [2.0], [5.0]]), [0, 0, 1, 0, 1]
    offsets = plots.latent_scatter(z, labels).collections[0].get_offsets()
    np.testing.assert_allclose(offsets, np.column_stack([z[:, 0], [5 / 6, 1 / 6, 3 / 4, 3 / 6, 1 / 4]]))


def test_the_palette_survives_colour_blindness():
    """Every two colours stay 15 CIELAB units apart or more, under the matrices of Machado et al. 2009 (severity 1)."""
    seen_as = {
        "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "no red cones": [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ],
        "no green cones": [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ],
        "no blue cones": [
            [1.255528, -0.076749, -0.178779],
            [-0.078411, 0.930809, 0.147602],
            [0.004733, 0.691367, 0.303900],
        ],
    }
    to_xyz = np.array([[0.41246, 0.35758, 0.18044], [0.21267, 0.71515, 0.07217], [0.01933, 0.11919, 0.95030]])
    rgb = np.array([to_rgb(color) for color in PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for eyes, matrix in seen_as.items():
        xyz = np.clip(linear @ np.transpose(matrix), 0, 1) @ to_xyz.T / [0.95047, 1, 1.08883]
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116).T
        lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
        nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))
        assert nearest > 15, f"{eyes}: {nearest:.1f}"


def test_kl_bars_fall_and_the_line_parts_active_from_collapsed():
    kl = torch.tensor([0.004, 2.0, -0.001, 0.5, 0.02])
    ax = plots.latent_kl(kl)
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], kl[[1, 3, 4, 0, 2]])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "3", "4", "0", "2"]
    colors = [to_hex(bar.get_facecolor()) for bar in ax.patches]
    assert colors == [BLUE] * 3 + [GREY] * 2
    assert ax.lines[0].get_xdata()[0] == 2.5
    assert ax.get_legend().get_texts()[0].get_text() == "3 of 5 above 0.01 nats"
    assert plots.latent_kl(kl, threshold=1.0).lines[0].get_xdata()[0] == 0.5
    many = plots.latent_kl(np.arange(100))
    assert [text.get_text() for text in many.get_xticklabels()] == [str(99 - 4 * k) for k in range(25)]
    assert "nats per datum" in ax.get_ylabel()


def test_capacity_curves_are_the_numbers(rng):
    capacity = torch.linspace(0, 6, 7)
    kl = torch.tensor(rng.uniform(size=(7, 10)))
    ax = plots.capacity_curves(capacity, kl)
    total = kl.sum(1)
    diagonal, everything, *dimensions = ax.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [6, 6]])
    np.testing.assert_allclose(everything.get_xydata(), torch.stack([capacity, total], 1))
    order = kl[-1].argsort(descending=True).tolist()
    for line, j in zip(reversed(dimensions), order, strict=True):
        np.testing.assert_allclose(line.get_xydata(), torch.stack([capacity, kl[:, j]], 1))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["C", "all", *(f"z[{j}]" for j in order[:8])]
    assert [to_hex(line.get_color()) for line in dimensions[:2]] == [to_hex(GREY)] * 2
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("capacity C (nats)", "KL (nats per datum)")
    with pytest.raises(ValueError, match=r"capacity has shape \(6,\) and kl \(7, 10\)"):
        plots.capacity_curves(capacity[1:], kl)


def test_layers_are_bars_of_each_model():
    kl = {"ladder": {"z1": 7.5, "z2": 2.0}, "bottom up": {"z2": 0.0, "z1": 6.5}}
    active = {"ladder": {"z1": "5 / 8", "z2": "3 / 4"}, "bottom up": {"z1": "6 / 8", "z2": "0 / 4"}}
    ax = plots.layers(kl, active)
    heights = [[bar.get_height() for bar in bars] for bars in ax.containers]
    assert heights == [[7.5, 2.0], [6.5, 0.0]]
    centres = [[bar.get_x() + bar.get_width() / 2 for bar in bars] for bars in ax.containers]
    np.testing.assert_allclose(centres, [[-0.2, 0.8], [0.2, 1.2]])
    assert [text.get_text() for text in ax.texts] == ["5 / 8", "3 / 4", "6 / 8", "0 / 4"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["z1", "z2"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ladder", "bottom up"]
    assert plots.layers({"one": {"z1": 1.0}}).get_legend() is None


@pytest.mark.parametrize(
    ("kl", "message"),
    [
        ({}, "kl is {}, wanted the layers"),
        ({"a": {"z1": 1.0}, "b": {"z2": 1.0}}, r"kl of 'b' has the layers \['z2'\], the first \['z1'\]"),
        ({"a": {"z1": float("nan")}}, "kl of 'a' is NaN"),
    ],
)
def test_layers_that_cannot_be_drawn_are_refused(kl, message):
    with pytest.raises(ValueError, match=message):
        plots.layers(kl)


@pytest.mark.parametrize("active", [{"a": {"z1": "5 / 8"}}, {"b": {"z1": "5 / 8", "z2": "1 / 4"}}, {}])
def test_layers_without_their_text_are_refused(active):
    with pytest.raises(ValueError, match=r"active has no text for layer 'z\d' of 'a'; pass \{'a': \{'z\d': '12 / 64'"):
        plots.layers({"a": {"z1": 1.0, "z2": 2.0}}, active)


def test_densities_of_prior_and_aggregate():
    """A Gaussian of sd 1 and 1/2: its regions are ellipses, of mass 1 - exp(-r^2 / 2)."""
    a, b = np.linspace(-5, 5, 401), np.linspace(-3, 3, 301)
    p = np.exp(-0.5 * (a[:, None] ** 2 + (2 * b) ** 2)) / np.pi
    q = np.exp(-0.5 * ((a[:, None] - 2) ** 2 + (b + 1) ** 2))
    ax = plots.latent_densities(q, torch.tensor(p), (-5, 5, -3, 3), components=[[1.0, 2.0], [0.0, -1.0]])
    shades, lines, crosses = ax.collections
    assert np.array_equal(shades.get_array().reshape(301, 401), q.T)
    (x, y), value = shades.get_coordinates()[:-1, :-1].reshape(-1, 2).T, shades.get_array().ravel()
    assert (x[value.argmax()], y[value.argmax()]) == pytest.approx((2, -1), abs=0.03)
    radii = np.sqrt(-2 * np.log1p(-np.array([0.99, 0.9, 0.5])))
    np.testing.assert_allclose(lines.levels, np.exp(-0.5 * radii**2) / np.pi, rtol=0.02)
    for path, radius in zip(lines.get_paths(), radii, strict=True):
        assert np.hypot(path.vertices[:, 0], 2 * path.vertices[:, 1]) == pytest.approx(radius, rel=0.01)
    np.testing.assert_array_equal(crosses.get_offsets(), [[1, 2], [0, -1]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["p(z): 50, 90, 99 %", "components"]
    for arguments, match in (
        ((q, p.T, (-3, 3)), "wanted \\(n, m\\) twice"),
        ((q, -p, (-3, 3)), "below 0 somewhere"),
        ((q, p, (3, -3)), "extent is \\(3, -3\\)"),
    ):
        with pytest.raises(ValueError, match=match):
            plots.latent_densities(*arguments)
    with pytest.raises(ValueError, match="components has shape"):
        plots.latent_densities(q, p, (-3, 3), components=[1.0, 2.0])


def test_cluster_ellipses_are_the_projected_components(rng):
    """Draws of a component lie in its ellipse as often as two sigmas of a plane hold, 1 - exp(-2)."""
    loc, factor = rng.normal(size=(2, 4)) * 3, rng.normal(size=(2, 4, 4))
    z = np.concatenate([loc[c] + rng.normal(size=(2000, 4)) @ factor[c].T for c in range(2)])
    ax = plots.clusters(z, [0.25, 0.75], loc, factor @ factor.transpose(0, 2, 1), np.arange(4000) // 2000)
    (dots,) = ax.collections
    ellipses = ax.get_lines()
    assert len(ellipses) == 2
    assert [text.get_text() for text in ax.texts] == ["0", "1"]
    assert ellipses[1].get_linewidth() > ellipses[0].get_linewidth()
    for c, ellipse in enumerate(ellipses):
        inside = Path(ellipse.get_xydata()).contains_points(dots.get_offsets()[2000 * c : 2000 * (c + 1)])
        assert inside.mean() == pytest.approx(1 - np.exp(-2), abs=4 * np.sqrt(0.12 / 2000))
    assert "principal component 1" in ax.get_xlabel()


def test_clusters_of_two_dimensions_are_where_they_are(rng):
    ax = plots.clusters(rng.normal(size=(9, 2)), [1.0], [[1.0, -2.0]], [np.diag([4.0, 0.25])])
    x, y = ax.get_lines()[0].get_xydata().T
    np.testing.assert_allclose([x.min(), x.max(), y.min(), y.max()], [-3, 5, -3, -1], atol=0.02)
    covariance = np.array([[1.0, 0.95], [0.95, 1.0]])
    rim = plots.clusters(rng.normal(size=(9, 2)), [1.0], [[1.0, -2.0]], [covariance]).get_lines()[0].get_xydata()
    distance = ((rim - [1.0, -2.0]) @ np.linalg.inv(covariance) * (rim - [1.0, -2.0])).sum(1)
    np.testing.assert_allclose(distance, 4.0)  # two sigmas in every direction
    with pytest.raises(ValueError, match="L of at least 2"):
        plots.clusters(rng.normal(size=(9, 1)), [1.0], [[1.0]], [[4.0]])
    with pytest.raises(ValueError, match="pass \\(C,\\), \\(C, L\\) and \\(C, L, L\\)"):
        plots.clusters(rng.normal(size=(9, 2)), [1.0], [[1.0]], [[4.0]])
