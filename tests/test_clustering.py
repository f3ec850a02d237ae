"""Clusters of any pair, and scores of clusterings, against brute force and small tables by hand."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import GaussianMixture, Mixture
from sklearn.mixture import GaussianMixture as Sklearn

from pyrovae import VAE, MeanFieldVaDE, VaDE, ari, assign_clusters, cluster_accuracy, nmi, responsibilities
from pyrovae.evaluation import components
from pyrovae.models.base import Functions
from pyrovae.priors.covariances import FullCovariance

GENERATOR = torch.Generator().manual_seed(0)
X = 3 * torch.randn(40, 2, generator=GENERATOR, dtype=torch.float64)


def test_accuracy_of_permuted_labels_is_one():
    labels = torch.randint(7, (200,), generator=GENERATOR)
    for permutation in itertools.islice(itertools.permutations(range(7)), 0, 5040, 501):
        renamed = torch.tensor(permutation)[labels]
        assert (cluster_accuracy(labels, renamed), nmi(labels, renamed), ari(labels, renamed)) == (1.0, 1.0, 1.0)
    assert cluster_accuracy(list("aab"), [9, 9, 4]) == 1.0


def test_accuracy_is_that_of_the_best_of_all_matchings():
    """Fewer, as many and more clusters than labels, and numbers that are not 0, 1, 2."""
    for clusters in (2, 4, 6):
        labels, assigned = (torch.randint(k, (60,), generator=GENERATOR).numpy() for k in (4, clusters))
        best = 0.0
        for names in itertools.permutations(range(max(4, clusters)), clusters):
            best = max(best, float(np.mean(np.asarray(names)[assigned] == labels)))
        assert cluster_accuracy(labels + 10, -assigned) == pytest.approx(best, abs=1e-12)


def test_scores_of_a_table_by_hand():
    """Rows are labels, columns clusters: [[3, 1], [1, 3]]; one diagonal has 6 of 8."""
    labels, assigned = [0] * 4 + [1] * 4, [0, 0, 0, 1, 1, 1, 1, 0]
    assert cluster_accuracy(labels, assigned) == 0.75
    information = 2 * 3 / 8 * math.log(3 / 8 / 0.25) + 2 * 1 / 8 * math.log(1 / 8 / 0.25)
    assert nmi(labels, assigned) == pytest.approx(information / math.log(2), abs=1e-12)
    # pairs: 3 + 3 together in both, 12 in each alone, 28 in all
    assert ari(labels, assigned) == pytest.approx((6 - 12 * 12 / 28) / (12 - 12 * 12 / 28), abs=1e-12)
    assert cluster_accuracy([0] * 4 + [1] * 4, [0, 0, 1, 1, 2, 2, 2, 3]) == 5 / 8  # clusters 1 and 3 match no label


def test_scores_of_random_clusters_are_chance():
    labels, assigned = (torch.randint(10, (20000,), generator=GENERATOR) for _ in range(2))
    assert cluster_accuracy(labels, assigned) < 0.13
    assert abs(ari(labels, assigned)) < 0.005
    assert nmi(labels, assigned) < 0.005


def test_data_without_a_label_are_left_out():
    labels, assigned = torch.tensor([-1, 0, 0, 1, -1, 1, 1, -1]), torch.tensor([2, 0, 0, 1, 2, 1, 0, -1])
    known = labels >= 0
    for score in (cluster_accuracy, nmi, ari):
        assert score(labels, assigned) == score(labels[known], assigned[known])
        assert score(labels.double().numpy(), assigned) == score(labels[known], assigned[known])
        with pytest.raises(ValueError, match="all 3 labels are -1, unknown"):
            score([-1, -1, -1], [0, 1, 1])
    assert cluster_accuracy(labels, assigned) == 0.8
    assert cluster_accuracy(["-1", "-1", "a"], [0, 0, -1]) == 1.0  # names are names


@pytest.mark.parametrize(("labels", "assigned"), [([0, 1], [0]), ([], []), ([[0, 1]], [[0, 1]])])
def test_scores_refuse_other_shapes(labels, assigned):
    for score in (cluster_accuracy, nmi, ari):
        with pytest.raises(ValueError, match="one label and one cluster for each datum"):
            score(labels, assigned)


def test_responsibilities_of_a_mixture_without_samples_are_those_of_scikit_learn():
    fitted = Sklearn(3, covariance_type="diag", random_state=0).fit(X.numpy())
    parameters = (fitted.weights_, fitted.means_, np.sqrt(fitted.covariances_))
    pair = GaussianMixture(*(torch.tensor(value) for value in parameters))
    found = responsibilities(pair, X, batch_size=7)
    np.testing.assert_allclose(found, fitted.predict_proba(X.numpy()), atol=1e-10)
    assert (assign_clusters(pair, X).numpy() == fitted.predict(X.numpy())).all()


def points(pair_class, **options):
    """A pair whose codes are x itself, up to a noise of 1e-6."""
    pyro.set_rng_seed(0)
    pair = pair_class(2, 2, 3, hidden=(), likelihood=Normal, **options).double()
    with torch.no_grad():
        pair.posterior.head.layer.weight.zero_()[:2] = torch.eye(2)
        pair.posterior.head.layer.bias.zero_()[2:] = -30.0
        pair.posterior.min_scale = 1e-6
        pair.prior.logits.copy_(torch.tensor([0.3, -0.7, 0.1]))
    return pair


class Normal(torch.nn.Module):
    def __init__(self, feature_shape, event_shape):
        super().__init__()
        self.layer = torch.nn.Linear(*feature_shape, *event_shape)

    def forward(self, features):
        return dist.Normal(self.layer(features), 1.0).to_event(1)


@pytest.mark.parametrize("cls", [VaDE, MeanFieldVaDE])
def test_responsibilities_of_vade_are_bayes_rule_at_the_code(cls):
    pair = points(cls)
    p = pair.prior
    with torch.no_grad():
        each = [
            p.logits[c] + dist.Normal(p.loc[c], p.scale[c]).to_event(1).log_prob(X) for c in range(3)
        ]  # up to the normaliser of pi
        want = torch.stack(each, -1).softmax(-1)
    torch.testing.assert_close(responsibilities(pair, X, num_samples=2), want, rtol=0, atol=1e-4)


def test_responsibilities_are_a_mean_over_the_guides_samples():
    """c's law given x and z, of x that depends on c, over the Normal that z is drawn from: by quadrature."""
    pair, x = Mixture(), X[:6, 0]
    z = (0.5 * x + torch.linspace(-9, 9, 4001, dtype=x.dtype)[:, None] * 1.2)[..., None]
    c = torch.arange(3, dtype=x.dtype)
    with torch.no_grad():
        joint = dist.Normal(pair.loc, 1.0).log_prob(z) + dist.Normal(z + c, 1.0).log_prob(x[:, None]) + pair.logits
        weight = dist.Normal(0.5 * x, 1.2).log_prob(z[..., 0]).softmax(0)
        want = (weight[..., None] * joint.softmax(-1)).sum(0)
    found = responsibilities(pair, x, num_samples=300)
    assert (found - want).abs().max() < 4 * 0.5 / math.sqrt(300)
    few = responsibilities(pair, x, num_samples=1)
    assert (few - want).abs().max() > 0.05
    assert torch.equal(few, responsibilities(pair, x, num_samples=1))


def test_somebodys_own_pair_with_two_sites_asks_for_one():
    def model(x):
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            b = pyro.sample("b", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(a + 5.0 * b, 0.1), obs=x)

    pair, x = Functions(model, lambda x: None), torch.tensor([0.0, 6.0, 11.0, 5.0])
    assert assign_clusters(pair, x, site="b").tolist() == [0, 1, 2, 1]
    assert assign_clusters(pair, x, site="a").tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match=r"enumerates \['a', 'b'\].*no site is named; pass site="):
        responsibilities(pair, x)
    with pytest.raises(ValueError, match="site='z' is none of them"):
        responsibilities(pair, x, site="z")
    with pytest.raises(ValueError, match=r"enumerates no site \(latents \['z'\]\)"):
        assign_clusters(VAE(2, 1, hidden=(3,)), torch.ones(4, 2))


@pytest.mark.parametrize("options", [{}, {"covariance": FullCovariance}])
@pytest.mark.parametrize("cls", [VaDE, MeanFieldVaDE])
def test_components_are_the_priors(cls, options):
    pair = points(cls, **options)
    with torch.no_grad():
        for parameter in pair.prior.covariance.parameters():
            parameter.add_(torch.randn_like(parameter))
    found = components(pair, X)
    torch.testing.assert_close(found.weights, pair.prior.component().probs)
    torch.testing.assert_close(found.loc, pair.prior.loc)
    torch.testing.assert_close(found.covariance, pair.prior.covariance.matrices())
    assert found.samples["c"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="enumerates no site"):
        components(VAE(2, 1, hidden=(3,)), torch.ones(4, 2))


def test_components_ask_for_a_latent_that_depends_on_the_cluster():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.1).to_event(1))

    with pytest.raises(ValueError, match="'z' does not depend on 'c'"):
        components(Functions(model, guide), X.float())


def test_data_that_the_likelihood_cannot_give_are_named():
    with pytest.raises(ValueError, match="the likelihood at site 'x' cannot give: they lie in"):
        assign_clusters(VaDE(6, 2, 3, hidden=(5,)), torch.tensor([[0.0] * 6, [0.5] * 6]))
