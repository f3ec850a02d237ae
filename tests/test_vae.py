"""The VAE's own density against the formula by hand, and what its slots take."""

import math
from functools import partial

import pyro
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.nets import MLP


def test_log_weights_are_the_formula_by_hand():
    torch.manual_seed(0)
    vae = pv.VAE((6,), latent_dim=3, hidden=(5,)).double()
    x = torch.rand(4, 6, dtype=torch.float64).round()
    drawn = pv.ledger(vae, x, num_particles=7)
    z = drawn.values["z"]
    log_prior = (-(z**2) / 2 - math.log(2 * math.pi) / 2).sum(-1)
    loc, log_variance = vae.posterior.head(vae.encoder(x))
    scale = 1e-4 + torch.exp(log_variance / 2)
    log_q = (-(((z - loc) / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2).sum(-1)
    (logits,) = vae.likelihood.head(vae.decoder(z))
    p = torch.sigmoid(logits)
    log_likelihood = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
    torch.testing.assert_close(drawn.log_weights(), log_prior + log_likelihood - log_q)


def test_slots_take_modules_classes_and_partials():
    encoder = nn.Sequential(nn.Flatten(-2), nn.Linear(8, 7), nn.ReLU())  # says nothing of its shapes
    vae = pv.VAE(
        (2, 4),
        3,
        encoder=encoder,
        decoder=MLP(3, (9,)),
        likelihood=partial(pv.conditionals.FixedNormal, scale=0.5),
        prior=pv.priors.StandardNormal(3),
    )
    assert vae.encoder is encoder
    assert pv.log_weights(vae, torch.randn(5, 2, 4), num_particles=2).shape == (2, 5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pv.VAE((4,), 0), ValueError, "latent_dim is 0"),
        (lambda: pv.VAE((4,), 2.5), TypeError, "latent_dim is 2.5"),
        (lambda: pv.VAE((4,), (2, 3)), ValueError, r"latent_dim is \(2, 3\), expected one .*; pass latent_dim=6"),
        (lambda: pv.VAE(4, 2, hidden=0), ValueError, "hidden is 0"),
        (
            lambda: pv.VAE(5, 2, likelihood=pv.conditionals.Bernoulli(200, 1)),
            ValueError,
            r"likelihood is a Bernoulli of event shape \(1,\), wanted is \(5,\); pass a likelihood of event shape",
        ),
        (
            lambda: pv.VAE(5, 2, prior=pv.priors.StandardNormal(3)),
            ValueError,
            r"prior is a StandardNormal of event shape \(3,\), wanted is \(2,\)",
        ),
        (
            lambda: pv.VAE(5, 2, posterior=pv.conditionals.DiagonalNormal(200, 1)),
            ValueError,
            r"posterior is a DiagonalNormal of event shape \(1,\), wanted is \(2,\)",
        ),
        (lambda: pv.VAE((4,), 2, decoder=MLP), TypeError, "decoder is MLP, which takes no event_shape"),
        (lambda: pv.VAE((4,), 2, prior="normal"), TypeError, "prior is 'normal', not a module nor a class"),
        (lambda: pv.VAE((4,), 2, likelihood=lambda *_: 3), TypeError, "likelihood is <function"),
    ],
)
def test_bad_slots_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_one_hidden_size_is_a_layer_of_it():
    for make in (partial(pv.VAE, 4, 2), partial(pv.CVAE, 4, 2), partial(pv.HierarchicalVAE, 4, (2, 1))):
        one, layer = make(hidden=6).state_dict(), make(hidden=(6,)).state_dict()
        assert {name: value.shape for name, value in one.items()} == {n: v.shape for n, v in layer.items()}


class Embedded(nn.Module):
    """Codes to the mean of their vectors."""

    def __init__(self, event_shape):
        super().__init__()
        self.table = nn.Embedding(3, 7)

    def forward(self, x):
        return self.table(x).mean(-2)


def test_an_encoder_of_whole_numbers_has_features_too():
    pyro.set_rng_seed(0)
    x = torch.randint(3, (8, 5))
    vae = pv.VAE(5, 2, encoder=Embedded, hidden=(6,), likelihood=partial(pv.conditionals.Categorical, num_classes=3))
    drawn = pv.ledger(vae, x, num_particles=3)
    z = drawn.values["z"]
    want = vae.prior().log_prob(z) + vae.likelihood(vae.decoder(z)).log_prob(x)
    want = want - vae.posterior(vae.encoder.table.weight[x].mean(1)).log_prob(z)
    torch.testing.assert_close(drawn.log_weights(), want)
    before = vae.encoder.table.weight.clone()
    pv.fit(vae, x, max_epochs=1, progress=False)
    assert (vae.encoder.table.weight != before).any(1).all()


def test_an_encoder_that_takes_no_row_of_zeros_has_to_state_its_features():
    with pytest.raises(ValueError, match=r"Linear does not run on zeros of shape \(1, 4\) \(.*\); .* feature_shape"):
        pv.VAE(4, 2, encoder=nn.Linear(5, 3))


def test_another_event_shape_is_refused_before_training():
    with pytest.raises(ValueError, match=r"x has event shape \(5,\), the network expects \(4,\)"):
        pv.fit(pv.VAE((4,), 2), torch.ones(8, 5), max_epochs=1, progress=False)


def test_an_objective_that_weighs_whole_batches_is_refused():
    with pytest.raises(
        TypeError, match=r"which weighs whole batches and not data; pass pyrovae.ReweightedWakeSleep\(5\)"
    ):
        pv.fit(pv.VAE((4,), 2), torch.ones(8, 4), objective=pyro.infer.ReweightedWakeSleep(num_particles=2))


def test_networks_are_exported_without_pyro():
    vae = pv.VAE((1, 8, 8), 2)
    x = torch.rand(3, 1, 8, 8)
    exported = torch.export.export(vae.encoder, (x,)).module()
    torch.testing.assert_close(exported(x), vae.encoder(x))
