"""What counts as a pair, its names in the param store, and what one dry run of it tells and leaves alone."""

import copy
import functools
import re
import subprocess
import sys
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import Mixture
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample, pyro_method
from torch import nn

from pyrovae import conditionals, log_weights
from pyrovae.distributions import Flat, GumbelOneHot, LinearOneHot
from pyrovae.models import VAE, CategoricalVAE, GaussianMixture, HierarchicalVAE, NormalizingFlow
from pyrovae.models.base import Functions, Pair, as_pair, evaluation_mode, isolated_random_state, structure


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 1.0))


def fresh_python(program: str) -> str:
    """What a program prints in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


# What counts as a pair ------------------------------------------------------------------------------------------------


def test_tuples_objects_and_modules_are_pairs():
    class Both:
        model = staticmethod(model)
        guide = staticmethod(guide)

    vae = VAE(4, 2)
    assert as_pair(vae) is vae
    both = Both()
    assert as_pair(both) is both
    assert as_pair([model, guide]) == as_pair((model, guide)) == Functions(model, guide)
    assert as_pair(Functions(model, guide)).guide is guide


class OnlyModel:
    def model(self, x): ...


class NotCallable:
    model = guide = "no function"


@pytest.mark.parametrize(
    "other",
    [None, 3, model, (model,), (model, None), (model, guide, guide), {"model": model}, OnlyModel(), NotCallable],
)
def test_anything_else_is_a_type_error_that_says_what_came(other):
    with pytest.raises(TypeError, match=r"^pair is \w+ .*, not a model with its guide; pass an object with methods"):
        as_pair(other)


# Names in the param store ---------------------------------------------------------------------------------------------


def test_names_follow_the_order_of_construction_in_every_process():
    program = (
        "import copy\n"
        "from pyrovae.models import VAE\n"
        "from pyrovae.models.base import Pair\n"
        "class Other(Pair): ...\n"
        "pairs = [VAE(4, 2), Other(), VAE(4, 2)]\n"
        "pairs.append(copy.deepcopy(pairs[0]))\n"
        "print([pair._pyro_name for pair in pairs])"
    )
    assert fresh_python(program) == "['VAE_1', 'Other_1', 'VAE_2', 'VAE_3']"


def test_deepcopy_renews_the_names_of_everything_inside():
    class Nested(Pair):
        def __init__(self):
            super().__init__()
            self.inner = PyroModule[nn.Linear](1, 1)
            self.inner.scale = PyroParam(torch.tensor(2.0), constraint=constraints.positive)

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.inner(x[:, None])[:, 0], self.inner.scale), obs=x)

        def guide(self, x): ...

    first, x = Nested(), torch.randn(3)
    first.model(x)
    second = copy.deepcopy(first)
    second.model(x)
    names = {name.split(".", 1)[0] for name in pyro.get_param_store()}
    assert names == {first._pyro_name, second._pyro_name}
    assert len(pyro.get_param_store()) == 6
    with torch.no_grad():
        next(second.parameters()).add_(1.0)
    assert not torch.equal(next(first.parameters()), next(second.parameters()))


def test_a_copy_has_the_values_and_the_arguments():
    first = VAE(4, latent_dim=2, hidden=(3,))
    second = copy.deepcopy(first)
    assert second.arguments == first.arguments == {"event_shape": 4, "latent_dim": 2, "hidden": (3,)}
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_wrong_arguments_are_the_constructors_to_report():
    with pytest.raises(TypeError, match="latent_dims"):
        VAE(4, latent_dims=2)


# Modes and random states ----------------------------------------------------------------------------------------------


def test_evaluation_mode_restores_mixed_modes():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    net[1].eval()
    net[2].eval()
    modes = [module.training for module in net.modules()]
    assert True in modes
    assert False in modes

    def fails():
        with evaluation_mode(net, "no module", net[2]):
            assert not any(module.training for module in net.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert [module.training for module in net.modules()] == modes


def test_isolated_random_state_seeds_and_restores():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with isolated_random_state(7):
        first = torch.rand(3)

    def fails():
        with isolated_random_state(7):
            assert torch.equal(torch.rand(3), first)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.equal(torch.get_rng_state(), before)
    with isolated_random_state():
        unseeded = torch.rand(3)
    assert torch.equal(torch.rand(3), unseeded)


class Normalised(nn.Module):
    """An encoder that notices in which mode it runs."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 1))
        self.modes: list[bool] = []

    def forward(self, x):
        self.modes.append(self.training)
        return self.net(x[:, None])[:, 0]


def with_network(how: str):
    """The same pair written in four ways, and its network."""
    net = Normalised()

    def network_guide(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)
            pyro.sample("z", dist.Normal(net(x), scale))

    class Module(PyroModule):
        def __init__(self):
            super().__init__("somebody")
            self.net = net
            self.scale = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

        @pyro_method
        def model(self, x):
            model(x)

        @pyro_method
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.net(x), self.scale))

    class Plain:
        def __init__(self):
            self.model, self.guide = model, network_guide

    pairs = {"PyroModule": Module, "functions": lambda: (model, network_guide), "plain object": Plain}
    return pairs[how](), net


@pytest.mark.parametrize("how", ["PyroModule", "functions", "plain object"])
def test_structure_leaves_everything_as_it_was(how):
    pair, net = with_network(how)
    net.net[3].eval()
    modes = [module.training for module in net.modules()]
    state = copy.deepcopy(net.state_dict())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    known = structure(pair, torch.randn(5, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in net.modules()] == modes
    assert net.modes == [False], "the dry run is in evaluation mode"
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in known.parameters.values())


def test_structure_leaves_everything_as_it_was_after_an_error_too():
    pair, net = with_network("functions")
    modes, before = [module.training for module in net.modules()], torch.get_rng_state()
    with pytest.raises(ValueError, match="does not run"):
        structure(pair, torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    assert [module.training for module in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    net(torch.randn(3, generator=torch.Generator().manual_seed(0)))
    assert net.training, "no hook of the dry run is left"


# What structure finds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["PyroModule", "functions", "plain object"])
def test_structure_finds_parameters_buffers_and_modules(how):
    pair, net = with_network(how)
    known = structure(pair, torch.randn(5))
    leaves = {id(parameter) for parameter in known.parameters.values()}
    assert {id(parameter) for parameter in net.parameters()} < leaves
    assert len(leaves) == len(known.parameters) == 7
    (scale,) = [p for name, p in known.parameters.items() if "scale" in name]
    assert scale.is_leaf
    torch.testing.assert_close(scale.detach(), torch.tensor(0.7).log())  # unconstrained
    assert {id(b) for b in known.buffers.values()} == {id(b) for b in net.buffers()}
    assert set(net.modules()) <= set(known.modules)
    assert (known.plate, known.size, known.rows, known.max_plate_nesting) == ("data", 5, 5, 1)
    assert (known.latent, known.observed, known.global_latent) == (("z",), ("x",), ())


def test_names_in_a_module_are_relative_to_it():
    """So that a checkpoint of VAE_1 fits VAE_7."""
    first, second = VAE(4, 2, hidden=(3,)), VAE(4, 2, hidden=(3,))
    assert list(structure(second, torch.ones(3, 4)).parameters) == [name for name, _ in first.named_parameters()]


def test_a_module_that_takes_its_parameters_from_the_store_has_those():
    def registering(net):
        def guide(x):
            pyro.module("net", net, update_module_params=True)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(net(x[:, None])[:, 0], 1.0))

        return model, guide

    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    structure(registering(first), torch.ones(3))
    known = structure(registering(second), torch.ones(3))
    assert known.parameters["net$$$weight"] is second.weight is first.weight


def test_shared_parameters_are_found_once():
    class Tied(Pair):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 1, bias=False)
            self.same = self.net

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.same(x[:, None])[:, 0], 1.0), obs=x)

        def guide(self, x): ...

    assert len(structure(Tied(), torch.ones(3)).parameters) == 1


def test_parameters_of_an_autoguide_exist_after_the_dry_run():
    def regression(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x, 1.0), obs=y)

    guide = AutoNormal(regression)
    known = structure((regression, guide), torch.ones(3), torch.ones(3))
    assert {id(p) for p in known.parameters.values()} == {id(p) for p in guide.parameters()}
    assert len(known.parameters) == 2
    assert (known.latent, known.global_latent) == (("w",), ("w",))
    assert known.supports["y"][0] == 1


def test_sites_are_told_apart():
    def everything(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 30, subsample=torch.arange(len(x))):
            c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(w + c, 1.0))
            pyro.deterministic("square", z**2)
            pyro.factor("penalty", -(z**2))
            pyro.sample("y", dist.Bernoulli(logits=z), obs=y)
            with pyro.plate("words", 3, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.reshape(3, -1))

    def its_guide(x, y):
        pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 30, subsample=torch.arange(len(x))):
            a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(a))

    known = structure((everything, its_guide), torch.randn(5, 3), torch.ones(5))
    assert known.latent == ("w", "c", "z")
    assert known.observed == ("y", "x")
    assert known.global_latent == ("w",)
    assert known.enumerated == ("c",)
    assert (known.size, known.rows, known.subsampled, known.max_plate_nesting) == (30, 5, True, 2)
    assert {site: position for site, (position, _) in known.supports.items()} == {"y": 1, "x": 0}


def test_values_that_are_not_the_batch_have_no_support_to_check():
    def binarised(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(torch.tensor(0.5)), obs=(x > 0.5).float())

    assert structure((binarised, lambda x: None), torch.rand(3)).supports == {}


def test_enumerated_pairs_run_without_enumeration():
    known = structure(Mixture(), torch.ones(3, dtype=torch.float64))
    assert (known.enumerated, known.latent) == (("c",), ("c", "z"))


# Bad pairs ------------------------------------------------------------------------------------------------------------


def test_numbers_that_a_program_makes_are_named_where_the_dtypes_differ():
    class Regression(PyroModule):
        def __init__(self):
            super().__init__()
            self.w = PyroSample(dist.Normal(0.0, 1.0).expand([2]).to_event(1))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(x @ self.w, 1.0), obs=x[:, 0])

    pair = (Regression(), lambda x: pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1)))
    with pytest.raises(ValueError, match=r"numbers of PyroSample.* have torch's default dtype\), or see above"):
        structure(pair, torch.ones(3, 2, dtype=torch.float64))


def test_a_batch_that_the_pair_cannot_run_on_is_named():
    pair = with_network("functions")[0]
    with pytest.raises(ValueError, match=r"does not run on tensors of shape and type \(3,\) float64 \(.*\); pass data"):
        structure(pair, torch.zeros(3, dtype=torch.float64))
    with pytest.raises(
        ValueError, match=r"^the pair does not run on tensors of shape and type \(3, 2\) float32.*fails$"
    ):
        structure(pair, torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"^x has event shape \(5,\), the network expects \(4,\).*constructor$"):
        structure(VAE(4, 2), torch.zeros(3, 5))


def test_an_observation_of_the_batch_outside_the_plate_is_refused():
    """It would have no value for each datum, and log-weights without it would look fine."""

    def outside(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    with pytest.raises(ValueError, match="model site 'x' observes the batch outside the plate 'data'"):
        structure((outside, guide), torch.zeros(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            partial(VAE, 5, 2, posterior=conditionals.Bernoulli),
            r"'z' is a density in the model \(Normal\) and a mass in the guide \(Bernoulli\)",
        ),
        (
            partial(CategoricalVAE, 5, num_classes=3, posterior=conditionals.DiagonalNormal),
            r"'y1' is a mass in the model \(LinearOneHot\) and a density in the guide \(Normal\)",
        ),
    ],
)
def test_a_density_against_a_mass_is_refused(make, message):
    """Their difference is the log-weight of nothing."""
    with pytest.raises(ValueError, match=message):
        structure(make(), torch.ones(3, 5))


def test_relaxed_categories_points_and_improper_priors_are_no_other_measure():
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", LinearOneHot(torch.ones(3), validate_args=False))
            c = pyro.sample("c", dist.Categorical(torch.ones(2)))
            z = pyro.sample("z", Flat(torch.zeros(2)))
            pyro.sample("x", dist.Normal(y[..., 0] + c + z[..., 0], 1.0), obs=x)

    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("y", GumbelOneHot(0.5, torch.zeros(3), hard=False))
            pyro.sample("c", dist.Delta(torch.tensor(1)))
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    assert structure((model, its_guide), torch.zeros(4)).latent == ("y", "c", "z")


@pytest.mark.parametrize(
    "make",
    [
        partial(VAE, 5, 2),
        partial(HierarchicalVAE, 5, (2, 1)),
        partial(GaussianMixture, 5, 2),
        partial(NormalizingFlow, 5),
    ],
)
def test_one_datum_without_a_dim_for_the_batch_is_refused(make):
    """Its numbers would be taken for rows: five data of five numbers each."""
    pair, x = make(), torch.rand(3, 5).round()
    for alone in (x[0], torch.ones(5)):
        with pytest.raises(ValueError, match=r"'x' observes a tensor of the batch of shape \(5,\).* pass x\[None\]"):
            log_weights(pair, alone, num_particles=2)
    assert log_weights(pair, x[0][None]).shape == (1, 1)


def test_a_model_and_a_guide_of_other_arguments_are_named():
    with pytest.raises(TypeError, match=r"^the guide takes \(x\), a batch has 2 tensors \(too many .*same arguments$"):
        structure((lambda x, y: model(x), guide), torch.zeros(3), torch.zeros(3))
    with pytest.raises(TypeError, match=r"^the model takes \(x, y\), a batch has 1 tensors \(missing"):
        structure((lambda x, y: model(x), guide), torch.zeros(3))


def test_a_decorator_may_give_arguments():
    def given(program):
        @functools.wraps(program)
        def called(x):
            return program(x, 2.0)

        return called

    @given
    def scaled(x, scale):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    assert structure((scaled, guide), torch.zeros(3)).latent == ("z",)


def test_an_observation_may_be_a_number():
    def observed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("zero", dist.Normal(z, 1.0), obs=0.0)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pyro.validation_enabled(False):
        assert structure((observed, guide), torch.zeros(3)).observed == ("zero", "x")


@pytest.mark.parametrize("obs", [(5,), (5, 1), (5, 5), (5, 3), None], ids=str)  # None: a factor
def test_a_site_of_another_shape_than_its_plates_is_refused_as_in_stock_pyro(obs):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            if obs is None:
                pyro.factor("y", x[:, None])
            else:
                pyro.sample("y", dist.Normal(z[:, None], 1.0), obs=torch.zeros(obs))

    x = torch.zeros(5)
    with pytest.raises(ValueError, match=r"at site ['\"]y"):
        pyro.infer.Trace_ELBO().loss(model, guide, x)
    value = re.escape(str(obs or (5, 1)))  # a plate of Pyro's expands what is in it
    match = rf"^site 'y' has batch shapes distribution \(5, 5\), value {value}, .* plates \(\{{'data': 5\}}\); call"
    with pytest.raises(ValueError, match=match):
        structure((model, guide), x)


def test_a_mask_and_a_global_site_of_another_shape_than_their_plates_are_refused():
    def masked(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=torch.ones(5, 1, dtype=torch.bool)):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))

    def unplated(x):
        pyro.sample("w", dist.Normal(x.new_zeros(3), 1.0), obs=torch.zeros(3))
        model(x)

    x = torch.zeros(5)
    with pytest.raises(ValueError, match=r"value \(5,\), mask \(5, 1\), which"):
        structure((masked, guide), x)
    with pytest.raises(ValueError, match=r"^site 'w' has batch shapes distribution \(3,\), .* plates \(none\)"):
        structure((unplated, guide), x)


def test_importing_has_no_side_effect():
    program = (
        "import random, sys, warnings\n"
        "import numpy as np, pyro, torch\n"
        "state = lambda: (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state()))\n"
        "settings = lambda: (pyro.settings.get(), torch.get_default_dtype(), torch.is_grad_enabled(),\n"
        "    torch.get_num_threads(), torch.distributions.Distribution._validate_args, list(warnings.filters))\n"
        "before = state(), settings()\n"
        "loaded = set(sys.modules)\n"
        "import pyrovae\n"
        "assert (state(), settings()) == before\n"
        "assert len(pyro.get_param_store()) == 0\n"
        "heavy = {'matplotlib', 'torchvision', 'sklearn', 'scipy.stats', 'jsonargparse', 'PIL'}\n"
        "print(sorted(heavy & (set(sys.modules) - loaded)))"
    )
    assert fresh_python(program) == "[]"
