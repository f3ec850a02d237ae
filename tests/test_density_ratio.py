"""Density ratios against known ones, and the laws of training a critic by turns with its pair."""

import math
from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from torch import nn

from pyrovae import conditionals, nets
from pyrovae.evaluation.predictive import reconstruct
from pyrovae.graphs.backends import interpreted
from pyrovae.models import VAE
from pyrovae.models.base import structure
from pyrovae.objectives import (
    ELBO,
    AdaptiveContrast,
    AdversarialAutoencoder,
    AdversarialVB,
    DensityRatio,
    FactorVAE,
    ImplicitPrior,
    JointRatio,
    log_weights,
)
from pyrovae.objectives.density_ratio import logistic_loss, shuffled
from pyrovae.training import checkpoint
from pyrovae.training import critics as critics_module
from pyrovae.training import loop as loop_module
from pyrovae.training.compiled import CompiledUpdate
from pyrovae.training.em import fit_em
from pyrovae.training.fit import fit
from pyrovae.training.loop import Callback
from pyrovae.training.runs import load
from pyrovae.training.step import Step

BITS = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).round()

quietly = partial(fit, progress=False, seed=0)


def trained_ratio(draw, steps, *event_shapes, hidden=(64, 64), lr=3e-3):
    """A ratio trained on fresh samples `draw() -> (of_q, of_p)`."""
    torch.manual_seed(0)
    ratio = DensityRatio(*event_shapes, hidden=hidden)
    optimizer = torch.optim.Adam(ratio.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = ratio.loss(*draw())
        loss.backward()
        optimizer.step()
        schedule.step()
    return ratio, loss.item()


def test_the_ratio_of_two_gaussians_and_their_kl_are_recovered():
    q = dist.MultivariateNormal(torch.tensor([0.7, -0.3]), torch.tensor([[0.8, 0.3], [0.3, 0.6]]))
    p = dist.MultivariateNormal(torch.zeros(2), torch.eye(2))
    ratio, _ = trained_ratio(lambda: ((q.sample((1000,)),), (p.sample((1000,)),)), 1500, 2)
    torch.manual_seed(1)
    v = q.sample((20_000,))
    with torch.no_grad():
        error = (ratio(v) - (q.log_prob(v) - p.log_prob(v))).abs().mean().item()
        kl = ratio(v).mean().item()
    want = torch.distributions.kl_divergence(q, p).item()
    print(f"mean error {error}, KL {kl}, exactly {want}")
    assert error < 0.05
    assert kl == pytest.approx(want, abs=0.03)


def test_q_has_label_1_and_the_loss_is_half_of_each():
    """Of a logit that is a constant t the loss is 1/2 (softplus(-t) + softplus(t)); more so for q it falls."""
    ratio = DensityRatio(1, hidden=(4,)).double()
    with torch.no_grad():
        ratio.head.layer.weight.zero_()
        ratio.head.layer.bias.fill_(0.7)
    v = torch.zeros(3, 1, dtype=torch.float64)
    want = (math.log1p(math.exp(-0.7)) + math.log1p(math.exp(0.7))) / 2
    assert ratio.loss((v,), (v[:2],)).item() == pytest.approx(want, abs=1e-12)
    high = nn.Linear(1, 1).double()
    with torch.no_grad():
        high.weight.fill_(5.0)
        high.bias.zero_()
    objective = FactorVAE(high)
    assert objective.critic is high
    of_q, of_p = high(v + 1), high(v - 1)
    assert logistic_loss(of_q, of_p) < 0.01 < 4.9 < logistic_loss(of_p, of_q)


def test_several_values_and_another_network():
    x, z = torch.rand(5, 1, 2, 2), torch.rand(3, 5, 2)
    assert DensityRatio((1, 2, 2), 2, hidden=(8,))(x, z).shape == (3, 5)
    network = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Dropout(0.9))
    assert DensityRatio(2, network=network)(z).shape == (3, 5)
    assert network.training
    with pytest.raises(ValueError, match="event_shapes is empty"):
        DensityRatio()
    with pytest.raises(ValueError, match="event_shapes"):
        DensityRatio(3)(z)


# Laws of every objective with a critic --------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Features with layers that behave differently in training and in evaluation."""

    feature_shape = (6,)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Dropout(0.5))

    def forward(self, z):
        return self.layers(z)


class Normalised(nn.Module):
    feature_shape = (5,)

    def __init__(self, event_shape):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(*event_shape, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3))

    def forward(self, x):
        return self.layers(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def vae(seed=0, **options):
    torch.manual_seed(seed)
    return VAE(4, 2, **{"hidden": (8,), **options})


def ratio(seed=0, **options):
    torch.manual_seed(seed)
    return DensityRatio(2, **{"hidden": (8,), **options})


def of_both():
    torch.manual_seed(0)
    return DensityRatio(4, 2, hidden=(8,))


IMPLICIT = partial(conditionals.Implicit, hidden=(5,))
PARTS = {  # of the pair that an objective gets, beside the default ones
    "adversarial VB": {"posterior": IMPLICIT},
    "adaptive contrast": {"posterior": IMPLICIT},
    "joint ratio": {"posterior": IMPLICIT, "likelihood": IMPLICIT},
    "adversarial autoencoder": {"posterior": partial(IMPLICIT, noise_dim=0)},
}


def pair_for(name, **options):
    return vae(**PARTS.get(name, {}), **options)


OWNERS = {
    "FactorVAE": lambda: FactorVAE(ratio(), gamma=3.0, critic_steps=2),
    "ImplicitPrior": lambda: ImplicitPrior(ratio(), critic_steps=3),
    "adversarial VB": lambda: AdversarialVB(of_both(), critic_steps=2),
    "adaptive contrast": lambda: AdversarialVB(
        AdaptiveContrast(of_both(), nn.Sequential(nets.MLP(4, (6,)), conditionals.DiagonalNormal(6, 2))), critic_steps=2
    ),
    "joint ratio": lambda: JointRatio(of_both(), critic_steps=2),
    "adversarial autoencoder": lambda: AdversarialAutoencoder(ratio(), weight=3.0, critic_steps=2),
    "with dropout": lambda: FactorVAE(ratio(network=Noisy()), gamma=3.0, critic_steps=2),
}
owners = pytest.mark.parametrize("name", OWNERS)


def state(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@owners
def test_the_pairs_gradient_does_not_reach_the_critic(name):
    objective, pair = OWNERS[name](), pair_for(name)
    Step(pair, objective, structure(pair, BITS)).backward(BITS)
    assert all(parameter.grad is None for parameter in objective.critic.parameters())
    assert all(parameter.grad is not None for parameter in pair.parameters())
    assert objective.critic.training


@owners
def test_the_critics_gradient_does_not_reach_the_pair(name):
    objective, pair = OWNERS[name](), pair_for(name, encoder=Normalised)
    before = state(pair)
    objective.critic_loss(pair, BITS).backward()
    assert all(parameter.grad is None for parameter in pair.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in objective.critic.parameters())
    assert same(state(pair), before), "statistics of batches moved"
    assert all(module.training for module in pair.modules())


@owners
def test_the_pair_depends_on_the_critic_and_its_evaluation_does_not(name):
    """The logit is in the loss, not in the pair."""
    objective, pair, values, weights = OWNERS[name](), pair_for(name), [], []
    for shift in (0.0, 1.5):
        with torch.no_grad():
            getattr(objective.critic, "ratio", objective.critic).head.layer.bias.add_(shift)
        pyro.set_rng_seed(1)
        values.append(Step(pair, objective, structure(pair, BITS))(BITS).item())
        pyro.set_rng_seed(1)
        weights.append(reconstruct(pair, BITS) if name in PARTS else log_weights(pair, BITS, num_particles=3))
    weight = {"ImplicitPrior": -1.0, "adversarial VB": 1.0, "adaptive contrast": 1.0, "joint ratio": 1.0}.get(name, 3.0)
    assert values[1] - values[0] == pytest.approx(1.5 * weight, abs=1e-5)
    assert torch.equal(*weights)


@owners
def test_fit_trains_both_in_place_and_returns_the_pair_bare(name):
    objective, pair = OWNERS[name](), pair_for(name)
    before, critic = (state(pair), state(objective.critic)), objective.critic
    run = quietly(pair, BITS, objective=objective, batch_size=16, max_epochs=2, validation=0.25)
    assert run.pair is pair
    assert run.objective is objective
    assert objective.critic is critic
    assert not any(torch.equal(value, before[0][n]) for n, value in state(pair).items())
    assert not any(torch.equal(value, before[1][n]) for n, value in state(critic).items())
    assert len(run.history["critic_loss"]) == 2
    assert 0.3 < run.history["critic_loss"][-1] < (8.0 if name == "adaptive contrast" else 1.5)  # -log r is added
    assert all(name.startswith("objective/critic.") or name in dict(pair.named_buffers()) for name in run.known.buffers)
    again = quietly(pair, BITS, objective=objective, batch_size=16, max_epochs=1)
    assert again.objective.critic is critic


@owners
def test_an_update_of_one_leaves_the_other_bit_for_bit(name, monkeypatch):
    """What is seen between the updates of a run."""
    objective, pair, seen = OWNERS[name](), pair_for(name, encoder=Normalised), []
    learn = critics_module.CriticTraining.learn

    def watched(self, step):
        start = state(pair), state(objective.critic)
        learn(self, step)
        seen.append((start, (state(pair), state(objective.critic))))

    monkeypatch.setattr(critics_module.CriticTraining, "learn", watched)
    quietly(pair, BITS, objective=objective, batch_size=16, max_epochs=2)
    assert len(seen) == 6
    for (pair_before, critic_before), (pair_after, critic_after) in seen:
        assert same(pair_before, pair_after)
        assert not same(critic_before, critic_after)
    for (_, (pair_before, critic_before)), ((pair_after, critic_after), _) in pairwise(seen):
        assert not same(pair_before, pair_after)
        assert same(critic_before, critic_after)


def test_the_critic_has_batches_of_its_own(monkeypatch):
    """Passes over all rows in other orders than the pair's, one after the other."""
    x, seen = torch.arange(12.0)[:, None].expand(-1, 4) / 12, {"pair": [], "critic": []}
    for cls, name in ((Step, "pair"), (critics_module.CriticStep, "critic")):

        def look(self, x, forward=cls.forward, name=name):
            seen[name].append(x[:, 0])
            return forward(self, x)

        monkeypatch.setattr(cls, "forward", look)
    pair = vae(likelihood=conditionals.LearnedNormal)
    quietly(pair, x, objective=FactorVAE(ratio(), critic_steps=3), batch_size=5, max_epochs=2)
    passes = {name: torch.cat(batches).split(12) for name, batches in seen.items()}
    assert {name: len(orders) for name, orders in passes.items()} == {"pair": 2, "critic": 6}
    orders = [order for each in passes.values() for order in each]
    assert all(torch.equal(order.sort().values, x[:, 0]) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 8


@owners
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_captured_updates_are_the_eager_ones(name, precision, monkeypatch, recwarn):
    class Interpreted(CompiledUpdate):
        def __init__(self, *args, **options):
            super().__init__(*args, **options, backend=interpreted)

    monkeypatch.setattr(loop_module, "CompiledUpdate", Interpreted)
    ends = []
    for compiled in (False, True):
        objective, pair = OWNERS[name](), pair_for(name)
        options = {"precision": precision, "batch_size": 16, "max_epochs": 3, "clip_norm": 1.0, "validation": 0.25}
        run = quietly(pair, BITS, objective=objective, compile=compiled, **options)
        assert next(objective.critic.parameters()).dtype == getattr(torch, precision)
        columns = {c: torch.tensor(run.history[c]) for c in ("train_loss", "validation_loss", "critic_loss")}
        ends.append({**columns, **state(pair), **{f"critic {n}": v for n, v in state(objective.critic).items()}})
    assert not [str(w.message) for w in recwarn if "eager" in str(w.message)]
    for key, value in ends[0].items():
        tolerance = 1e-10 if precision == "float64" else 1e-4
        torch.testing.assert_close(ends[1][key], value, rtol=tolerance, atol=tolerance)


class At(Callback):
    """Ends the run after a step."""

    def __init__(self, step):
        self.step = step

    def on_step(self, run):
        if run.step == self.step:
            run.interrupted = True


@owners
@pytest.mark.parametrize("stop", [2, 3, 4, 7])  # of 3 steps an epoch, whose critic takes 6 or 9 batches
def test_a_resumed_run_is_the_uninterrupted_one(name, stop, tmp_path):
    ends = []
    for out in ("straight", "parted"):
        options = {"batch_size": 10, "max_epochs": 4, "validation": 0.25, "out": tmp_path / out, "patience": 4}
        objective, pair = OWNERS[name](), pair_for(name)
        if out == "parted":
            quietly(pair, BITS, objective=objective, callbacks=[At(stop)], **options)
            objective, pair = OWNERS[name](), pair_for(name)
            with torch.no_grad():
                for parameter in (*pair.parameters(), *objective.critic.parameters()):
                    parameter.fill_(7.0)  # everything has to come from the checkpoint
            options["resume"] = True
        run = quietly(pair, BITS, objective=objective, **options)
        kept = checkpoint.read(checkpoint.latest(tmp_path / out / "checkpoints"))
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in run.history.rows]
        ends.append((rows, kept, {**state(pair), **{f"critic.{n}": v for n, v in state(objective.critic).items()}}))
    (rows, kept, tensors), (other_rows, other, other_tensors) = ends
    assert rows == other_rows
    assert same(tensors, other_tensors)
    assert same(kept.parameters, other.parameters)
    assert same(kept.random, other.random)
    moments = [{k: v for s in k.optimizer["critic"]["state"].values() for k, v in s.items()} for k in (kept, other)]
    assert "exp_avg" in moments[0]
    assert same(*moments)
    assert any(name.startswith("best/objective/critic.") for name in kept.parameters)


def test_the_best_epoch_has_its_own_critic(tmp_path):
    objective, pair, critics = OWNERS["FactorVAE"](), vae(), []
    keep = lambda run: critics.append(state(run.objective.critic))  # noqa: E731
    run = quietly(
        pair,
        BITS,
        objective=objective,
        batch_size=10,
        max_epochs=9,
        lr=0.3,
        patience=2,
        validation=0.25,
        callbacks=[keep],
        out=tmp_path / "run",
    )
    assert run.best_epoch < run.epoch
    assert same(state(objective.critic), critics[run.best_epoch - 1])
    assert not same(state(objective.critic), critics[-1])
    loaded = ratio(seed=5)
    load(run.out, vae(seed=5), critic=loaded)
    assert same(state(loaded), state(objective.critic))
    with pytest.raises(ValueError, match="do not have the same parameters"):
        load(run.out, vae(), critic=nn.Linear(2, 1))


@owners
def test_validation_has_the_critic_in_evaluation_mode(name):
    objective, pair, seen = OWNERS[name](), pair_for(name), []
    objective.critic.register_forward_pre_hook(
        lambda module, _: seen.append((module.training, torch.is_grad_enabled()))
    )
    quietly(pair, BITS, objective=objective, batch_size=16, max_epochs=1, validation=0.25)
    assert {training for training, grad in seen if not grad} == {False}
    assert {training for training, grad in seen if grad} == {True, False}  # the critic's own updates, and the pair's
    assert objective.critic.training


@owners
def test_the_critic_is_trained_by_hand_beside_stock_svi(name):
    objective, pair = OWNERS[name](), pair_for(name)
    before = state(pair), state(objective.critic)
    svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), objective)
    optimizer = objective.critic_optimizer(objective.critic.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        objective.critic_loss(pair, BITS).backward()
        optimizer.step()
        kept = state(objective.critic)
        assert math.isfinite(svi.step(BITS))
        assert same(state(objective.critic), kept)
    assert not any(torch.equal(value, before[0][n]) for n, value in state(pair).items())
    assert not any(torch.equal(value, before[1][n]) for n, value in state(objective.critic).items())


def test_half_precision_leaves_the_critic_and_its_loss_in_float32():
    objective, pair = OWNERS["FactorVAE"](), vae()
    run = quietly(pair, BITS, objective=objective, batch_size=16, max_epochs=2, precision="bfloat16")
    assert {parameter.dtype for parameter in objective.critic.parameters()} == {torch.float32}
    assert run.history["critic_loss"][-1] == pytest.approx(math.log(2), abs=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective.critic_loss(pair, BITS).dtype == torch.float32


def test_a_critic_without_parameters_is_used_as_it_is():
    class Known(nn.Module):
        def forward(self, z):
            return z.square().sum(-1)

    run = quietly(vae(), BITS, objective=FactorVAE(Known()), batch_size=16, max_epochs=1)
    assert "critic_loss" not in run.history


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: FactorVAE(3), TypeError, "critic is 3"),
        (lambda: FactorVAE(ratio(), gamma=-1.0), ValueError, "gamma is -1"),
        (lambda: ImplicitPrior(ratio(), beta=-1.0), ValueError, "beta is -1"),
        (lambda: FactorVAE(ratio(), critic_steps=0), ValueError, "critic_steps is 0"),
        (lambda: FactorVAE(ratio(), critic_optimizer=1e-3), TypeError, "critic_optimizer is '0.001'"),
    ],
)
def test_bad_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_bad_critics_in_fit():
    with pytest.raises(ValueError, match="FactorVAE owns a critic"):
        fit_em(vae(), BITS, objective=FactorVAE(ratio()))
    with pytest.raises(TypeError, match="critic_optimizer made a list"):
        quietly(vae(), BITS, objective=FactorVAE(ratio(), critic_optimizer=list))
    objective = FactorVAE(ratio(), critic_optimizer=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(FloatingPointError, match="loss of the critic"):
        quietly(vae(), BITS, objective=objective, batch_size=8, max_epochs=3)


# FactorVAE ------------------------------------------------------------------------------------------------------------


class Gaussian(LinearGaussian):
    """Data N(0, I), q(z | x) = N(A x, diag s^2) in the guide: the aggregate posterior is N(0, A A^T + diag s^2)."""

    def __init__(self):
        super().__init__(data_dim=3, latent_dim=2)
        self.slope = nn.Parameter(torch.tensor([[0.9, 0.3, 0.0], [0.8, 0.0, 0.4]], dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor([-1.0, -0.7], dtype=torch.float64))

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.slope.T, self.log_scale.exp()).to_event(1))

    def aggregate(self):
        with torch.no_grad():
            covariance = self.slope @ self.slope.T + self.log_scale.mul(2).exp().diag()
        return dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), covariance)

    def total_correlation(self):
        """-1/2 log det of the correlations."""
        covariance = self.aggregate().covariance_matrix
        return 0.5 * (covariance.diagonal().log().sum() - covariance.logdet()).item()


class LogRatio(nn.Module):
    """log q(z) / p(z) of two distributions."""

    def __init__(self, q, p):
        super().__init__()
        self.q, self.p = q, p

    def forward(self, z):
        return self.q.log_prob(z) - self.p.log_prob(z)


def known_critics(pair):
    q = pair.aggregate()
    marginals = dist.Normal(q.mean, q.variance.sqrt()).to_event(1)
    standard = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
    return LogRatio(q, marginals), LogRatio(q, standard)


def normal_rows(rows, seed=3):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("make", [partial(FactorVAE, gamma=0.0), partial(ImplicitPrior, beta=0.0)])
def test_without_weight_they_are_the_elbo_exactly(make):
    pair, x, values = Gaussian(), normal_rows(10), []
    beta = getattr(make(nn.Identity()), "beta", 1.0)
    for objective in (make(DensityRatio(2).double(), 3), ELBO(3, beta=beta)):
        pyro.set_rng_seed(0)
        values.append(Step(pair, objective, structure(pair, x))(x).item())
    assert values[0] == values[1]
    assert make(nn.Identity()).is_bound == (beta == 1.0)


def test_with_the_known_ratio_they_are_the_elbo_and_the_exact_divergences():
    """ELBO - gamma TC, and ELBO + KL(q(z) || p(z)), the noise of the ELBO taken away by the same seed."""
    pair, x = Gaussian(), normal_rows(40_000)
    of_marginals, of_prior = known_critics(pair)
    standard = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
    kl = torch.distributions.kl_divergence(pair.aggregate(), standard).item()
    wanted = {
        "FactorVAE": (FactorVAE(of_marginals, gamma=5.0), -5.0 * pair.total_correlation()),
        "ImplicitPrior": (ImplicitPrior(of_prior), kl),
    }
    for name, (objective, want) in wanted.items():
        values = []
        for each in (objective, ELBO()):
            pyro.set_rng_seed(0)
            with torch.no_grad():
                values.append(each.per_datum(each.draw(pair, x, known=structure(pair, x))))
        difference = values[0] - values[1]
        error = difference.std().item() / len(x) ** 0.5
        print(f"{name}: {difference.mean()} +- {error}, exactly {want}")
        assert abs(difference.mean().item() - want) < 4 * error
        assert abs(want) > 20 * error


@pytest.mark.parametrize("make", [partial(FactorVAE, gamma=5.0), partial(ImplicitPrior, beta=0.7)])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_gradients_are_finite_differences_with_the_critic_fixed(make, num_particles):
    pair, x = Gaussian(), normal_rows(20)
    torch.manual_seed(0)
    objective = make(DensityRatio(2, hidden=(8,)).double(), num_particles)
    step = Step(pair, objective, structure(pair, x))

    def value():
        pyro.set_rng_seed(0)
        return step(x)

    value().backward()
    for name, parameter in pair.named_parameters():
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            ends = []
            for shift in (1e-5, -2e-5, 1e-5):
                parameter.add_(shift * direction)
                ends.append(value().item())
        want = (ends[0] - ends[1]) / 2e-5
        assert (parameter.grad * direction).sum().item() == pytest.approx(want, rel=1e-6, abs=1e-7), name


def test_the_gradient_of_the_mean_logit_is_that_of_the_total_correlation():
    """Though the ratio's own dependence on the guide is left out, whose mean gradient is zero."""
    pair, x = Gaussian(), normal_rows(40_000)
    objective = FactorVAE(known_critics(pair)[0])
    drawn = objective.draw(pair, x, known=structure(pair, x))
    each = objective.logit(drawn.values["z"])
    covariance = pair.slope @ pair.slope.T + pair.log_scale.mul(2).exp().diag()
    exact = 0.5 * (covariance.diagonal().log().sum() - covariance.logdet())
    for parameter in (pair.slope, pair.log_scale):
        (want,) = torch.autograd.grad(exact, parameter, retain_graph=True)
        weights = torch.eye(20, dtype=x.dtype).repeat_interleave(len(x) // 20, 0)  # means of 20 blocks of rows
        blocks = torch.stack(
            [torch.autograd.grad((each * w).sum() / w.sum(), parameter, retain_graph=True)[0] for w in weights.T]
        )
        error = blocks.std(0) / 20**0.5
        print(blocks.mean(0), "+-", error, "exactly", want)
        assert ((blocks.mean(0) - want).abs() < 4 * error).all()
        assert (want.abs() > 4 * error).any()


def test_shuffled_takes_each_dim_from_another_row():
    torch.manual_seed(0)
    z = torch.arange(7)[:, None] + 100 * torch.arange(4)
    got = [shuffled(z) for _ in range(200)]
    for each in got:
        assert torch.equal(each // 100, z // 100), "dims changed places"
        assert all(torch.equal(column.sort().values, row) for column, row in zip(each.T, z.T, strict=True))
        assert all(len(set(row)) == 4 for row in (each % 100).tolist())
    pairs = {(int(row[0]), int(row[1]) - 100) for each in got for row in each}
    assert pairs == {(i, j) for i in range(7) for j in range(7) if i != j}


@pytest.mark.parametrize("name", ["FactorVAE", "ImplicitPrior"])
def test_a_trained_critic_finds_the_divergence(name):
    """By `critic_loss` alone, on what the objective draws: the label, and what is shuffled, show in the sign."""
    pair = Gaussian()
    torch.manual_seed(0)
    critic = DensityRatio(2, hidden=(32, 32)).double()
    objective = {"FactorVAE": FactorVAE, "ImplicitPrior": ImplicitPrior}[name](critic)
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    known = structure(pair, normal_rows(500))
    for number in range(500):
        optimizer.zero_grad()
        objective.critic_loss(pair, normal_rows(500, seed=number), known=known).backward()
        optimizer.step()
        schedule.step()
    want = known_critics(pair)[name == "ImplicitPrior"]
    with torch.no_grad():
        z = pair.aggregate().sample((20_000,))
        error, mean = (critic(z) - want(z)).abs().mean().item(), critic(z).mean().item()
    print(f"mean {mean}, exactly {want(z).mean()}; mean absolute error {error}")
    assert mean == pytest.approx(want(z).mean().item(), abs=0.05)
    assert error < 0.1
    if name == "FactorVAE":
        assert mean == pytest.approx(pair.total_correlation(), abs=0.05)
        assert mean > 0.2
