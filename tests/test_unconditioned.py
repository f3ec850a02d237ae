"""Models whose data are drawn: a value that a model names, and a factor, stay what they are."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae import evaluation as ev
from pyrovae.models.base import Functions, structure
from pyrovae.objectives import WakeSleep
from pyrovae.objectives.dreams import uncondition

X = torch.linspace(-2, 2, 4)


def gaussian(named=True, masked=False):
    """z ~ N(1, 1), x | z ~ N(2 z, 0.5): their locs named inside the plate, as Pyro's users do, or not."""

    def model(x, *mask):
        with pyro.plate("data", len(x)):
            mean = torch.ones(len(x), x.size(1))
            z = pyro.sample("z", dist.Normal(pyro.deterministic("mean", mean) if named else mean, 1.0).to_event(1))
            loc = pyro.deterministic("loc", 2 * z) if named else 2 * z
            scale = pyro.param("scale", torch.tensor(0.5))
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(x, *mask):
        with pyro.plate("data", len(x)):
            weight = pyro.param("weight", torch.tensor(0.4))
            seen = torch.where(mask[0], x, 0.0) if mask else x
            pyro.sample("z", dist.Normal(weight * seen, 0.3).to_event(1))

    return Functions(model, guide)


def mixture(named):
    """c ~ Categorical, z | c ~ N(4 c, 1), x | z ~ N(z, 1), with the loc of z named or not."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            loc = 4.0 * c[..., None]
            z = pyro.sample("z", dist.Normal(pyro.deterministic("loc", loc) if named else loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    return Functions(model, guide)


class Critic(nn.Module):
    """Any function of what it is given."""

    def forward(self, *values):
        return sum(value.sum(-1) for value in values)


def implicit(pair):
    return ev.implicit_log_likelihood(pair, Critic(), X[:, None], num_samples=20, prior_samples=50).per_datum


def sleep(pair):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    value = WakeSleep().loss_and_grads(pair.model, pair.guide, X[:, None])
    weight, scale = (pyro.get_param_store().get_param(name) for name in ("weight", "scale"))
    return torch.stack([torch.as_tensor(value), weight.grad, scale.grad])


def samples(objective):
    def of(pair):
        pyro.set_rng_seed(0)
        x = X[:, None]
        return torch.cat([value for side in objective.samples(pair, x, known=structure(pair, x)) for value in side])

    return of


def bounds(pair):
    found = pv.bdmc(pair, X[:, None], num_temperatures=5, num_leapfrog=2, num_chains=3)
    return torch.stack([found.lower.per_datum, found.upper.per_datum])


def p_values(pair):
    found = pv.check(pair, X[:, None], ["mean", "sd"], num_replicates=20)
    return torch.cat([row.replicated for row in found.rows])


def imputations(pair):
    # the second of two columns is hidden
    x = X.reshape(2, 2)
    mask = torch.tensor([True, False]).expand(2, 2)
    return ev.impute(pair, {"x": x, "mask": mask}, num_imputations=3, num_samples=7).x


USES = {
    "generate": lambda pair: ev.generate(pair, 4, like=X[:, None]),
    "draw": lambda pair: ev.generate(pair, 4, like=X[:, None], sample=True),
    "fixed": lambda pair: ev.generate(pair, 4, like=X[:, None], fixed={"z": X[:, None]}),
    "check": p_values,
    "bdmc": bounds,
    "wake-sleep": sleep,
    "impute": imputations,
    "implicit prior": implicit,
    "AdversarialVB": samples(pv.objectives.AdversarialVB(Critic())),
    "AdversarialAutoencoder": samples(pv.objectives.AdversarialAutoencoder(Critic())),
    "ImplicitPrior": samples(pv.objectives.ImplicitPrior(Critic())),
}


@pytest.mark.parametrize("use", USES)
def test_a_named_value_changes_nothing(use):
    pyro.clear_param_store()
    got, want = (USES[use](gaussian(named)) for named in (True, False))
    assert got.shape == want.shape
    assert torch.equal(got, want)


def test_components_of_a_mixture_with_a_named_value():
    found = ev.components(mixture(True), X[:, None])
    torch.testing.assert_close(found.loc, torch.tensor([[0.0], [4.0]]))
    torch.testing.assert_close(found.weights, torch.tensor([0.3, 0.7]))


@pytest.mark.parametrize("event_dim", [None, 0, 1])
def test_only_what_is_data_is_drawn(event_dim):
    def model(x):
        with pyro.plate("data", len(x)):
            named = pyro.deterministic("named", 2 * x, event_dim=event_dim)
            pyro.factor("bonus", x.sum(-1))
            pyro.sample("x", dist.Normal(named, 1.0).to_event(1), obs=x)

    trace = pyro.poutine.trace(uncondition(model)).get_trace(X[:, None])
    assert torch.equal(trace.nodes["named"]["value"], 2 * X[:, None])
    assert [name for name in ("named", "bonus", "x") if not trace.nodes[name]["is_observed"]] == ["x"]
    assert torch.equal(trace.nodes["x"]["infer"]["obs"], X[:, None])
    assert not torch.equal(trace.nodes["x"]["value"], X[:, None])
