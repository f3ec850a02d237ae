"""A flow as a VAE: the ELBO is the log-likelihood, for every objective and every parameter."""

import copy
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import pyrovae as pv
from pyrovae.cli import main
from pyrovae.data import Data, Split, dequantize
from pyrovae.evaluation import generate, reconstruct
from pyrovae.models.base import structure
from pyrovae.models.flow import AffineCoupling, SplineCoupling
from pyrovae.training.runs import load
from pyrovae.training.step import Step

COUPLINGS = {"affine": AffineCoupling, "spline": partial(SplineCoupling, num_bins=5)}
DIM = 3


class LearnedLaplace(nn.Module):
    """Somebody's prior, learned, and not standard normal."""

    def __init__(self, dim):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.full((dim,), 0.3)), nn.Parameter(torch.full((dim,), -0.2))

    def forward(self, context=None):
        return dist.Laplace(self.loc, self.log_scale.exp()).to_event(1)


def flow(coupling="affine", dtype=torch.float64, dim=DIM, seed=0, **options):
    pyro.set_rng_seed(seed)
    pair = pv.NormalizingFlow(dim, num_layers=4, hidden=(16,), coupling=COUPLINGS[coupling], **options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in pair.parameters():  # it starts near the identity
        parameter.data.add_(0.08 * torch.randn(parameter.shape, generator=generator))
    return pair.to(dtype)


def rows(count=50, dim=DIM, dtype=torch.float64):
    return 1.5 * torch.randn(count, dim, dtype=dtype, generator=torch.Generator().manual_seed(1))


class OneWay(dist.TransformModule):
    """A coupling layer as a transform of Pyro's whose log|det| is that of autograd's Jacobian."""

    domain = codomain = dist.constraints.real_vector
    bijective = True

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def _call(self, z):
        return self.layer(z)[0]

    def _inverse(self, x):
        return self.layer.inverse(x)[0]

    def log_abs_det_jacobian(self, z, x):
        return torch.stack([log_det(lambda one: self.layer(one)[0], row) for row in z])


def log_det(function, at):
    return torch.autograd.functional.jacobian(function, at, create_graph=True).det().abs().log()


class Given(nn.Module):
    """What Pyro's coupling asks of a network: shifts and logs of scales."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, kept):
        shift, gate = self.layer.head(self.layer.features(kept))[0].unbind(-1)
        return shift, 3 * torch.tanh(gate / 3)


def change_of_variables(pair):
    """log p(x) by Pyro's TransformedDistribution: affine couplings are Pyro's, log|det| of splines is autograd's."""
    reverse = transforms.Permute(torch.arange(DIM - 1, -1, -1))
    layers = [
        transforms.AffineCoupling(DIM // 2, Given(c)) if isinstance(c, AffineCoupling) else OneWay(c)
        for c in pair.couplings
    ]
    return dist.TransformedDistribution(pair.prior(), [part for layer in layers for part in (reverse, layer)])


def gradients(value, pair):
    return torch.autograd.grad(value, list(pair.parameters()))


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_inverse_and_log_det_are_those_of_autograd(coupling):
    pair, z = flow(coupling), rows(7)
    x, total = pair.transform(z)
    again, from_inverse = pair.inverse(x)
    assert torch.allclose(again, z, atol=1e-10)
    assert torch.allclose(from_inverse, total, atol=1e-9)
    exact = torch.stack([log_det(lambda one: pair.transform(one)[0], row) for row in z])
    assert torch.allclose(total, exact, atol=1e-9)
    assert total.abs().min() > 1e-3


@pytest.mark.parametrize("prior", [pv.priors.StandardNormal, LearnedLaplace])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_every_bound_is_the_log_likelihood_and_its_gradient(coupling, prior):
    """The theorem. log w is log p(x) for each draw, so that KL(q || p(z | x)) = 0 and IWAE(K) = ELBO for each K."""
    pair, x = flow(coupling, prior=prior), rows()
    log_p = change_of_variables(pair).log_prob(x)
    exact = gradients(log_p.mean(), pair)
    drawn = pv.log_weights(pair, x, num_particles=3)
    assert (drawn - log_p).abs().max() < 1e-6
    pair.zero_grad()
    known = structure(pair, x)
    objectives = [pv.ELBO(), pv.ELBO(4, closed_form=False), pv.IWAE(1), pv.IWAE(7), pv.STL(3), pv.VIMCO(3)]
    objectives += [pv.Renyi(0.5, 3), pv.PIWAE(4, num_groups=2), Trace_ELBO(), Trace_ELBO(3, vectorize_particles=True)]
    for objective in [*objectives, TraceMeanField_ELBO()]:
        loss = Step(pair, objective, known)(x)
        assert loss.item() == pytest.approx(-log_p.mean().item(), abs=1e-6), objective
        for found, wanted in zip(gradients(-loss, pair), exact, strict=True):
            assert wanted.abs().max() > 1e-6
            assert (found - wanted).abs().max() < 1e-6, objective


def test_the_gradient_is_that_of_finite_differences():
    pair, x = flow("spline"), rows(20)
    loss = Step(pair, pv.ELBO(), structure(pair, x))
    for parameter, gradient in zip(pair.parameters(), gradients(loss(x), pair), strict=True):
        place = int(gradient.abs().argmax())
        values = []
        for step in (1e-5, -2e-5, 1e-5):
            parameter.data.view(-1)[place] += step
            values.append(loss(x).item())
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(gradient.view(-1)[place].item(), rel=1e-4)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_flow_of_two_numbers_integrates_to_one(coupling):
    pair = flow(coupling, dim=2)
    axis = torch.linspace(-25, 25, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        z, total = pair.inverse(grid)
        mass = (pair.prior().log_prob(z) - total).exp().sum().item() * (axis[1] - axis[0]).item() ** 2
    assert mass == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_float32_keeps_every_row_though_few_are_equal(coupling):
    """Compared exactly, hardly a row would be the decoding of its own code."""
    pair, x = flow(coupling, torch.float32), rows(500, dtype=torch.float32)
    decoded = pair.transform(pair.inverse(x)[0])[0]
    assert (decoded == x).all(-1).float().mean() < 0.5
    drawn = pv.log_weights(pair, x)
    exact = pv.log_weights(flow(coupling), x.double())
    assert (drawn - exact).abs().max() < 2e-3


def test_the_same_steps_as_maximum_likelihood():
    """From one seed, Adam on the ELBO of stock Pyro and on the flow's log-likelihood: one trajectory."""
    x = rows(200)
    one, two = flow("affine"), flow("affine")
    svi = SVI(one.model, one.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    optimizer, direct = torch.optim.Adam(two.parameters(), lr=0.01), change_of_variables(two)
    for _ in range(20):
        loss = svi.step(x)
        direct.clear_cache()
        nll = -direct.log_prob(x).sum()
        assert loss == pytest.approx(nll.item(), rel=1e-8)
        optimizer.zero_grad()
        nll.backward()
        optimizer.step()
    for found, wanted in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.allclose(found, wanted, atol=1e-6)


def moons(count, seed):
    """Two half circles: their entropy is that of the angle and of the noise, but for the overlap."""
    rng = np.random.default_rng(seed)
    angle, side = rng.uniform(0, np.pi, count), rng.integers(0, 2, count)
    x = np.where(side, np.cos(angle), 1 - np.cos(angle)), np.where(side, np.sin(angle), 0.5 - np.sin(angle))
    return torch.tensor((np.stack(x, 1) + 0.1 * rng.normal(size=(count, 2)) - [0.5, 0.25]) / [0.87, 0.5])


def test_fit_reaches_what_direct_maximum_likelihood_reaches():
    """The same minibatches: fit's own loop, on the ELBO and on the density as a model without latents."""

    class Direct(pv.Pair):
        def __init__(self, pair):
            super().__init__()
            self.flow = pair

        def model(self, x):
            with pyro.plate("data", len(x)):
                z, total = self.flow.inverse(x)
                pyro.factor("log p", self.flow.prior().log_prob(z) - total)

        def guide(self, x):
            pass

    class AsFlow(nn.Module):
        """The couplings alone, so that no parameter has two owners."""

        def __init__(self, pair):
            super().__init__()
            self.couplings, self.prior, self.event_shape = pair.couplings, pair.prior, pair.event_shape

        inverse = pv.NormalizingFlow.inverse

    x, nll = moons(600, 0), []
    for direct in (False, True):
        pyro.set_rng_seed(3)
        pair = pv.NormalizingFlow(2, num_layers=4, hidden=(24,)).double()
        start = pv.log_likelihood(pair, x, num_samples=1).value
        trained = Direct(AsFlow(pair)) if direct else pair
        pv.fit(trained, x, objective=pv.ELBO(), max_epochs=12, batch_size=100, lr=1e-2, seed=5, progress=False)
        nll.append(pv.log_likelihood(pair, x, num_samples=1).value)
    print(start, nll)
    assert nll[0] == pytest.approx(nll[1], abs=1e-6)
    assert nll[0] > start + 0.3


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_generates_reconstructs_and_predicts(coupling):
    pair, x = flow(coupling, dim=2), rows(40, dim=2)
    assert torch.allclose(reconstruct(pair, x), x, atol=1e-8)
    samples = generate(pair, 20_000, like=x)
    from_flow = pair.transform(torch.randn(20_000, 2, dtype=x.dtype, generator=torch.Generator().manual_seed(2)))[0]
    for power in (1, 2):
        found, wanted = samples**power, from_flow**power
        error = torch.sqrt((found.var(0) + wanted.var(0)) / 20_000)
        assert ((found.mean(0) - wanted.mean(0)).abs() < 4 * error).all()
    drawn = Predictive(pyro.poutine.uncondition(pair.model), num_samples=3)(x)
    assert torch.allclose(pair.transform(drawn["z"])[0], drawn["x"], atol=1e-8)


def test_a_batch_that_is_one_tensor_is_inverted_with_the_parameters_of_now():
    """Pyro's own layers would give back what they remember of it."""
    pair, x = flow(), rows()
    before = pair.inverse(x)[0]
    for parameter in pair.parameters():
        parameter.data.mul_(1.1)
    after = pair.inverse(x)[0]
    assert (after - before).abs().max() > 1e-2
    assert torch.allclose(pair.transform(after)[0], x, atol=1e-9)
    copy.deepcopy(pair)


def test_what_is_not_the_decoding_has_no_density():
    pair, x = flow(), rows(5)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(pair.inverse(x)[0] + torch.tensor([0.0, 0.1, 0.0]), event_dim=1))

    assert (pv.log_weights((pair.model, guide), x) == -math.inf).all()


def test_objectives_that_need_a_score_say_so():
    pair, x = flow(), rows(4)
    for objective in (pv.ReweightedWakeSleep(3), pv.WakeSleep(), pv.DReG(3)):
        with pytest.raises(ValueError, match=r"the guide puts \['z'\] on a point \(Delta\)"):
            Step(pair, objective, structure(pair, x))(x)
        with torch.no_grad():  # the value is the bound all the same
            assert Step(pair, objective, structure(pair, x))(x).isfinite()


def test_annealing_has_no_path_to_a_point():
    with pytest.raises(ValueError, match=r"observed \['x'\] are points given z \(Delta\).*use log_likelihood"):
        pv.ais(flow(), rows(3))


def test_data_on_a_grid_are_dequantised_or_refused():
    """Bits of probability 0.3: their dequantised bound lies below the entropy, by what the flow can't fit."""
    k = torch.bernoulli(torch.full((400, 2), 0.3), generator=torch.Generator().manual_seed(0))
    pair = flow(dim=2, dtype=torch.float32)
    with pytest.raises(
        ValueError, match=r"x of bits takes 2 values.*no bound; pass Data.*dequantize\(2\) and levels=N"
    ):
        pv.fit(pair, Data(Split({"x": k}), name="bits", levels=2), max_epochs=1)
    pair = flow("spline", dim=2, dtype=torch.float32)
    data = Data(Split({"x": k}, transform=dequantize(2)), name="bits")
    pv.fit(pair, data, max_epochs=20, lr=1e-2, seed=0, progress=False)
    found = pv.log_likelihood(pair, data, num_samples=1)
    entropy = -2 * (0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    bound = found.value - 2 * math.log(2)
    print(bound, -entropy)
    assert -entropy - 0.5 < bound < -entropy + 4 * found.data_standard_error


def test_the_command_line_takes_it_by_name(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "normalizingflow", "--data", "digits", "--out", str(tmp_path / "a"), "--max_epochs", "1"])
    assert "x of digits takes 2 values, on which the density of NormalizingFlow has no bound" in capsys.readouterr().err
    np.save(tmp_path / "moons.npy", moons(60, 0).float().numpy())
    flags = ["--num_layers", "2", "--coupling", "{name: splinecoupling, num_bins: 3}", "--num_samples", "2"]
    quick = ["--max_epochs", "1", "--progress", "false", "--hidden", "[4]", "--out", str(tmp_path / "b")]
    main(["fit", "normalizingflow", "--data", str(tmp_path / "moons.npy"), *flags, *quick])
    again = load(tmp_path / "b").pair
    assert [type(c).__name__ for c in again.couplings] == ["SplineCoupling"] * 2
    assert again.couplings[0].elements.num_bins == 3
    assert "log-likelihood" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: pv.NormalizingFlow(1), ValueError, "event_shape is 1, a coupling takes two numbers at least"),
        (lambda: pv.NormalizingFlow(2, num_layers=0), ValueError, "num_layers"),
        (lambda: pv.NormalizingFlow(2, tolerance=0), ValueError, "tolerance is 0"),
        (lambda: pv.NormalizingFlow(2, coupling=lambda dim, hidden: None), TypeError, "coupling is None"),
        (lambda: SplineCoupling(1), ValueError, "dim is 1, a coupling takes two"),
        (lambda: SplineCoupling(2, num_bins=1), ValueError, "num_bins is 1"),
        (lambda: SplineCoupling(2, bound=0), ValueError, "bound is 0"),
    ],
)
def test_wrong_arguments_are_told(make, error, match):
    with pytest.raises(error, match=match):
        make()
