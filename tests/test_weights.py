"""The seam: weights and ledger against closed forms, brute force and stock Pyro."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, LooseLinearGaussian, Mixture
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from torch import nn

from pyrovae.models.base import structure
from pyrovae.objectives import ELBO, IWAE, ledger, log_weights


@pytest.mark.parametrize("num_particles", [1, 2, 7])
def test_exact_posterior_gives_log_likelihood(num_particles):
    pair = LinearGaussian()
    x = pair.sample(6)
    weights = log_weights(pair, x, num_particles=num_particles)
    assert weights.shape == (num_particles, 6)
    torch.testing.assert_close(weights, pair.log_prob(x).expand(num_particles, 6), rtol=0, atol=1e-12)


def same_seed(function):
    pyro.set_rng_seed(3)
    return function()


@pytest.mark.parametrize("num_particles", [1, 4])
def test_elbo_equals_stock_pyro_with_the_same_seed(num_particles):
    pair = LooseLinearGaussian()
    x = pair.sample(5)
    stock = {"num_particles": num_particles, "vectorize_particles": True, "max_plate_nesting": 1}
    for ours, pyros in [
        (ELBO(num_particles, closed_form=False), Trace_ELBO(**stock)),
        (ELBO(num_particles), TraceMeanField_ELBO(**stock)),
    ]:
        ours.differentiable_loss(pair.model, pair.guide, x)  # the dry run forks the random state
        got = same_seed(lambda ours=ours: ours.differentiable_loss(pair.model, pair.guide, x))
        want = same_seed(lambda pyros=pyros: pyros.differentiable_loss(pair.model, pair.guide, x))
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
        parameters = list(pair.parameters())
        for a, b in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(want, parameters), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("x_depends_on_c", [True, False])
def test_model_enumeration_equals_the_sum_by_hand(x_depends_on_c):
    pair = Mixture(x_depends_on_c)
    x = torch.tensor([-1.0, 0.4, 2.5, 5.0], dtype=torch.float64)
    drawn = ledger(pair, x, num_particles=3)
    z = drawn.values["z"]
    c = torch.arange(3.0, dtype=torch.float64)[:, None, None]
    joint = (
        torch.log_softmax(pair.logits, -1)[:, None, None]
        + dist.Normal(pair.loc[:, None, None], 1.0).log_prob(z)
        + dist.Normal(z + pair.shift * c, 1.0).log_prob(x)
    )  # (C, K, B)
    log_q = dist.Normal(0.5 * x, 1.2).log_prob(z)
    torch.testing.assert_close(drawn.log_weights(), torch.logsumexp(joint, 0) - log_q, rtol=1e-12, atol=1e-12)
    posterior = torch.softmax(joint, 0)
    log_p, log_q_entries, entropy = drawn.entries()
    expected_x = (posterior * dist.Normal(z + pair.shift * c, 1.0).log_prob(x)).sum(0)
    expected_c = (posterior * torch.log_softmax(pair.logits, -1)[:, None, None]).sum(0)
    torch.testing.assert_close(log_p["x"], expected_x.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_p["c"], expected_c.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(entropy, -(posterior * posterior.log()).sum(0).detach(), rtol=1e-9, atol=1e-10)
    total = sum(log_p.values()) - sum(log_q_entries.values()) + entropy
    torch.testing.assert_close(total, drawn.log_weights().detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_enumerated_elbo_equals_traceenum(num_particles):
    pair = Mixture()
    x = torch.tensor([-1.0, 0.4, 2.5], dtype=torch.float64)
    stock = TraceEnum_ELBO(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=1)
    ours = ELBO(num_particles)
    ours.differentiable_loss(pair.model, pair.guide, x)
    got = same_seed(lambda: ours.differentiable_loss(pair.model, pair.guide, x))
    want = same_seed(lambda: stock.differentiable_loss(pair.model, pair.guide, x))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    parameters = list(pair.parameters())
    for a, b in zip(torch.autograd.grad(got, parameters), torch.autograd.grad(want, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("x_depends_on_c", [True, False])
def test_beta_with_enumeration_is_the_power_formula(x_depends_on_c):
    pair, beta = Mixture(x_depends_on_c), 2.5
    x = torch.tensor([-1.0, 0.4, 2.5], dtype=torch.float64)
    drawn = ledger(pair, x, num_particles=2)
    z, c = drawn.values["z"], torch.arange(3.0, dtype=torch.float64)[:, None, None]
    log_prior = torch.log_softmax(pair.logits, -1)[:, None, None] + dist.Normal(pair.loc[:, None, None], 1.0).log_prob(
        z
    )
    log_x = dist.Normal(z + pair.shift * c, 1.0).log_prob(x)
    want = beta * torch.logsumexp(log_prior + log_x / beta, 0) - beta * dist.Normal(0.5 * x, 1.2).log_prob(z)
    torch.testing.assert_close(drawn.elbo(ELBO(beta=beta)._weight), want, rtol=1e-11, atol=1e-11)


def labelled_model(x):
    """M2: y ~ Cat, z ~ N(0, 1), x | z, y; the guide enumerates y and draws one z for each."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(x.new_tensor([0.2, 0.5, 0.3])))
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z + 2.0 * y, 0.8), obs=x)


def labelled_guide(x):
    with pyro.plate("data", len(x)):
        logits = torch.stack([-x, 0.3 * x, x], -1)
        y = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal(0.5 * (x - 2.0 * y), 0.9))


@pytest.mark.parametrize("num_particles", [1, 4])
def test_guide_enumeration_in_training_and_in_evaluation(num_particles):
    x = torch.tensor([-0.5, 1.0, 3.0], dtype=torch.float64)
    drawn = ledger((labelled_model, labelled_guide), x, num_particles=num_particles)
    z = drawn.values["z"].reshape(3, num_particles, 3)  # (Y, K, B): one draw for each label
    y = torch.arange(3.0, dtype=torch.float64)[:, None, None]
    log_q_y = torch.log_softmax(torch.stack([-x, 0.3 * x, x]), 0)  # (Y, B)
    log_p_y = x.new_tensor([0.2, 0.5, 0.3]).log()[:, None, None]
    log_w = (
        log_p_y
        + dist.Normal(x.new_zeros(()), 1.0).log_prob(z)
        + dist.Normal(z + 2 * y, 0.8).log_prob(x)
        - dist.Normal(0.5 * (x - 2 * y), 0.9).log_prob(z)
    )
    torch.testing.assert_close(drawn.log_weights(), torch.logsumexp(log_w, 0), rtol=1e-11, atol=1e-11)
    iwae_given_y = torch.logsumexp(log_w, 1) - math.log(num_particles)
    want = (log_q_y.exp() * (iwae_given_y - log_q_y)).sum(0)
    torch.testing.assert_close(IWAE(num_particles).per_datum(drawn), want, rtol=1e-11, atol=1e-11)
    elbo = (log_q_y.exp()[:, None] * (log_w - log_q_y[:, None])).sum(0)
    torch.testing.assert_close(drawn.elbo(closed_form=False), elbo, rtol=1e-11, atol=1e-11)
    log_p, log_q, entropy = drawn.entries()
    torch.testing.assert_close(sum(log_p.values()) - sum(log_q.values()) + entropy, elbo, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_q["y"][0], (log_q_y.exp() * log_q_y).sum(0), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(entropy, torch.zeros_like(elbo), rtol=0, atol=1e-10)


def test_guide_enumeration_after_a_sampled_site_is_averaged_in_each_particle():
    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.5 * x, 0.9))
            y = dist.Categorical(logits=torch.stack([-z, 0.3 * z, z], -1))
            pyro.sample("y", y, infer={"enumerate": "parallel"})

    x = torch.tensor([-0.5, 1.0, 3.0], dtype=torch.float64)
    drawn = ledger((labelled_model, guide), x, num_particles=4)
    z = drawn.values["z"]
    y = torch.arange(3.0, dtype=torch.float64)[:, None, None]
    log_q_y = torch.log_softmax(torch.stack([-z, 0.3 * z, z]), 0)  # (Y, K, B)
    log_w = (
        x.new_tensor([0.2, 0.5, 0.3]).log()[:, None, None]
        + dist.Normal(x.new_zeros(()), 1.0).log_prob(z)
        + dist.Normal(z + 2 * y, 0.8).log_prob(x)
        - dist.Normal(0.5 * x, 0.9).log_prob(z)
    )
    per_particle = (log_q_y.exp() * (log_w - log_q_y)).sum(0)
    torch.testing.assert_close(IWAE(4).per_datum(drawn), torch.logsumexp(per_particle, 0) - math.log(4))
    torch.testing.assert_close(drawn.log_weights(), torch.logsumexp(log_w, 0))


def test_enumeration_inside_nested_plates_equals_brute_force():
    """Two coins per datum share a bias b; each has its own side s, all enumerated in the model."""
    flips = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]], [[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    side_given_bias = torch.tensor([[0.2, 0.8], [0.6, 0.4]], dtype=torch.float64)
    heads = torch.tensor([0.3, 0.9], dtype=torch.float64)

    def model(x):  # x (2 datums, 3 words, 2 rows) laid out as (words, rows, data) on dims -3, -2, -1
        with pyro.plate("data", x.size(-1), dim=-1):
            b = pyro.sample("b", dist.Categorical(x.new_tensor([0.4, 0.6])), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("rows", x.size(-2), dim=-2):
                s = pyro.sample("s", dist.Categorical(side_given_bias[b]), infer={"enumerate": "parallel"})
                with pyro.plate("words", x.size(-3), dim=-3):
                    pyro.sample("x", dist.Bernoulli(heads[s] * torch.sigmoid(z)), obs=x)

    def guide(x):
        with pyro.plate("data", x.size(-1), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 0.5))

    x = flips.permute(2, 1, 0).contiguous()  # (3 words, 2 rows, 2 data)
    drawn = ledger((model, guide), x, num_particles=2)
    z = drawn.values["z"].reshape(2, 2)  # (K, B)
    want = torch.zeros(2, 2, dtype=torch.float64)
    for k in range(2):
        for n in range(2):
            total = 0.0
            for b in range(2):
                product = [0.4, 0.6][b]
                for row in range(2):
                    side = 0.0
                    for s in range(2):
                        p = (heads[s] * torch.sigmoid(z[k, n])).item()
                        words = [p if v else 1 - p for v in x[:, row, n].tolist()]
                        side += side_given_bias[b, s].item() * math.prod(words)
                    product *= side
                total += product
            want[k, n] = math.log(total)
    want = want + dist.Normal(z * 0, 1.0).log_prob(z) - dist.Normal(z * 0, 0.5).log_prob(z)
    torch.testing.assert_close(drawn.log_weights(), want, rtol=1e-10, atol=1e-10)
    log_p, log_q, entropy = drawn.entries()
    torch.testing.assert_close(sum(log_p.values()) - sum(log_q.values()) + entropy, want, rtol=1e-9, atol=1e-9)


def test_masks_subsampling_and_scale_are_kept_apart():
    x = torch.tensor([-0.5, 1.0, 3.0], dtype=torch.float64)
    observed = torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", 30, subsample=torch.arange(3)):
            with pyro.poutine.scale(scale=0.25):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.poutine.mask(mask=observed):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            with pyro.plate("words", 8, subsample=torch.arange(2), dim=-2):
                pyro.sample("w", dist.Normal(z, 1.0), obs=torch.ones(2, 3, dtype=torch.float64))

    def guide(x):
        with pyro.plate("data", 30, subsample=torch.arange(3)), pyro.poutine.scale(scale=0.25):
            pyro.sample("z", dist.Normal(x, 0.5))

    drawn = ledger((model, guide), x, num_particles=2)
    z = drawn.values["z"].reshape(2, 3)
    log_p, log_q = dist.Normal(0.0, 1.0).log_prob(z), dist.Normal(x, 0.5).log_prob(z)
    log_x = dist.Normal(z, 1.0).log_prob(x) * observed
    log_words = 8 * dist.Normal(z, 1.0).log_prob(torch.ones(()).double())  # 2 words stand for 8
    torch.testing.assert_close(drawn.log_weights(), log_p + log_x + log_words - log_q)
    torch.testing.assert_close(drawn.elbo(closed_form=False), 0.25 * (log_p - log_q) + log_x + log_words)
    assert (drawn.size, drawn.rows) == (30, 3)
    stock = Trace_ELBO(max_plate_nesting=2)
    ours = ELBO(closed_form=False)
    ours.differentiable_loss(model, guide, x)
    got = same_seed(lambda: ours.differentiable_loss(model, guide, x))
    torch.testing.assert_close(got, same_seed(lambda: stock.differentiable_loss(model, guide, x)))


def test_closed_form_kl_only_where_latent_parents_come_first():
    """z2 -> z1 -> x with a bottom-up guide: KL of z2 given z1 is valid, of z1 it is not."""

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(()), 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def bottom_up(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.5 * x, 0.8))
            pyro.sample("z2", dist.Normal(0.5 * z1, 0.6))

    def top_down(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.3 * x, 0.8))
            pyro.sample("z1", dist.Normal(0.5 * (x + z2), 0.6))

    x = torch.full((4000,), 0.7, dtype=torch.float64)
    pyro.set_rng_seed(0)
    assert set(ledger((model, top_down), x).closed_form_kl()) == {"z1", "z2"}
    drawn = ledger((model, bottom_up), x, num_particles=25)
    kl = drawn.closed_form_kl()
    assert set(kl) == {"z2"}
    z1 = drawn.values["z1"]
    want = torch.distributions.kl_divergence(dist.Normal(0.5 * z1, 0.6), dist.Normal(0.0, 1.0))
    torch.testing.assert_close(kl["z2"], want)
    for guide in (bottom_up, top_down):
        with_kl = ledger((model, guide), x, num_particles=25).elbo(closed_form=True).flatten()
        sampled = ledger((model, guide), x, num_particles=25).elbo(closed_form=False).flatten()
        error = math.sqrt(with_kl.var() / len(with_kl) + sampled.var() / len(sampled))
        print(f"closed form {with_kl.mean():.5f}, Monte Carlo {sampled.mean():.5f}, standard error {error:.5f}")
        assert abs(with_kl.mean() - sampled.mean()) < 4 * error


def test_factor_and_auxiliary_sites_count():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.factor("extra", 2.0 * z)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(2 * a, log_density=x.new_full((2,), -math.log(2))))

    x = torch.tensor([0.3, -1.0], dtype=torch.float64)
    drawn = ledger((model, guide), x, num_particles=3)
    z = drawn.values["z"]
    want = (
        dist.Normal(0.0, 1.0).log_prob(z) + 2 * z + dist.Normal(z, 1.0).log_prob(x)
        - dist.Normal(2 * x, 2.0).log_prob(z)
    )  # fmt: skip
    torch.testing.assert_close(drawn.log_weights(), want)


@pytest.mark.parametrize("rows", [4, 12])
def test_kls_outside_the_data_plate_are_in_closed_form_too(rows):
    """They were sampled, whatever `closed_form`."""

    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 2.0))
        with pyro.plate("data", 12, subsample=torch.arange(len(x))):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(pyro.param("loc", x.new_ones(())), 0.5))

    x, losses = torch.randn(rows, dtype=torch.float64), []
    for objective in (ELBO(), TraceMeanField_ELBO(), ELBO(closed_form=False), Trace_ELBO()):
        pyro.set_rng_seed(0)
        losses.append(objective.loss(model, guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    assert losses[2] == pytest.approx(losses[3], rel=1e-12)
    assert abs(losses[0] - losses[2]) > 1e-3


def test_global_latents_have_no_weight_but_an_elbo():
    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 2.0))
        with pyro.plate("data", 12, subsample=torch.arange(3)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(x.new_ones(()), 0.5))
        with pyro.plate("data", 12, subsample=torch.arange(3)):
            pyro.sample("z", dist.Normal(x, 0.5))

    x = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"latent sites \['w'\] lie outside the plate 'data'"):
        log_weights((model, guide), x)
    for particles in (1, 3):
        ours = ELBO(particles, closed_form=False)
        stock = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
        ours.differentiable_loss(model, guide, x)
        got = same_seed(lambda ours=ours: ours.differentiable_loss(model, guide, x))
        want = same_seed(lambda stock=stock: stock.differentiable_loss(model, guide, x))
        torch.testing.assert_close(got, want, rtol=1e-11, atol=0)


def test_pairs_that_do_not_vectorise_are_looped_over():
    """A network with view(len(x), -1) breaks on (K, B, ...): the same answer comes from a loop, with one warning."""

    class Flattening(LinearGaussian):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                loc = z.view(len(x), -1) @ self.weight.T + self.bias
                pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)

    pair = Flattening()
    x = pair.sample(6)
    with pytest.warns(UserWarning, match="does not vectorise over particles"):
        weights = log_weights(pair, x, num_particles=3)
    torch.testing.assert_close(weights, pair.log_prob(x).expand(3, 6), rtol=0, atol=1e-12)


class Normed(LooseLinearGaussian):
    """A batch norm after the decoder, whose features are the rows of (K, B, D) where B is D."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5, dtype=torch.float64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = self.norm(z @ self.weight.T + self.bias)
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)


@pytest.mark.parametrize("rows", [4, 5, 6])
def test_a_batch_norm_is_no_norm_of_rows_where_these_are_as_many(rows):
    """A new one is the identity in evaluation mode along any dim, so that B == D gave the right weights, until it was
    trained: the rows of particle k were normalised together, each by itself.
    """
    pair, x = Normed().train(), LinearGaussian().sample(rows)
    with pytest.warns(UserWarning, match="does not vectorise over particles"):
        weights = same_seed(lambda: log_weights(pair, x, num_particles=3))
    again = same_seed(lambda: torch.cat([log_weights(pair, x) for _ in range(3)]))
    torch.testing.assert_close(weights, again, rtol=0, atol=0)


def test_programs_of_one_number_of_rows_are_looked_at_with_these_alone():
    """A guide with parameters for each datum, or a model given x, takes no fewer: particles are another thing."""

    class Local(LooseLinearGaussian):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.randn(6, 2, dtype=torch.float64))

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))

    pair = Local()
    x = pair.sample(6)
    assert log_weights(pair, x, num_particles=3).shape == (3, 6)
    pair = LooseLinearGaussian()
    assert log_weights((poutine.condition(pair.model, {"x": x}), pair.guide), x, num_particles=3).shape == (3, 6)


def test_a_silently_wrong_broadcast_is_found():
    """Normalising over dim 0 is over the batch for (B, L) and over particles for (K, B, L): no error, another value."""

    class Mixing(LooseLinearGaussian):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                loc = (z - z.mean(0)) @ self.weight.T + self.bias
                pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)

    pair = Mixing()
    with pytest.warns(UserWarning, match="site 'x' scores differently"):
        log_weights(pair, pair.sample(6), num_particles=3)


def test_importance_bounds_are_ordered_below_the_log_likelihood():
    pair = LooseLinearGaussian()
    x = pair.sample(4)
    pyro.set_rng_seed(1)
    repeats = x.repeat(4000, 1)
    values = {}
    for particles in (1, 2, 4, 8):
        bound = IWAE(particles).per_datum(ledger(pair, repeats, num_particles=particles)).view(4000, 4).mean(1)
        values[particles] = (bound.mean().item(), bound.std().item() / math.sqrt(4000))
    exact = pair.log_prob(x).mean().item()
    print(values, "log p(x)", exact)
    elbo = pair.elbo(x).mean().item()
    assert abs(values[1][0] - elbo) < 4 * values[1][1]
    for low, high in ((1, 2), (2, 4), (4, 8)):
        assert values[low][0] + 4 * values[low][1] < values[high][0]
    assert values[8][0] < exact


BAD = {
    "latent of the model missing in the guide": (
        lambda x: [pyro.sample("z", dist.Normal(0.0, 1.0)), pyro.sample("x", dist.Normal(x, 1.0), obs=x)],
        lambda x: None,
        r"the model samples \['z'\], which the guide",
    ),
    "site of the guide missing in the model": (
        lambda x: pyro.sample("x", dist.Normal(x, 1.0), obs=x),
        lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)),
        r"the guide samples \['z'\], which the model",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_sites_that_do_not_match_are_named(case):
    model, guide, message = BAD[case]

    def in_plate(function):
        return lambda x: pyro.plate("data", len(x))(function)(x)

    with pytest.raises(ValueError, match=message):
        structure((in_plate(model), in_plate(guide)), torch.zeros(3))


def test_plates_are_found_or_asked_for():
    def model(x, names=("rows",), dims=(-1,)):
        for name, dim in zip(names, dims, strict=True):
            with pyro.plate(name, len(x), dim=dim):
                pyro.sample(
                    f"x_{name}", dist.Normal(x.new_zeros(len(x), 1), 1.0) if dim == -2 else dist.Normal(x, 1.0), obs=x
                )

    empty = lambda x: None  # noqa: E731
    assert structure((model, empty), torch.zeros(3)).plate == "rows"
    both = lambda x: model(x, ("rows", "columns"), (-1, -1))  # noqa: E731
    with pytest.raises(ValueError, match=r"several plates at dim -1, \['rows', 'columns'\]; pass plate="):
        structure((both, empty), torch.zeros(3))
    assert structure((both, empty), torch.zeros(3), plate="columns").plate == "columns"
    with pytest.raises(ValueError, match="plate='other' is no plate of the model"):
        structure((both, empty), torch.zeros(3), plate="other")
    with pytest.raises(ValueError, match="no plate over the data"):
        structure((lambda x: pyro.sample("x", dist.Normal(x, 1.0).to_event(1), obs=x), empty), torch.zeros(3))

    def latent(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="guide site 'z' is outside the plate 'data'"):
        structure((latent, lambda x: pyro.sample("z", dist.Normal(x, 1.0).to_event(1))), torch.zeros(3))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_particles is 0"):
        ledger(LinearGaussian(), torch.zeros(2, 5, dtype=torch.float64), num_particles=0)
    for wrong in (0, True, 2.0):
        with pytest.raises(ValueError, match=f"num_particles is {wrong}; pass a whole number of at least 1"):
            IWAE(wrong)
    with pytest.raises(ValueError, match="beta is -1"):
        ELBO(beta=-1)
    with pytest.raises(ValueError, match=r"beta is -1\.0, a number of at least 0"):
        ELBO(beta=torch.tensor(-1.0))
    with pytest.raises(ValueError, match=r"beta\['z'\] is nan"):
        ELBO(beta={"z": torch.tensor([1.0, math.nan])})
    assert ELBO(beta=(beta := torch.tensor(2.0, requires_grad=True))).beta is beta
    with pytest.raises(TypeError, match="not a model with its guide"):
        log_weights(3, torch.zeros(2))


def test_a_discrete_guide_is_refused_by_name():
    def guide(x):
        with pyro.plate("data", len(x)):
            logits = pyro.param("logits", torch.zeros(3, dtype=torch.float64))
            pyro.sample("y", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal(x, 1.0))

    with (
        pyro.get_param_store().scope(),
        pytest.raises(ValueError, match=r"guide site 'y' \(Categorical\) has no repar"),
    ):
        ELBO().differentiable_loss(labelled_model, guide, torch.zeros(3, dtype=torch.float64))


def test_a_factor_outside_the_plate_belongs_to_no_weight():
    def model(x):
        pyro.factor("shared", x.new_tensor(3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x * 0, 1.0), obs=x)

    x = torch.tensor([0.3, -1.0], dtype=torch.float64)
    torch.testing.assert_close(log_weights((model, lambda x: None), x)[0], dist.Normal(x * 0, 1.0).log_prob(x))
    want = -3.0 - dist.Normal(x * 0, 1.0).log_prob(x).sum()  # once for all data, in a loss over all of them
    torch.testing.assert_close(ELBO().differentiable_loss(model, lambda x: None, x), want)


@pytest.mark.parametrize(
    "handler", [pyro.poutine.mask(mask=torch.tensor([True, False])), pyro.poutine.scale(scale=0.5)]
)
def test_no_closed_form_where_model_and_guide_weigh_a_site_differently(handler):
    def model(x):
        with pyro.plate("data", len(x)):
            with handler:
                z = pyro.sample("z", dist.Normal(x * 0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.5))

    x = torch.tensor([0.3, -1.0], dtype=torch.float64)
    drawn = ledger((model, guide), x, num_particles=3)
    assert drawn.closed_form_kl() == {}
    torch.testing.assert_close(drawn.elbo(), drawn.elbo(closed_form=False))


def test_an_enumerated_value_of_probability_zero_counts_nothing():
    """As in TraceEnum_ELBO: 0 x inf was NaN, in value and gradient."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(c.float(), 1.0), obs=x)

    def guide(x):
        logits = pyro.param("logits", torch.tensor([[0.3, 0.1, 0.2]]).repeat(3, 1))
        closed = logits.masked_fill(torch.tensor([False, False, True]), -math.inf)
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=closed), infer={"enumerate": "parallel"})

    x = torch.tensor([0.5, -1.0, 2.0])
    found = []
    for objective in (TraceEnum_ELBO(max_plate_nesting=1), ELBO(), IWAE(1)):
        pyro.clear_param_store()
        loss = objective.loss_and_grads(model, guide, x)
        found.append((torch.tensor(float(loss)), pyro.param("logits").grad.clone()))
    for value, gradient in found[1:]:
        torch.testing.assert_close((value, gradient), found[0], check_dtype=False)
    c = torch.arange(2.0)
    joint = torch.tensor([0.2, 0.3]).log() + dist.Normal(c, 1.0).log_prob(x[:, None])
    q = torch.tensor([0.3, 0.1]).log_softmax(0)
    assert -found[0][0].item() == pytest.approx((q.exp() * (joint - q)).sum().item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")  # where y is known
def test_an_objective_knows_the_calls_of_one_pair_apart():
    """Pyro's SS-VAE: a labelled batch and an unlabelled one by turns, in any order, by position and by keyword."""

    def model(x, y=None, *, first=False):
        y = torch.zeros(len(x)) if first else y
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(x.new_tensor([0.3, 0.7])), obs=y)
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + pyro.param("w", x.new_tensor(1.0)) * y, 1.0), obs=x)

    def guide(x, y=None, *, first=False):
        y = torch.zeros(len(x)) if first else y
        with pyro.plate("data", len(x)):
            if y is None:
                logits = torch.stack([x, pyro.param("c", x.new_tensor(0.5)) * x], -1)
                y = pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(0.5 * x + 0.1 * y, 0.7))

    x, y = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64), torch.tensor([0, 1, 1])
    calls = [((x, y), {}), ((x,), {}), ((x, None), {}), ((x,), {"y": y}), ((x,), {"y": None})]
    calls += [((x,), {"first": first}) for first in (True, False)]
    stock = TraceEnum_ELBO(max_plate_nesting=1)
    for order in (calls, calls[::-1]):
        objective = ELBO(closed_form=False)
        for args, kwargs in order * 2:
            objective.loss(model, guide, *args, **kwargs)  # the first of each kind is preceded by a dry run
            got, want = (same_seed(partial(of.loss, model, guide, *args, **kwargs)) for of in (objective, stock))
            assert got == pytest.approx(want, rel=1e-12)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), ELBO())
    assert all(math.isfinite(svi.step(*args, **kwargs)) for args, kwargs in calls)


def test_an_objective_knows_the_methods_of_one_object_apart():
    class Two(Mixture):
        def plain(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc[0], 1.0), obs=x)

        def nothing(self, x):
            pass

    pair, objective = Two(), ELBO()
    x = torch.tensor([-1.0, 0.4, 2.5], dtype=torch.float64)
    want = -dist.Normal(pair.loc[0], 1.0).log_prob(x).sum().item()
    assert objective.loss(pair.plain, pair.nothing, x) == pytest.approx(want)
    objective.loss(pair.model, pair.guide, x)
    got, want = (same_seed(partial(of.loss, pair.model, pair.guide, x)) for of in (objective, ELBO()))
    assert got == pytest.approx(want)


def test_an_objective_runs_a_pair_dry_once_for_calls_alike():
    pair, runs = LinearGaussian(), []

    def model(x, step=0):
        runs.append(step)
        return pair.model(x)

    def guide(x, step=0):
        return pair.guide(x)

    objective = ELBO()
    for step in range(4):
        objective.loss(model, guide, pair.sample(3 + step), step)
    assert len(runs) == 4 + 1
