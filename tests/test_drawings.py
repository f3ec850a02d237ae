"""Which pictures a pair gets: by what it has, and never by its name."""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae import plots, reports
from pyrovae.data import Data, Split, load_corpus
from pyrovae.evaluation import generate
from pyrovae.models.base import Pair

X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)).round()
Y = torch.arange(12) % 3


class Labelled(Pair):
    """x = 0.3 y / 2 + 0.1 z exactly, for labels y that are given or, if `drawn`, observed."""

    def __init__(self, drawn=False):
        super().__init__()
        self.loc, self.drawn = torch.nn.Parameter(torch.zeros(1)), drawn

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            if self.drawn:
                y = pyro.sample("y", dist.Categorical(torch.ones(3)), obs=y)
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            loc = (0.15 * y[:, None] + 0.1 * z)[..., None, None].expand(len(x), 1, 4, 4)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(3), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x), 1), 1.0).to_event(1))


def drawn(pair, data, folder, monkeypatch, *watched, without=()):
    """The pictures' names, all but those it has to be without, and what the watched plots were called with."""
    seen = {}
    for name in watched:
        original = getattr(plots, name)

        def watch(*values, name=name, draw=original, **options):
            seen.setdefault(name, []).append(values)
            return draw(*values, **options)

        monkeypatch.setattr(plots, name, watch)
    files, skipped = reports.pictures(pair, data, folder)
    assert set(skipped) == set(without)
    return {path.stem for path in files}, seen


def test_labels_that_are_given_have_a_row_of_samples_each(tmp_path, monkeypatch):
    names, seen = drawn(Labelled(), {"x": X, "y": Y}, tmp_path, monkeypatch, "rows")
    assert "classes" in names
    images, labels = seen["rows"][0]
    assert labels == ["0", "1", "2"]
    assert images.shape == (3, 10, 1, 4, 4)
    torch.testing.assert_close(images[1] - images[0], torch.full_like(images[0], 0.15))  # the same noise in a column
    torch.testing.assert_close(images[2] - images[1], torch.full_like(images[0], 0.15))
    assert images[0, :, 0, 0, 0].unique().numel() == 10


def test_labels_that_the_model_has_a_site_for_are_not_given(tmp_path, monkeypatch):
    names, _ = drawn(Labelled(drawn=True), {"x": X, "y": Y}, tmp_path, monkeypatch)
    assert "classes" not in names


def test_masks_bring_completions_that_keep_what_is_observed(tmp_path, monkeypatch):
    data = pv.data.masked(Split({"x": X}), pv.data.half()).fixed(0)
    for pair in (pv.InpaintingVAE((1, 4, 4), 2, hidden=(8,)), pv.PosteriorMatching(pv.VAE((1, 4, 4), 2, hidden=(8,)))):
        names, seen = drawn(pair, data, tmp_path / type(pair).__name__, monkeypatch, "completions")
        assert "completions" in names
        ((x, mask, filled),) = seen["completions"]
        assert filled.shape == (5, 10, 1, 4, 4)
        assert (filled == x)[:, mask].all()
        assert not (filled == x)[:, ~mask].all()
        monkeypatch.undo()


def test_hierarchies_have_samples_with_the_upper_layers_fixed(tmp_path, monkeypatch):
    pair = pv.LadderVAE((1, 4, 4), (3, 2), hidden=(8,))
    names, seen = drawn(pair, {"x": X}, tmp_path, monkeypatch, "rows")
    assert {"layers", "samples_by_layer"} <= names
    ((images, labels),) = seen["rows"]
    assert labels == ["nothing fixed", "z2 fixed", "z2 to z1 fixed"]
    different = [len(row.flatten(1).unique(dim=0)) for row in images]
    assert different == [10, 10, 1]
    free = generate(pair, 10, like=X[:1])
    torch.testing.assert_close(images[0], free)


def test_a_vocabulary_brings_words_in_place_of_lines(tmp_path, monkeypatch):
    counts = torch.poisson(torch.full((40, 12), 0.7), generator=torch.Generator().manual_seed(0)) + torch.eye(12)[Y[0]]
    data = load_corpus(counts, [f"word{k}" for k in range(12)], validation=0, test=10)
    names, seen = drawn(pv.ProdLDA(12, 3, hidden=(8,)), data, tmp_path, monkeypatch, "topic_words")
    assert names == {"latents", "latent_kl", "topics", "documents"}
    (weights, words), (shares, topics) = (call[:2] for call in seen["topic_words"])
    assert weights.shape == (3, 12)
    assert list(words) == data.vocabulary
    torch.testing.assert_close(shares.sum(1), torch.ones(9))
    assert len(topics) == 3
    names, _ = drawn(pv.NVDM(12, 3, hidden=(8,)), data, tmp_path / "nvdm", monkeypatch)
    assert names == {"latents", "latent_kl", "topics"}  # its z is no share of topics


def test_figures_of_layers_and_of_topics(tmp_path):
    ladder = pv.LadderVAE((1, 4, 4), (3, 2), hidden=(8,))
    figures, _ = reports.evaluate(ladder, Data(Split({"x": X})), num_samples=5, num_replicates=5)
    assert list(figures["active_layers"]) == ["z1", "z2"]
    assert [total for _, total in figures["active_layers"].values()] == [3, 2]
    assert "active units z2" in reports.table(figures)
    counts = torch.poisson(torch.full((40, 12), 0.7), generator=torch.Generator().manual_seed(0)) + torch.eye(12)[Y[0]]
    data = load_corpus(counts, [f"word{k}" for k in range(12)], validation=0, test=10)
    figures, _ = reports.evaluate(pv.NVDM(12, 3, hidden=(8,)), data, num_samples=5, num_replicates=5)
    topics = json.loads(json.dumps(figures["topics"]))
    assert set(topics) == {"perplexity", "perplexity_per_corpus", "npmi", "diversity"}
    assert 6 < topics["perplexity"] < 30  # untrained: near that of twelve equally likely words
    assert "perplexity" in reports.table(figures)


@pytest.mark.parametrize(
    ("pair", "data", "message"),
    [
        (
            lambda: pv.CVAE((1, 4, 4), 2, num_classes=3, hidden=(8,)),
            {"x": X, "y": torch.where(torch.arange(12) == 11, 3, Y)},
            r"data: y has 1 labels that are none of 0, \.\.\., 2, the first in row 11 \(3\)",
        ),
        (
            lambda: pv.PartialVAE((1, 4, 4), 2, hidden=(8,)),
            {"x": X, "mask": torch.ones_like(X).index_fill(0, torch.tensor([7]), 0).bool()},
            r"data: rows 7 \(1 in all\) of x have no observed value",
        ),
        (
            lambda: pv.NVDM(16, 2, hidden=(8,)),
            X.flatten(1).index_fill(0, torch.tensor([4]), 0),
            r"data: x has 1 empty documents, row 4",
        ),
    ],
)
def test_what_a_pair_refuses_is_named_before_training(pair, data, message):
    """On rows that no first batch of two holds."""
    with pytest.raises(ValueError, match=message):
        pv.fit(pair(), data, max_epochs=1, batch_size=2, progress=False, compile=False)


class PartlyLabelled(Pair):
    """x = 0.15 y + 0.1 z exactly, y observed where it is known and else enumerated by the guide."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(1))

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", dist.Categorical(torch.ones(3)), obs=y.clamp(min=0), obs_mask=y >= 0)
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            loc = (0.15 * label[..., None] + 0.1 * z)[..., None, None]
            pyro.sample("x", dist.Normal(loc.expand(*loc.shape[:-3], 1, 4, 4), 1.0).to_event(3), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=y < 0):
                q = dist.Categorical(torch.ones(len(x), 3))
                pyro.sample("y_unobserved", q, infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(self.loc + x.mean((1, 2, 3))[:, None], 1.0).to_event(1))


def test_labels_that_are_latent_have_samples_and_styles_of_each_class(tmp_path, monkeypatch):
    y = torch.where(torch.arange(12) % 2 == 0, Y, -1)
    names, seen = drawn(PartlyLabelled(), {"x": X, "y": y}, tmp_path, monkeypatch, "rows")
    assert {"classes", "styles"} <= names
    (images, labels), (styles, data), *_ = seen["rows"]
    assert images.shape == (3, 10, 1, 4, 4)  # one row for each class, the columns' z the same
    assert torch.allclose(images.diff(dim=0), torch.tensor(0.15))
    assert images[0, :, 0, 0, 0].std() > 0.03
    assert labels == ["0", "1", "2"]
    assert data == ["a 0", "?", "a 2", "?", "a 1", "?", "a 0", "?", "a 2", "?"]
    assert torch.equal(styles[:, 0], X[:10])
    z = X[:10].mean((1, 2, 3))  # the guide's mean
    for c in range(3):
        assert torch.allclose(styles[:, 1 + c, 0, 0, 0], 0.15 * c + 0.1 * z)


def test_clusters_are_drawn_with_their_samples_and_their_surest_data(tmp_path, monkeypatch):
    pair = pv.VaDE((1, 4, 4), 2, 3, hidden=(8,))
    with torch.no_grad():
        pair.prior.logits.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    by_dimension = ("latent_kl", "traversals")  # of which the KL from a mixture is no sum
    data = Split({"x": X, "y": Y})
    names, seen = drawn(pair, data, tmp_path, monkeypatch, "rows", "clusters", without=by_dimension)
    assert {"clusters", "samples_by_cluster", "likeliest_by_cluster"} <= names
    ((z, _, loc, _, labels),) = seen["clusters"]
    assert z.shape == (12, 2)
    assert labels.tolist() == Y.tolist()
    torch.testing.assert_close(loc, pair.prior.loc.detach())
    (samples, shares), (likeliest, sizes) = seen["rows"]
    assert shares == ["c = 0, 50%", "c = 1, 30%", "c = 2, 20%"]
    # Samples of a cluster are those of the model with c fixed, decoded from its own Normal.
    spread = [pair.likelihood(pair.decoder(pair.prior.given(torch.tensor(c)).sample((4000,)))).mean for c in range(3)]
    torch.testing.assert_close(samples.mean(1), torch.stack([s.mean(0) for s in spread]), rtol=0, atol=0.1)
    found = pv.responsibilities(pair, X)
    assert torch.equal(likeliest[1, 0], X[found[:, 1].argmax()])
    assert sum(int(size.split(": ")[1]) for size in sizes) == 12
    assert "clusters" not in drawn(pv.VAE((1, 4, 4), 2, hidden=(8,)), {"x": X}, tmp_path / "vae", monkeypatch)[0]


class Denoising(Pair):
    """A pair of x as one of (noisy, x)."""

    def __init__(self, pair):
        super().__init__()
        self.pair = pair

    def model(self, noisy, x):
        return self.pair.model(x)

    def guide(self, noisy, x):
        return self.pair.guide(x)


def test_data_are_what_the_model_observes_and_not_its_first_argument(tmp_path, monkeypatch):
    data = {"noisy": 1 - X, "x": X}
    vade = Denoising(pv.VaDE((1, 4, 4), 2, 3, hidden=(8,)))
    vade.prior, by_dimension = vade.pair.prior, ("latent_kl", "traversals")
    _, seen = drawn(vade, data, tmp_path, monkeypatch, "reconstructions", "rows", without=by_dimension)
    assert torch.equal(seen["reconstructions"][0][0], X[:10])
    _, (likeliest, _) = seen["rows"]
    assert all(any(torch.equal(image, x) for x in X) for image in likeliest.flatten(0, 1))
    plane = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    pair = Denoising(pv.GaussianMixture(2, 3).initialise_(plane))
    for name in ("component_means", "component_weights", "component_covariances"):
        setattr(pair, name, getattr(pair.pair, name).detach())
    seen = pictures_of(pair, {"noisy": -plane, "x": plane}, tmp_path, monkeypatch, "component_ellipses")
    assert torch.equal(seen["components"][0], plane)


def test_components_are_drawn_as_ellipses_in_the_plane_and_as_means_elsewhere(tmp_path, monkeypatch):
    plane = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    pair = pv.GaussianMixture(2, 3).initialise_(plane)
    assert "components" in pictures_of(pair, plane, tmp_path, monkeypatch, "component_ellipses")
    classes = pv.CategoricalMixture((1, 4, 4), 2).initialise_(X)
    with torch.no_grad():
        classes.logits.copy_(torch.tensor([0.0, 2.0]))
    seen = pictures_of(classes, X, tmp_path, monkeypatch, "samples")["components"]
    torch.testing.assert_close(seen[0], classes.component_means.detach().flip(0))  # the heavier first


def pictures_of(pair, x, folder, monkeypatch, plot):
    """What one plot was called with for the components."""
    original, seen = getattr(plots, plot), []
    monkeypatch.setattr(plots, plot, lambda *values, **options: (seen.append(values), original(*values, **options))[1])
    files, _ = reports.pictures(pair, x if isinstance(x, dict) else {"x": x}, folder)
    assert "components" in {path.stem for path in files}
    return {"components": seen[0]}


def test_ellipses_are_the_covariances_contours():
    covariance = torch.tensor([[[2.0, 0.6], [0.6, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    means, weights = torch.tensor([[1.0, -1.0], [5.0, 5.0]]), torch.tensor([1.0, 1e-5])
    ax = plots.component_ellipses(torch.randn(5, 2), means, covariance, weights)
    rings = [torch.tensor(line.get_xydata()).float() for line in ax.lines if len(line.get_xydata()) > 2]
    assert len(rings) == 2  # the second component has no weight
    for radius, ring in zip((1, 2), rings, strict=True):
        apart = ring - means[0]
        distance = (apart @ torch.linalg.inv(covariance[0]) * apart).sum(1).sqrt()
        torch.testing.assert_close(distance, torch.full_like(distance, radius), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"pass \(N, 2\), \(C, 2\) and \(C, 2, 2\)"):
        plots.component_ellipses(torch.randn(5, 3), means, covariance)
    with pytest.raises(ValueError, match="pass one for each"):
        plots.component_ellipses(torch.randn(5, 2), means, covariance, torch.ones(3))
