"""The pictures are compared with the numbers they were given: pixels, bars and lines at their exact places."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb

from pyrovae import plots


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


# completions


def test_completions_stand_below_what_is_observed(rng):
    x, mask, imputed = rng.random((4, 1, 3, 5)), rng.random((4, 1, 3, 5)) < 0.5, rng.random((2, 4, 1, 3, 5))
    ax = plots.completions(x, mask, imputed, num=3)
    found, white = blocks(canvas(ax), 4, 3, 3, 5, 1)
    assert white
    assert [label.get_text() for label in ax.get_yticklabels()] == ["data", "observed", "1", "2"]
    for n in range(3):
        grey = np.repeat(x[n, 0][..., None], 3, -1)
        np.testing.assert_array_equal(found[0, n], grey)
        np.testing.assert_array_equal(found[1, n][mask[n, 0]], grey[mask[n, 0]])
        assert (found[1, n][~mask[n, 0]] == [0.55, 0.7, 0.9]).all()
        for m in range(2):
            np.testing.assert_array_equal(found[2 + m, n], np.repeat(imputed[m, n, 0][..., None], 3, -1))
    flat = plots.completions(x.reshape(4, 15), mask.reshape(4, 15), imputed.reshape(2, 4, 15), image_shape=(3, 5))
    np.testing.assert_array_equal(canvas(flat), canvas(plots.completions(x, mask, imputed)))


def test_completions_of_other_shapes_are_refused(rng):
    x = rng.random((4, 1, 3, 5))
    with pytest.raises(ValueError, match=r"mask \(4, 1, 3, 4\), imputed .*; pass images \(N, C, H, W\), their mask"):
        plots.completions(x, x[..., :4] > 0, x[None])
    with pytest.raises(ValueError, match="num is 0"):
        plots.completions(x, x > 0, x[None], num=0)
