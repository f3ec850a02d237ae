"""The pictures are compared with the numbers they were given: pixels, dots, bars and lines at their exact places."""

import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from pyrovae import plots

WITHOUT_AXES = {"image_grid", "samples", "reconstructions", "predictive_checks"}  # and one whose panels share names


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def canvas(ax):
    (image,) = ax.images
    return np.asarray(image.get_array())


def blocks(picture, rows, columns, height, width, gap):
    """The images in a tiled picture (R, S, H, W, ...), and whether everything else is white."""
    left = picture.copy()
    found = []
    for row, column in itertools.product(range(rows), range(columns)):
        place = np.s_[row * (height + gap) :, column * (width + gap) :]
        found.append(picture[place][:height, :width].copy())
        left[place][:height, :width] = 1
    return np.stack(found).reshape(rows, columns, *found[0].shape), bool((left == 1).all())


def pictures():
    """Every drawing function, with small arguments: name -> ax -> Axes."""
    rng = np.random.default_rng(1)
    x, vectors = rng.random((5, 1, 4, 4)), rng.normal(size=(5, 6))
    checks = {"observed": 0.1, "replicated": rng.normal(size=20), "p_value": 0.3, "name": "mean"}
    return {
        "training_curves": lambda ax: plots.training_curves({"epoch": [1, 2], "validation_loss": [3, 2]}, ax=ax),
        "image_grid": lambda ax: plots.image_grid(x, ax=ax),
        "reconstructions": lambda ax: plots.reconstructions(x, x, ax=ax),
        "reconstructions of vectors": lambda ax: plots.reconstructions(vectors, vectors, ax=ax),
        "samples": lambda ax: plots.samples(x, ax=ax),
        "samples, D = 1": lambda ax: plots.samples(vectors[:, :1], ax=ax),
        "samples, D = 2": lambda ax: plots.samples(vectors[:, :2], ax=ax),
        "samples, D = 6": lambda ax: plots.samples(vectors, ax=ax),
        "interpolation": lambda ax: plots.interpolation(x[None], ax=ax),
        "interpolation of vectors": lambda ax: plots.interpolation(vectors[None], ax=ax),
        "traversals": lambda ax: plots.traversals(x[None], ["z[0]"], values=range(5), ax=ax),
        "traversals of vectors": lambda ax: plots.traversals(vectors[None], ax=ax),
        "manifold": lambda ax: plots.manifold(x[:4].reshape(2, 2, 1, 4, 4), (-1, 1), ax=ax),
        "manifold of vectors": lambda ax: plots.manifold(vectors[:4].reshape(2, 2, 6), (-1, 1), ax=ax),
        "latent_scatter": lambda ax: plots.latent_scatter(vectors, list("abcab"), ax=ax),
        "latent_kl": lambda ax: plots.latent_kl(vectors[0] ** 2, ax=ax),
        "predictive_check": lambda ax: plots.predictive_check(**checks, ax=ax),
        "predictive_checks": lambda ax: plots.predictive_checks([checks], axes=None if ax is None else [ax])[0],
    }


@pytest.mark.parametrize("name", pictures())
def test_draws_on_the_given_axes_or_on_a_figure_outside_pyplot(name, tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), matplotlib.get_backend(), dict(matplotlib.rcParams)
    given = Figure().subplots()
    assert pictures()[name](given) is given
    assert given.has_data()
    own = pictures()[name](None)
    assert isinstance(own, Axes)
    assert own.figure is not given.figure
    assert plots.save(own, tmp_path / "picture.png").stat().st_size > 1000
    assert (plt.get_fignums(), matplotlib.get_backend(), dict(matplotlib.rcParams)) == before


@pytest.mark.parametrize("name", [name for name in pictures() if name not in WITHOUT_AXES])
def test_axes_are_named(name):
    ax = pictures()[name](None)
    assert ax.get_xlabel()
    assert ax.get_ylabel() or name in {"interpolation", "traversals"}  # whose rows carry texts, or need none


def test_the_import_is_light_and_drawing_leaves_pyplot_alone(tmp_path):
    code = (
        "import sys; from pyrovae import plots; assert 'matplotlib' not in sys.modules, 'import'\n"
        f"plots.save(plots.image_grid([[[0.0, 1.0]]]), {str(tmp_path / 'a.png')!r})\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules, 'drawing'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# images


@pytest.mark.parametrize(("height", "width", "gap"), [(3, 5, 1), (28, 28, 1), (32, 32, 2), (8, 64, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_grid_holds_image_i_at_row_and_column_of_i(rng, channels, height, width, gap):
    images = rng.random((7, channels, height, width))
    picture = canvas(plots.image_grid(images, columns=3))
    assert picture.shape[:2] == (3 * height + 2 * gap, 3 * width + 2 * gap)
    assert picture.shape[2:] == (() if channels == 1 else (3,))
    found, white = blocks(picture, 3, 3, height, width, gap)
    assert white
    for i in range(7):
        expected = images[i, 0] if channels == 1 else np.stack(list(images[i]), axis=-1)
        np.testing.assert_array_equal(found[divmod(i, 3)], expected)
    assert (found[2, 1:] == 1).all()  # the places without an image


def test_grid_is_square_by_default_and_never_wider_than_needed(rng):
    images = rng.random((10, 4, 4))
    assert canvas(plots.image_grid(images)).shape == (3 * 5 - 1, 4 * 5 - 1)
    assert canvas(plots.image_grid(images, columns=99)).shape == (4, 10 * 5 - 1)
    assert plots.image_grid(images, title="ten").get_title(loc="left") == "ten"


def test_one_image_however_it_is_passed(rng):
    images = rng.random((4, 1, 3, 5)).astype("float32")
    expected = canvas(plots.image_grid(images))
    flat = images.reshape(4, 15)
    leaf = torch.tensor(images, requires_grad=True)
    for same in (images[:, 0], torch.tensor(images), leaf, images.tolist()):
        np.testing.assert_array_equal(canvas(plots.image_grid(same)), expected)
    for shape in ((3, 5), (1, 3, 5), torch.Size([1, 3, 5])):
        np.testing.assert_array_equal(canvas(plots.image_grid(flat, image_shape=shape)), expected)
    half = torch.tensor(images).bfloat16()
    np.testing.assert_array_equal(canvas(plots.image_grid(half)), canvas(plots.image_grid(half.double())))


def test_values_are_clipped_in_the_picture_only():
    images = np.array([[[-0.5, 0.25], [0.75, 1.5]]])
    ax = plots.image_grid(images)
    np.testing.assert_array_equal(canvas(ax), [[0, 0.25], [0.75, 1]])
    assert images.min() == -0.5
    dim = plots.image_grid(np.array([[[0.2, 0.3]]]))
    assert dim.images[0].get_clim() == (0, 1)  # not stretched to black and white
    assert to_hex(ax.images[0].cmap(0.0)) == "#000000"


def test_reconstructions_stand_below_their_originals(rng):
    x, means = rng.random((6, 1, 4, 4)), rng.random((6, 1, 4, 4))
    ax = plots.reconstructions(x, means, num=5)
    found, white = blocks(canvas(ax), 2, 5, 4, 4, 1)
    assert white
    np.testing.assert_array_equal(found, np.stack([x[:5, 0], means[:5, 0]]))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["data", "reconstruction"]
    np.testing.assert_array_equal(ax.get_yticks(), [1.5, 6.5])  # the middle of each row, in pixels
    np.testing.assert_array_equal(canvas(plots.reconstructions(x, means)).shape, (9, 29))  # num is at most N


def test_interpolation_and_traversals_go_right_and_name_rows_and_steps(rng):
    images = rng.random((2, 5, 3, 4, 6))
    ax = plots.interpolation(images)
    found, white = blocks(canvas(ax), 2, 5, 4, 6, 1)
    assert white
    np.testing.assert_array_equal(found, np.moveaxis(images, 2, -1))
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "0.25", "0.5", "0.75", "1"]
    np.testing.assert_array_equal(ax.get_xticks(), [2.5, 9.5, 16.5, 23.5, 30.5])
    ax = plots.traversals(images, ["z[7], 2.10 nats", "z[1], 0.30 nats"], values=torch.linspace(-3, 3, 5))
    np.testing.assert_array_equal(blocks(canvas(ax), 2, 5, 4, 6, 1)[0], np.moveaxis(images, 2, -1))
    assert [text.get_text() for text in ax.get_yticklabels()] == ["z[7], 2.10 nats", "z[1], 0.30 nats"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["−3", "−1.5", "0", "1.5", "3"]
    assert [text.get_text() for text in plots.traversals(images).get_yticklabels()] == ["z[0]", "z[1]"]


@pytest.mark.parametrize(("extent", "ends"), [((-2, 4), (-2, 4, -2, 4)), ((-2, 4, 10, 11), (-2, 4, 10, 11))])
def test_manifold_puts_each_image_at_its_z(extent, ends):
    n, m, height, width = 4, 3, 2, 6
    first, second = np.linspace(ends[0], ends[1], n), np.linspace(ends[2], ends[3], m)
    values = np.arange(n * m).reshape(n, m) / 20
    images = np.broadcast_to(values[:, :, None, None, None], (n, m, 1, height, width))
    ax = plots.manifold(images, extent)
    picture = canvas(ax)
    left, right, bottom, top = ax.images[0].get_extent()
    across, up = (right - left) / picture.shape[1], (top - bottom) / picture.shape[0]
    for i, j in itertools.product(range(n), range(m)):
        rows, columns = np.nonzero(picture == values[i, j])
        assert len(rows) == height * width
        np.testing.assert_allclose(left + (columns.mean() + 0.5) * across, first[i], atol=1e-12)
        np.testing.assert_allclose(top - (rows.mean() + 0.5) * up, second[j], atol=1e-12)
    ax.figure.draw_without_rendering()
    (x0, y0), (x1, y1) = ax.transData.transform([(left, bottom), (left + across, bottom + up)])
    assert x1 - x0 == pytest.approx(y1 - y0)  # square pixels though the axes have other units
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("z[0]", "z[1]")


# vectors


def test_reconstructed_vectors_are_lines_over_their_data(rng):
    x, means = rng.normal(size=(3, 20)), rng.normal(size=(3, 20))
    ax = plots.reconstructions(x, means, num=2)
    lines = [line.get_ydata() for line in ax.lines]
    assert len(lines) == 4
    np.testing.assert_array_equal(lines[:2], [x[0], means[0]])
    apart = x[1] - lines[2]
    np.testing.assert_allclose(apart, apart[0])
    assert apart[0] > np.ptp([x[:2], means[:2]])  # rows below one another, without overlap
    np.testing.assert_allclose(means[1] - lines[3], apart)
    assert f"{apart[0]:.2g} apart" in ax.get_ylabel()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["data", "reconstruction"]


def test_vectors_on_a_way_go_from_dark_to_light(rng):
    ways = rng.normal(size=(2, 4, 20))
    ax = plots.interpolation(ways)
    np.testing.assert_array_equal([line.get_ydata() for line in ax.lines[:4]], ways[0])
    brightness = [np.dot([0.2126, 0.7152, 0.0722], to_rgb(line.get_color())) for line in ax.lines[:4]]
    assert brightness == sorted(brightness)
    legend = plots.traversals(ways, values=[-2, -1, 0, 1.5]).get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["value −2", "value 1.5"]


def test_vectors_of_a_manifold_are_centred_at_their_z():
    lines = np.stack([np.linspace(-1, 1, 5) * scale for scale in (1, 2, 3, 4, 5, 6)]).reshape(2, 3, 5)
    ax = plots.manifold(lines, (0, 1, 0, 4))
    assert len(ax.lines) == 6
    for line, (i, j) in zip(ax.lines, itertools.product(range(2), range(3)), strict=True):
        np.testing.assert_allclose([line.get_xdata().mean(), line.get_ydata().mean()], [i, 2 * j], atol=1e-12)
        height = 0.84 * 2 * np.ptp(lines[i, j]) / np.ptp(lines)  # one scale for all, 0.84 of a cell for the highest
        assert np.ptp(line.get_ydata()) == pytest.approx(height)


def test_samples_of_vectors(rng):
    x = rng.normal(size=(30, 4))
    np.testing.assert_array_equal([line.get_ydata() for line in plots.samples(x).lines], x)
    np.testing.assert_array_equal(plots.samples(x[:, :2]).collections[0].get_offsets(), x[:, :2])
    bars = plots.samples(x[:, :1]).patches
    edges = np.array([bar.get_x() for bar in bars] + [bars[-1].get_x() + bars[-1].get_width()])
    np.testing.assert_allclose(edges[[0, -1]], [x[:, 0].min(), x[:, 0].max()])
    counts = [((x[:, 0] >= low) & (x[:, 0] < high)).sum() for low, high in itertools.pairwise(edges[:-1])]
    assert [bar.get_height() for bar in bars][:-1] == counts


# latents


def test_scatter_draws_z_itself_in_the_colour_of_its_class(rng):
    z = torch.tensor(rng.normal(size=(40, 2)))
    labels = torch.arange(40) % 3
    ax = plots.latent_scatter(z, labels)
    (dots,) = ax.collections
    np.testing.assert_array_equal(dots.get_offsets(), z)
    assert [to_hex(color) for color in dots.get_facecolors()] == [plots.PALETTE[k] for k in labels]
    legend = {
        text.get_text(): to_hex(line.get_color())
        for text, line in zip(ax.get_legend().get_texts(), ax.get_legend().get_lines(), strict=True)
    }
    assert legend == {str(k): plots.PALETTE[k] for k in range(3)}
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
        assert [to_hex(color) for color in dots.get_facecolors()] == [plots.PALETTE[k % 10] for k in labels[chosen]]
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
    rgb = np.array([to_rgb(color) for color in plots.PALETTE])
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
    assert colors == [plots.BLUE] * 3 + [plots.GREY] * 2
    assert ax.lines[0].get_xdata()[0] == 2.5
    assert ax.get_legend().get_texts()[0].get_text() == "3 of 5 above 0.01 nats"
    assert plots.latent_kl(kl, threshold=1.0).lines[0].get_xdata()[0] == 0.5
    many = plots.latent_kl(np.arange(100))
    assert [text.get_text() for text in many.get_xticklabels()] == [str(99 - 4 * k) for k in range(25)]
    assert "nats per datum" in ax.get_ylabel()


# runs and checks


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


# files


def test_save_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    ax = plots.image_grid(np.zeros((1, 4, 4)))
    assert plots.save(ax, path) == path
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    plots.save(plots.predictive_checks([{"observed": 0, "replicated": [1, 2], "p_value": 0, "name": "a"}]), str(path))
    inside = Figure().subfigures(1, 2)[0].subplots()
    plots.save(plots.latent_kl([1.0, 2.0], ax=inside), path)


def test_save_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    ax = plots.image_grid(np.zeros((1, 4, 4)))

    def full(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(plots.os, "replace", full)
        with pytest.raises(OSError, match="disk full"):
            plots.save(ax, path)
    with monkeypatch.context() as patch:
        patch.setattr(plots.Path, "write_bytes", full)
        with pytest.raises(OSError, match="disk full"):
            plots.save(ax, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_save_refuses_a_missing_folder_and_another_format(tmp_path):
    ax = plots.image_grid(np.zeros((1, 4, 4)))
    with pytest.raises(FileNotFoundError, match=r"path .*missing.*makedirs"):
        plots.save(ax, tmp_path / "missing" / "a.png")
    assert not (tmp_path / "missing").exists()
    with pytest.raises(ValueError, match=r"path .*a\.pdf.*pass 'a\.pdf\.png'"):
        plots.save(ax, tmp_path / "a.pdf")
    with pytest.raises(TypeError, match="ax is a Figure"):
        plots.save(ax.figure, tmp_path / "a.png")


# what does not fit is refused by name, with a fix

IMAGES = np.zeros((2, 1, 4, 4))
WAYS = np.zeros((2, 3, 1, 4, 4))
CHECK = {"observed": 0.0, "replicated": [0.0, 1.0], "p_value": 0.5, "name": "mean"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.image_grid(np.zeros((2, 16))), r"images has shape \(2, 16\).*pass image_shape="),
        (lambda: plots.image_grid(np.zeros((2, 4, 4, 3))), r"images has shape \(2, 4, 4, 3\), wanted 1 or 3.*movedim"),
        (lambda: plots.image_grid(np.zeros((2, 2, 1, 4, 4))), r"images has shape .*wanted \(N, C, H, W\).*reshape"),
        (lambda: plots.image_grid(np.zeros((0, 4, 4))), r"images is empty, of shape \(0, 4, 4\); pass"),
        (lambda: plots.image_grid(np.full((1, 2, 2), np.nan)), r"images is NaN or infinite in 4 of its 4.*leave"),
        (lambda: plots.image_grid(np.full((1, 2, 2), 255, np.uint8)), r"images holds .* up to 255.*divide it by 255"),
        (lambda: plots.image_grid(np.zeros((2, 16)), image_shape=(4, 5)), r"images has events .*product of 16"),
        (lambda: plots.image_grid(np.zeros((2, 16)), image_shape=(16,)), r"image_shape is \(16,\); pass \(C, H, W\)"),
        (lambda: plots.image_grid(IMAGES, columns=0), r"columns is 0, wanted at least 1; leave it out"),
        (
            lambda: plots.reconstructions(IMAGES, IMAGES[:1]),
            r"x has shape \(2, 1, 4, 4\), reconstructed \(1,.*pass one",
        ),
        (lambda: plots.reconstructions(IMAGES, IMAGES, num=0), r"num is 0, wanted at least 1; leave it out"),
        (lambda: plots.reconstructions(IMAGES, IMAGES * np.nan), r"reconstructed is NaN"),
        (lambda: plots.samples(np.zeros(3)), r"images has shape \(3,\), wanted .*\(N, D\); reshape"),
        (lambda: plots.interpolation(np.zeros((3, 4))), r"images has shape \(3, 4\), wanted \(R, S, C, H, W\)"),
        (lambda: plots.traversals(WAYS, ["one"]), r"labels has 1 texts and images 2 rows; pass"),
        (lambda: plots.traversals(WAYS, values=[0, 1]), r"values has 2 numbers and images 3 steps; pass"),
        (lambda: plots.manifold(WAYS[:1], (-1, 1)), r"images is a grid of 1 x 3, wanted 2 x 2 at least; decode"),
        (lambda: plots.manifold(WAYS, (1, -1)), r"extent is \(1, -1\), wanted \(low, high\).*pass such as"),
        (lambda: plots.manifold(WAYS, (-1, 0, 1)), r"extent is \(-1, 0, 1\), wanted"),
        (lambda: plots.latent_scatter(np.zeros(3)), r"z has shape \(3,\), wanted \(N, L\); pass z.reshape"),
        (lambda: plots.latent_scatter(np.zeros((3, 2)), [0, 1]), r"labels has shape \(2,\) and z \(3, 2\); pass one"),
        (lambda: plots.latent_scatter(np.zeros((41, 2)), range(41)), r"labels has 41 different.*40 at most; group"),
        (lambda: plots.latent_kl(np.zeros((2, 3))), r"kl has shape \(2, 3\), wanted \(L,\); pass"),
        (
            lambda: plots.training_curves({"train_loss": [1.0]}),
            r"history has the columns \['train_loss'\].*'epoch'.*add",
        ),
        (lambda: plots.training_curves({"epoch": [1.0], "lr": [1.0]}), r"history has the columns .*train_\*.*add"),
        (
            lambda: plots.training_curves({"epoch": [1.0], "train_loss": []}),
            r"history\['train_loss'\] has 0.*write None",
        ),
        (lambda: plots.training_curves({"epoch": [], "train_loss": []}), r"history has no finite value in .*; train"),
        (lambda: plots.predictive_check(**CHECK | {"replicated": [[0.0]]}), r"replicated has shape \(1, 1\).*pass one"),
        (lambda: plots.predictive_check(**CHECK | {"observed": [0.0, 1.0]}), r"observed has shape \(2,\).*pass the"),
        (lambda: plots.predictive_check(**CHECK | {"p_value": 1.5}), r"p_value is 1.5, wanted .*\[0, 1\]; pass"),
        (lambda: plots.predictive_check(**CHECK | {"p_value": float("nan")}), r"p_value is nan"),
        (lambda: plots.predictive_checks([]), r"checks is empty.*pass"),
        (lambda: plots.predictive_checks([{"name": "a"}]), r"checks\[0\] has the keys \['name'\].*p_value.*pass all"),
        (lambda: plots.predictive_checks([CHECK], axes=Figure().subplots(1, 2)), r"axes has 2 Axes and checks 1.*pass"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_figure_is_no_axes():
    with pytest.raises(TypeError, match="ax is a Figure, wanted a matplotlib Axes; pass"):
        plots.image_grid(IMAGES, ax=Figure())
