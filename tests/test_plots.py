"""What holds of every picture: where it is drawn, what its axes are called, what is refused, how it is saved."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae import plots

WITHOUT_AXES = {"image_grid", "samples", "reconstructions", "predictive_checks"}  # and one whose panels share names


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
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="disk full"):
            plots.save(ax, path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="disk full"):
            plots.save(ax, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


NO_MATHS = ["a$b_$", "5 $ or 6 $", r"\\$", "plain"]


def words(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


@pytest.mark.parametrize(
    ("draw", "texts"),
    [
        (lambda: plots.topic_words(np.diag([4.0, 3, 2, 1]) + 1, NO_MATHS, num_words=4)[0, 0], words),
        (lambda: plots.rows(np.zeros((4, 2, 1, 3, 3)), NO_MATHS), words),
        (lambda: plots.rows(np.zeros((4, 2, 3)), NO_MATHS), words),
        (
            lambda: plots.latent_scatter(np.eye(4)[:, :2], NO_MATHS),
            lambda ax: [text.get_text() for text in ax.get_legend().get_texts()],
        ),
    ],
)
def test_dollars_in_the_data_are_no_maths(draw, texts, tmp_path):
    """What matplotlib draws are the very texts, of which it would take the second for a formula."""
    ax = draw()
    plots.save(ax, tmp_path / "picture.png")
    shown = [matplotlib.text.Text()._preprocess_math(text) for text in texts(ax)]
    assert sorted(shown) == sorted((text, False) for text in NO_MATHS)


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
        (lambda: plots.latent_kl(None), r"kl is None, as active_units\(\.\.\.\)\.kl is of a pair without.*; draw"),
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
