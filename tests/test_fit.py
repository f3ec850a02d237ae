"""Training: known optima, exact reproduction, what is left alone, and every bad input."""

import copy
import math
import os
import random
import signal
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, Mixture
from pyro.distributions import constraints
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, StepLR
from torch.utils.data import Dataset, TensorDataset

from pyrovae import conditionals
from pyrovae.data import Data, Split, match
from pyrovae.evaluation import elbo
from pyrovae.models import VAE
from pyrovae.models.base import evaluation_mode, isolated_random_state, structure
from pyrovae.objectives import ELBO, IWAE
from pyrovae.training import checkpoint
from pyrovae.training.fit import fit
from pyrovae.training.history import History
from pyrovae.training.loop import Callback
from pyrovae.training.runs import load
from pyrovae.training.schedules import Linear
from pyrovae.training.step import Step

BITS = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).round()
REALS = torch.randn(40, generator=torch.Generator().manual_seed(0))

quietly = partial(fit, progress=False, seed=0)


def vae(seed: int = 0, **options) -> VAE:
    torch.manual_seed(seed)
    return VAE(4, 2, **{"hidden": (8,), **options})


def snapshot(pair) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in pair.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def without_time(history: History) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history.rows]


class At(Callback):
    """Does something at a step, counted from 1."""

    def __init__(self, step, what):
        self.step, self.what = step, what

    def on_step(self, run):
        if run.step == self.step:
            self.what()


def interrupt():
    signal.raise_signal(signal.SIGINT)


def local_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))
        scale = pyro.param("scale", torch.tensor(1.3), constraint=constraints.positive)
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def local_guide(x):
    slope = pyro.param("slope", torch.tensor(0.4), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.7))


# Known optima ---------------------------------------------------------------------------------------------------------


def test_a_linear_vae_reaches_probabilistic_pca():
    """Tipping & Bishop 1999: the maximum likelihood of x = W z + b + noise is known from the eigenvectors of cov(x).

    Up to a rotation of z the exact posterior is diagonal, so that the bound is tight there. What is left of the gap is
    the noise of the gradients, far below both tolerances.
    """
    rows, data_dim, latent_dim = 200, 5, 2
    true = LinearGaussian(data_dim, latent_dim, scale=0.5)
    x = true.sample(rows)
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    noise = eigenvalues[: data_dim - latent_dim].mean()
    plane = vectors[:, data_dim - latent_dim :]
    covariance = plane @ (eigenvalues[-latent_dim:] - noise).diag() @ plane.T + noise * torch.eye(data_dim).double()
    optimum = dist.MultivariateNormal(x.mean(0), covariance).log_prob(x).mean()
    assert optimum > true.log_prob(x).mean()

    torch.manual_seed(0)
    pair = VAE(data_dim, latent_dim, hidden=(), likelihood=conditionals.LearnedNormal)
    run = quietly(
        pair,
        x,
        objective=ELBO(4),
        max_epochs=800,
        batch_size=rows,
        lr=0.1,  # the rotation of z is what takes long: 0.03 is 0.02 nats away by then for some seeds
        schedule=partial(CosineAnnealingLR, T_max=800),
        precision="float64",
    )
    with torch.no_grad():
        weight, bias = pair.likelihood.head.layer.weight, pair.likelihood.head.layer.bias
        variance = pair.likelihood(pair.decoder(torch.zeros(latent_dim).double())).base_dist.variance[0]
        fitted = dist.MultivariateNormal(bias, weight @ weight.T + variance * torch.eye(data_dim))
        gap = (optimum - fitted.log_prob(x).mean()).item()
        basis = torch.linalg.qr(weight).Q
        angle = torch.linalg.svdvals(vectors[:, : data_dim - latent_dim].T @ basis).max().arcsin().item()
    print(f"log-likelihood {gap:.1e} nats below the optimum, subspaces {angle:.1e} rad apart")
    assert 0 <= gap < 1e-2
    assert angle < 1e-2
    # The bound is log p(x) there: the mean over the last 50 steps is within its noise.
    assert np.mean(run.history["train_loss"][-50:]) == pytest.approx(-optimum.item(), abs=0.05)


def hadamard(rows: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthogonal columns, so that the posterior of the weights factorises and AutoNormal can reach it."""
    column = torch.tensor([1.0, -1.0]).repeat(rows // 2)
    x = torch.stack([column, column.reshape(-1, 2, 2).transpose(1, 2).flatten()], -1)
    noise = torch.randn(rows, generator=torch.Generator().manual_seed(0))
    return x, x @ torch.tensor([0.7, -1.2]) + 0.5 * noise


@pytest.mark.parametrize("batch_size", [64, 16])
def test_autonormal_over_global_latents_reaches_the_posterior(batch_size):
    x, y = hadamard()

    def regression(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 64, subsample=torch.arange(len(x))):
            pyro.sample("y", dist.Normal((x * w).sum(-1), 0.5), obs=y)

    precision = torch.eye(2) + x.T @ x / 0.25
    assert precision[0, 1].abs() < 1e-5
    mean, scale = torch.linalg.solve(precision, x.T @ y / 0.25), precision.diagonal().rsqrt()
    guide = AutoNormal(regression)
    quietly(
        (regression, guide),
        (x, y),
        objective=ELBO(4),
        batch_size=batch_size,
        max_epochs=400 * batch_size // 64,
        lr=0.05,
        schedule=partial(CosineAnnealingLR, T_max=400 * batch_size // 64),
    )
    low, high = guide.quantiles([0.158655, 0.841345])["w"]
    torch.testing.assert_close(guide.median()["w"], mean, atol=0.02, rtol=0)  # a third of a standard deviation
    torch.testing.assert_close((high - low) / 2, scale, atol=0, rtol=0.15)


def discrete_model(x):
    p = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(p))
        pyro.sample("x", dist.Normal(2 * c, pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)), obs=x)


def discrete_guide(x, infer=None):
    a, b = pyro.param("a", torch.tensor(0.5)), pyro.param("b", torch.tensor(-0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Bernoulli(logits=a * x + b), infer=infer or {})


STOCK = {
    "Trace_ELBO": ((local_model, local_guide), partial(Trace_ELBO)),
    "Trace_ELBO of 3": ((local_model, local_guide), partial(Trace_ELBO, 3)),
    "RenyiELBO": ((local_model, local_guide), partial(RenyiELBO, alpha=0, num_particles=3)),
    "TraceGraph_ELBO": ((discrete_model, discrete_guide), partial(TraceGraph_ELBO)),
    "TraceEnum_ELBO": (
        (discrete_model, partial(discrete_guide, infer={"enumerate": "parallel"})),
        partial(TraceEnum_ELBO, max_plate_nesting=1),
    ),
}


@pytest.mark.parametrize("name", STOCK)
def test_fit_trains_as_svi_does(name):
    """Three epochs of plain gradient descent on all rows end where stock SVI does with the same random numbers."""
    (model, guide), objective = STOCK[name]
    ends = []
    with pyro.get_param_store().scope():
        run = quietly(
            (model, guide),
            REALS,
            objective=objective(),
            batch_size=40,
            max_epochs=3,
            lr=0.5,
            optimizer=torch.optim.SGD,
            callbacks=[lambda run: ends.append({k: v.detach().clone() for k, v in pyro.get_param_store().items()})],
        )
    with pyro.get_param_store().scope():
        svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.5 / 40}), objective())
        structure((model, guide), REALS)  # so that parameters exist before the seed is set
        pyro.set_rng_seed(0)
        for epoch in range(3):
            (x,) = next(match(REALS, model).batches(40, seed=0, epoch=epoch))
            assert run.history["train_loss"][epoch] == pytest.approx(svi.step(x) / 40, rel=1e-5)
            for parameter, value in pyro.get_param_store().items():
                torch.testing.assert_close(ends[epoch][parameter], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [None, 10])
@pytest.mark.parametrize("plate_size", ["constant", "of the batch"])
def test_a_model_that_draws_its_own_rows_gets_all_of_them(plate_size, batch_size):
    rows = 300  # more than the default batch
    x = torch.randn(rows, generator=torch.Generator().manual_seed(0)) + 3
    seen = []

    def model(x):
        seen.append(len(x))
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", rows if plate_size == "constant" else len(x), subsample_size=50) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])

    run = quietly((model, lambda x: None), x, max_epochs=15, lr=0.1, batch_size=batch_size)
    if plate_size == "constant" or batch_size is None:
        assert run.step == 15 * 6, "an epoch is as many draws as there are rows"
        assert set(seen[-90:]) == {rows}
    assert pyro.param("loc").item() == pytest.approx(x.mean().item(), abs=0.15)
    exact = -dist.Normal(x.mean(), 1.0).log_prob(x).mean().item()
    assert np.mean(run.history["train_loss"][-5:]) == pytest.approx(exact, abs=0.1)  # per datum


# Reproduction ---------------------------------------------------------------------------------------------------------


def test_the_seed_decides_everything():
    def trained(seed, x=BITS):
        pair = vae()
        run = fit(pair, x, max_epochs=2, batch_size=10, seed=seed, progress=False, validation=0.2)
        return snapshot(pair), without_time(run.history), run.seed

    first, again, other = trained(3), trained(3), trained(4)
    assert same(first[0], again[0])
    assert first[1] == again[1]
    assert not any(torch.equal(first[0][name], other[0][name]) for name in first[0])
    assert first[1][0]["train_loss"] != other[1][0]["train_loss"]

    torch.manual_seed(8)
    drawn = fit(vae(), BITS, max_epochs=1, progress=False).seed
    torch.manual_seed(8)
    expected = int(torch.randint(2**31, ()))
    torch.manual_seed(8)
    pair = VAE(4, 2, hidden=(8,))
    assert drawn != expected  # vae() seeds by itself
    torch.manual_seed(8)
    assert fit(pair, BITS, max_epochs=1, progress=False).seed == expected


class Normalised(nn.Module):
    """An encoder with statistics and noise of its own."""

    feature_shape = (5,)

    def __init__(self, event_shape):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(*event_shape, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3))
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return self.layers(x)


def binarised(tensors):
    return {"x": torch.bernoulli(tensors["x"])}


class Rows(Dataset):
    """Rows that are read one by one."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


RESUMABLE = {
    "plain": (vae, BITS, {}),
    "schedule": (vae, BITS, {"schedule": partial(StepLR, step_size=2, gamma=0.3)}),
    "lambda schedule": (vae, BITS, {"schedule": partial(LambdaLR, lr_lambda=lambda epoch: 0.8**epoch)}),
    "clip_norm and momentum": (vae, BITS, {"clip_norm": 0.1, "optimizer": partial(torch.optim.SGD, momentum=0.9)}),
    "patience": (vae, BITS, {"patience": 5, "validation": 0.25, "lr": 0.3}),
    "patience that ends": (vae, BITS, {"patience": 1, "validation": 0.25, "lr": 1.0}),
    "warm-up": (vae, BITS, {"objective": ELBO(beta=Linear(0.0, 1.0, epochs=4)), "validation": 0.25}),
    "IWAE": (vae, BITS, {"objective": IWAE(3)}),
    "Trace_ELBO": (vae, BITS, {"objective": Trace_ELBO(2, vectorize_particles=True)}),
    "TraceEnum_ELBO": (Mixture, REALS.double(), {"objective": TraceEnum_ELBO(), "validation": 0.25}),
    "functions": (lambda: (local_model, local_guide), REALS, {"validation": 0.25}),
    "dropout, batch norm, binarisation": (
        lambda: vae(encoder=Normalised),
        Split({"x": 0.2 + 0.6 * BITS}, transform=binarised),
        {"validation": 0.25},
    ),
    "dataset": (vae, Rows(BITS), {}),
}


def stopped_and_resumed(name, stop, tmp_path):
    """The last checkpoints of a run that went straight to 6 epochs and of one that was stopped and taken up again."""
    make, data, options = RESUMABLE[name]
    options = {"batch_size": 10, **options}
    with pyro.get_param_store().scope():
        straight = quietly(make(), data, max_epochs=6, out=tmp_path / "straight", **copy.deepcopy(options))
    with pyro.get_param_store().scope():
        callbacks = [] if stop == "after 3 epochs" else [At(stop, interrupt)]
        epochs = 3 if stop == "after 3 epochs" else 6
        parted = tmp_path / "parted"
        quietly(make(), data, max_epochs=epochs, out=parted, callbacks=callbacks, **copy.deepcopy(options))
    with pyro.get_param_store().scope():
        pair = make()
        known = structure(pair, *next(match(data, make()[0] if isinstance(pair, tuple) else pair.model).sequential(10)))
        with torch.no_grad():
            for tensor in known.parameters.values():
                tensor.zero_()  # everything has to come from the checkpoint
        torch.manual_seed(99)
        resumed = quietly(pair, data, max_epochs=6, out=parted, resume=True, **copy.deepcopy(options))
    kept = [checkpoint.read(checkpoint.latest(tmp_path / run / "checkpoints")) for run in ("straight", "parted")]
    return straight, resumed, *kept


# Steps 6 and 9 are in the middle of epochs (of 4, or of 3 where rows are held out), 8 and 12 at the end of some.
@pytest.mark.parametrize("stop", ["after 3 epochs", 6, 8, 9])
@pytest.mark.parametrize("name", RESUMABLE)
def test_resumed_runs_are_bit_for_bit_the_uninterrupted_ones(name, stop, tmp_path):
    straight, resumed, *kept = stopped_and_resumed(name, stop, tmp_path)
    assert without_time(resumed.history) == without_time(straight.history)
    assert (resumed.step, resumed.epoch) == (straight.step, straight.epoch)
    assert (resumed.best_epoch, resumed.best_loss) == (straight.best_epoch, straight.best_loss)
    assert len(resumed.history.rows) == (straight.epoch if name == "patience that ends" else 6)
    assert " at 0x" not in str(straight.config), "another process would not find the same settings"
    states = [{k: v.detach() for k, v in run.known.parameters.items()} for run in (straight, resumed)]
    assert same(*states)
    assert all(value.any() for value in states[1].values())
    for one, other in ((kept[0].parameters, kept[1].parameters), (kept[0].random, kept[1].random)):
        assert same(one, other)
    moments = [k.optimizer["state"] for k in kept]
    assert moments[0].keys() == moments[1].keys()
    for key in moments[0]:
        for what, value in moments[0][key].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(moments[1][key][what])), what
    assert kept[0].optimizer["param_groups"] == kept[1].optimizer["param_groups"]
    assert kept[0].state["scheduler"] == kept[1].state["scheduler"]


def test_resume_takes_the_seed_of_the_run_and_refuses_other_settings(tmp_path):
    go = partial(fit, vae(), BITS, batch_size=10, out=tmp_path / "run", progress=False)
    first = go(max_epochs=1)
    again = go(max_epochs=2, resume=True)
    assert again.seed == first.seed
    assert without_time(again.history)[:1] == without_time(first.history)
    before = snapshot(first.pair)
    for changed, message in [
        ({"lr": 0.1}, r"lr is 0.1, the run in .* has 0.001; pass lr=0.001"),
        ({"seed": first.seed + 1}, rf"seed is {first.seed + 1}, the run in .* has {first.seed}; "),
        ({"optimizer": torch.optim.SGD}, r"optimizer is 'SGD', the run in .* has 'Adam"),
        ({"objective": ELBO(beta=Linear(0.0, 1.0, epochs=4))}, r"objective is 'ELBO\(.*Linear\("),
    ]:
        with pytest.raises(ValueError, match=message):
            go(max_epochs=3, resume=True, **changed)
    assert same(snapshot(first.pair), before)


def test_patience_may_begin_with_a_resumed_run(tmp_path):
    """The best parameters so far were not kept: the best from then on are returned."""
    pair, go = vae(), partial(quietly, data=BITS, validation=0.25, lr=0.3, batch_size=10, out=tmp_path)
    go(pair, max_epochs=3)
    seen = {}
    callback = lambda run: seen.setdefault(run.epoch, snapshot(run.pair))  # noqa: E731
    run = go(pair, max_epochs=30, patience=2, resume=True, callbacks=[callback])
    assert run.best_epoch in seen
    assert run.best_loss == min(run.history["validation_loss"][3:])
    assert same(snapshot(pair), seen[run.best_epoch])


def test_a_run_at_the_end_of_its_patience_is_over(tmp_path):
    pair, go = vae(), partial(quietly, data=BITS, validation=0.25, lr=0.3, batch_size=10, patience=2, out=tmp_path)
    first = go(pair, max_epochs=100)
    assert first.epoch < 100
    returned = snapshot(pair)
    again = go(vae(seed=1), max_epochs=100, resume=True)
    assert (again.step, again.history.rows) == (first.step, first.history.rows)
    assert same(snapshot(again.pair), returned)


@pytest.mark.parametrize("patience", [None, 3])
def test_load_gives_back_what_fit_returned(patience, tmp_path):
    pair = vae(likelihood=partial(conditionals.FixedNormal, scale=0.3), encoder=None)
    run = quietly(
        pair, BITS, max_epochs=8, lr=0.3, batch_size=10, validation=0.25, patience=patience, out=tmp_path / "run"
    )
    again = load(tmp_path / "run")
    assert same(snapshot(again.pair), snapshot(pair))
    assert again.history.rows == run.history.rows == History.from_csv(tmp_path / "run" / "history.csv").rows
    assert (again.step, again.epoch, again.best_epoch, again.config) == (
        run.step,
        run.epoch,
        run.best_epoch,
        run.config,
    )
    if patience:
        assert run.best_epoch < run.epoch, "the best are not the last, so that the test tells them apart"


def test_load_puts_parameters_into_somebodys_functions(tmp_path):
    pair = (local_model, local_guide)
    with pyro.get_param_store().scope():
        quietly(pair, REALS, max_epochs=2, lr=0.1, out=tmp_path / "run")
        want = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    with pytest.raises(ValueError, match=r"is of a pair of your own; pass it as pair="):
        load(tmp_path / "run")
    load(tmp_path / "run", pair)
    assert same({name: value.detach() for name, value in pyro.get_param_store().items()}, want)
    with pytest.raises(ValueError, match=r"do not have the same parameters, \['a', 'b', 'loc'\] for example; pass the"):
        load(tmp_path / "run", (discrete_model, discrete_guide))


class Registering(nn.Module):
    """Its network has a name in Pyro's store that each instance has."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Linear(2, 4)

    def model(self, x):
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 0.5).to_event(1))


def registering_functions(seed):
    pair = Registering(seed)
    return pair.model, pair.guide


@pytest.mark.parametrize("make", [Registering, registering_functions])
def test_a_second_network_of_a_registered_name_is_trained_and_loaded_as_if_alone(make, tmp_path):
    first = quietly(make(0), BITS, max_epochs=2)
    left = snapshot(nn.ParameterList(first.known.parameters.values()))
    second = quietly(make(1), BITS, max_epochs=2, out=tmp_path / "second")
    assert same(snapshot(nn.ParameterList(first.known.parameters.values())), left)
    pyro.clear_param_store()
    alone = quietly(make(1), BITS, max_epochs=2)
    assert without_time(second.history) == without_time(alone.history)
    assert same(second.known.parameters, alone.known.parameters)
    pyro.clear_param_store()
    assert same(load(tmp_path / "second", make(2)).known.parameters, alone.known.parameters)


# What is left alone ---------------------------------------------------------------------------------------------------


def products():
    """Settings of the precision of matrix products: torch's older one, and its newer ones."""
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
    )


def surroundings():
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002  (the global one is what is wanted)
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "settings": pyro.settings.get(),
        "validation": (pyro.infer.util.is_validation_enabled(), torch.distributions.Distribution._validate_args),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "sigint": signal.getsignal(signal.SIGINT),
        "autocast": torch.is_autocast_enabled("cpu"),
        "products": products(),
        "hooks": len(nn.modules.module._global_forward_pre_hooks),
        "foreign parameter": pyro.param("foreign").tolist(),
    }


def fails(*_):
    raise KeyError("a callback's own error")


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("precision", [None, "float64", "tf32", "bfloat16"])
@pytest.mark.parametrize("ends", ["well", "in an error", "in NaN", "before it starts", "in an interruption"])
def test_fit_leaves_its_surroundings_as_they_were(ends, precision, validate):
    options, error = {
        "well": ({}, nullcontext()),
        "in an error": ({"callbacks": [fails]}, pytest.raises(KeyError)),
        "in NaN": ({"lr": 1e30, "optimizer": torch.optim.SGD}, pytest.raises(FloatingPointError)),
        "before it starts": ({"objective": "ELBO"}, pytest.raises(TypeError)),
        "in an interruption": ({"callbacks": [At(3, interrupt)]}, nullcontext()),
    }[ends]
    pyro.param("foreign", torch.ones(2))
    pair = vae()
    with pyro.validation_enabled(validate):
        before = surroundings()
        with error:
            run = quietly(pair, BITS, max_epochs=3, batch_size=10, validation=0.25, precision=precision, **options)
            assert run.interrupted == (ends == "in an interruption")
        after = surroundings()
    assert before == after
    others = {name for name in pyro.get_param_store() if not name.startswith(pair._pyro_name)}
    assert others == {"foreign"}
    assert all(module.training for module in pair.modules())


def test_modes_of_modules_are_left_and_validation_is_in_evaluation_mode():
    pair = vae(encoder=Normalised)
    pair.encoder.layers[3].eval()
    pair.encoder.modes.clear()
    modes = [module.training for module in pair.modules()]
    quietly(pair, BITS, max_epochs=2, batch_size=10, validation=0.25)
    assert [module.training for module in pair.modules()] == modes
    # The dry run, then for each epoch 3 steps and 1 batch of validation.
    assert pair.encoder.modes == [False, False, *[True, True, True, False] * 2]


def test_an_objective_of_pyros_stays_free_for_other_pairs():
    """They remember the plates of the pair that they first saw."""
    objective = TraceEnum_ELBO()

    def words_model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))), infer={"enumerate": "parallel"})
            with pyro.plate("words", 4, dim=-2):
                pyro.sample("x", dist.Bernoulli(0.2 + 0.6 * c), obs=x.T)

    quietly(Mixture(), REALS.double(), objective=objective, max_epochs=1)
    quietly((words_model, lambda x: None), BITS, objective=objective, max_epochs=1)
    assert objective.max_plate_nesting == math.inf


# Validation and early stopping ----------------------------------------------------------------------------------------


def test_validation_has_common_random_numbers_and_is_the_loss_in_evaluation_mode():
    """Nothing but noise would change the value while the parameters stand still; batch norm does not move in it."""
    pair, held_out = vae(encoder=Normalised), BITS[:12]
    quietly(pair, BITS, max_epochs=1)  # statistics that differ from the start
    statistics = copy.deepcopy(dict(pair.named_buffers()))
    frozen = [module.eval() for module in pair.encoder.modules()]
    run = quietly(pair, BITS, max_epochs=3, batch_size=10, lr=1e-30, validation=held_out, seed=5)
    losses = run.history["validation_loss"]
    assert losses[0] == losses[1] == losses[2]
    assert len(set(run.history["train_loss"])) == 3
    step = Step(pair, ELBO(), run.known)
    with evaluation_mode(pair), isolated_random_state(5), torch.no_grad():
        by_hand = sum(step(batch) * len(batch) for batch in (held_out[:10], held_out[10:])) / 12
    assert losses[0] == pytest.approx(by_hand.item(), rel=1e-6)
    assert same(dict(pair.named_buffers()), statistics)
    assert frozen


def test_early_stopping_restores_the_best():
    pair, seen = vae(), {}
    run = quietly(
        pair,
        BITS[:20],
        validation=BITS[20:],
        max_epochs=200,
        lr=0.05,
        patience=4,
        callbacks=[lambda run: seen.setdefault(run.epoch, snapshot(run.pair))],
    )
    losses = run.history["validation_loss"]
    assert run.best_epoch == 1 + losses.index(min(losses))
    assert run.best_loss == min(losses)
    assert run.epoch == len(losses) == run.best_epoch + 4 < 200
    assert same(snapshot(pair), seen[run.best_epoch])
    assert not same(seen[run.epoch], seen[run.best_epoch])


def test_without_patience_the_last_parameters_stay():
    pair, seen = vae(), {}
    run = quietly(
        pair,
        BITS[:20],
        validation=BITS[20:],
        max_epochs=40,
        lr=0.1,
        callbacks=[lambda run: seen.setdefault(run.epoch, snapshot(run.pair))],
    )
    assert run.best_epoch < run.epoch == 40
    assert same(snapshot(pair), seen[40])


def test_a_callback_may_end_the_run():
    def stop(run):
        run.stopping = run.epoch == 2

    counted = []

    class Count(Callback):
        def on_step(self, run):
            counted.append(run.step)

    run = quietly(vae(), BITS, max_epochs=9, batch_size=16, callbacks=[stop, Count()])
    assert (run.epoch, run.step, counted) == (2, 6, [1, 2, 3, 4, 5, 6])


# Schedules ------------------------------------------------------------------------------------------------------------


def test_schedules_reach_the_objective():
    """Each epoch of warm-up is the loss of the ELBO with that constant beta at the same parameters and noise."""
    train = {}
    for name, beta in {"warm-up": Linear(0.0, 1.0, epochs=4), 0.0: 0.0, 0.25: 0.25, 0.5: 0.5, 1.0: 1.0}.items():
        train[name] = quietly(
            vae(), BITS, objective=ELBO(beta=beta), max_epochs=6, lr=1e-30, batch_size=40, validation=BITS[:12]
        ).history
    warm = train["warm-up"]
    assert warm["beta"] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    for epoch, beta in ((0, 0.0), (1, 0.25), (2, 0.5), (4, 1.0), (5, 1.0)):
        assert warm["train_loss"][epoch] == train[beta]["train_loss"][epoch]
        assert epoch == 0 or warm["train_loss"][epoch] != train[0.0]["train_loss"][epoch]
    assert warm["validation_loss"] == train[1.0]["validation_loss"], "validation is with the schedule at its end"
    assert "beta" not in train[1.0]


def test_schedules_move_with_every_step():
    beta, seen = Linear(0.0, 1.0, epochs=2), []

    class Watch(Callback):
        def on_step(self, run):
            seen.append(beta.value.item())

    quietly(vae(), BITS, objective=ELBO(beta=beta), max_epochs=3, batch_size=10, callbacks=[Watch()])
    assert seen == [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0, 1.0, 1.0, 1.0]


def test_learning_rates_follow_the_schedule():
    run = quietly(vae(), BITS, max_epochs=5, lr=0.4, schedule=partial(StepLR, step_size=2, gamma=0.5))
    assert run.history["lr"] == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1])


def test_gradients_are_clipped_together():
    """A step of plain gradient descent is as long as lr times clip_norm."""
    pair = vae()
    before = snapshot(pair)
    quietly(pair, BITS, max_epochs=1, batch_size=40, lr=0.5, clip_norm=1e-2, optimizer=torch.optim.SGD)
    moved = torch.cat([(value - before[name]).flatten() for name, value in pair.state_dict().items()])
    assert moved.norm().item() == pytest.approx(0.5 * 1e-2, rel=1e-3)


# Numbers that are not finite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_bad_step", [2, 6])
def test_a_loss_of_nan_names_step_site_and_rows_and_restores(first_bad_step):
    steps = []

    class Trap(VAE):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", self.prior())
                pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)
                bad = torch.zeros(len(x))
                bad[3] = math.nan if len(steps) >= first_bad_step - 1 else 0.0
                pyro.sample("extra", dist.Delta(torch.zeros(len(x)), log_density=bad, validate_args=False), obs=bad * 0)

    class Count(Callback):
        def on_step(self, run):
            steps.append(snapshot(run.pair))

    pair = Trap(4, 2, hidden=(8,))
    start = snapshot(pair)
    epoch = 1 + first_bad_step // 5
    message = (
        rf"the loss is nan at step {first_bad_step}, in epoch {epoch}: log p of site 'extra', rows \[3\] of the batch"
    )
    with pytest.raises(FloatingPointError, match=message):
        quietly(pair, BITS, max_epochs=3, batch_size=10, callbacks=[Count()])
    assert same(snapshot(pair), start if first_bad_step < 5 else steps[3]), "the parameters from before that epoch"
    assert not same(snapshot(pair), steps[-1])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("likelihood", [conditionals.Bernoulli, conditionals.LearnedNormal])
def test_divergence_names_the_parameters_and_restores(likelihood, optimizer):
    """In the first epoch too, where Pyro's own checks would say something else."""
    pair = vae(likelihood=likelihood)
    start = snapshot(pair)
    with pytest.raises(FloatingPointError, match=r"the loss is -?(nan|inf) at step \d.* parameters \['.*finite"):
        quietly(pair, BITS, max_epochs=3, batch_size=10, lr=1e30, optimizer=optimizer)
    assert same(snapshot(pair), start)


# Other ways of writing pairs and data ---------------------------------------------------------------------------------


def test_parameters_in_the_store_are_trained():
    pyro.param("foreign", torch.ones(2))
    quietly((local_model, local_guide), REALS, max_epochs=1, lr=1e-30)
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    assert set(before) == {"foreign", "loc", "scale", "slope"}
    quietly((local_model, local_guide), REALS, max_epochs=150, lr=0.05)
    after = pyro.get_param_store()
    assert torch.equal(after["foreign"], before["foreign"])
    assert not any(torch.equal(after[name], before[name]) for name in ("loc", "scale", "slope"))
    # Maximum likelihood: x ~ N(loc, 1 + scale^2), with a scale that can go to 0 but no further.
    assert after["loc"].item() == pytest.approx(REALS.mean().item(), abs=0.1)


def test_autoguides_over_local_latents_need_all_rows():
    with pytest.raises(ValueError, match="AutoNormal has parameters of its own for each row, but batch_size is 10 of"):
        quietly((local_model, AutoNormal(local_model)), REALS, batch_size=10)
    guide = AutoNormal(local_model)
    run = quietly((local_model, guide), REALS, batch_size=40, max_epochs=30, lr=0.05)
    assert guide.median()["z"].shape == (40,)
    assert run.history["train_loss"][-1] < run.history["train_loss"][0]


def test_global_latents_need_to_know_how_many_data_there_are():
    """Else each step would count log p(w) - log q(w) for the batch only: the posterior would come out too wide."""

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"latent sites \['w'\] lie outside the plate 'data', which has size 10 for"):
        quietly((model, AutoNormal(model)), REALS, batch_size=10)
    quietly((model, AutoNormal(model)), REALS, batch_size=40, max_epochs=1)


def closing_over(net):
    """A pair of functions that reach a network by closure."""

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=net(z)).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("q_scale", torch.full((2,), 0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], scale).to_event(1))

    return model, guide


@pytest.mark.parametrize("data", [BITS, BITS.double(), BITS.numpy()])
@pytest.mark.parametrize("make", [vae, lambda: closing_over(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)))])
def test_float64_moves_data_and_pair_and_leaves_the_default(make, data):
    run = quietly(make(), data, max_epochs=2, batch_size=10, validation=0.25, precision="float64")
    floating = [tensor.dtype for tensor in [*run.known.parameters.values(), *run.known.buffers.values()]]
    assert {dtype for dtype in floating if dtype.is_floating_point} == {torch.float64}
    assert torch.get_default_dtype() == torch.float32
    assert all(math.isfinite(loss) for loss in run.history["train_loss"])


@pytest.mark.parametrize("subsample_size", [20, 300])
def test_float64_of_functions_that_name_their_plate_is_evaluated(subsample_size):
    """Of 300 rows a first batch of an evaluation has 128, on which what draws its rows among all does not run."""

    def model(x):
        with pyro.plate("rows", 300, subsample_size=subsample_size) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x[rows])
        with pyro.plate("others", 2):
            pyro.sample("one", dist.Normal(x.new_zeros(()), 1.0), obs=x.new_zeros(2))

    def guide(x):
        weight = pyro.param("weight", torch.full((1, 1), 0.5))
        with pyro.plate("rows", 300, subsample_size=subsample_size) as rows:
            pyro.sample("z", dist.Normal((x[rows] @ weight)[..., 0], 0.5**0.5))

    x = torch.randn(300, 1)
    options = {"batch_size": 300, "plate": "rows", "validation": False}
    quietly((model, guide), x, max_epochs=1, lr=1e-6, precision="float64", **options)
    found = elbo((model, guide), x, plate="rows", num_particles=200).elbo
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).mean() + 2 * dist.Normal(0.0, 1.0).log_prob(torch.zeros(())) / 300
    assert found.per_datum.dtype == torch.float64
    assert found.value == pytest.approx(exact.item(), abs=0.3 if subsample_size < 300 else 0.02)


@pytest.mark.parametrize("networks", [False, True])
def test_float64_of_functions_is_evaluated_and_loaded(networks, tmp_path):
    """Their parameters are in Pyro's store, or in networks that nothing but their code refers to."""

    def pair():
        weights = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)

        def layer(index, value):
            if networks:
                return pyro.module(f"layer_{index}", weights[index])(value)
            return value @ pyro.param(f"layer_{index}", torch.full((4, 2) if index == 0 else (2, 4), 0.1))

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=layer(1, z)).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(layer(0, x), 0.5).to_event(1))

        return model, guide

    trained, fresh = pair(), pair()
    run = quietly(trained, BITS, max_epochs=2, precision="float64", out=tmp_path)
    want = elbo(trained, BITS.double(), seed=0).elbo.per_datum
    assert torch.equal(elbo(trained, BITS, seed=0).elbo.per_datum, want)
    pyro.clear_param_store()
    again = load(tmp_path, fresh)
    assert same(again.known.parameters, run.known.parameters)
    assert {tensor.dtype for tensor in again.known.parameters.values()} == {torch.float64}
    assert torch.equal(elbo(fresh, BITS, seed=0).elbo.per_datum, want)
    assert torch.get_default_dtype() == torch.float32


class Remembering(ELBO):
    """Keeps the dtypes of what it is the mean of."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def per_datum(self, drawn):
        value = super().per_datum(drawn)
        self.dtypes |= {value.dtype, *(term.log_prob.dtype for term in drawn.terms)}
        return value


@pytest.mark.parametrize(
    ("precision", "want"),
    [("float32", torch.float32), ("float64", torch.float64), ("tf32", torch.float32), ("bfloat16", torch.float32)],
)
def test_everything_that_is_kept_or_summed_has_one_dtype(precision, want):
    made, losses, objective = [], [], Remembering()

    def optimizer(parameters, lr):
        made.append(torch.optim.Adam(parameters, lr))
        return made[0]

    class Losses(Callback):
        def on_step(self, run):
            losses.extend(parameter.grad for parameter in run.pair.parameters())

    run = quietly(
        vae(),
        BITS.double(),
        objective=objective,
        max_epochs=2,
        batch_size=10,
        validation=0.25,
        precision=precision,
        optimizer=optimizer,
        callbacks=[Losses()],
    )
    moments = [state[name] for state in made[0].state.values() for name in ("exp_avg", "exp_avg_sq")]
    parameters = [*run.known.parameters.values(), *run.known.buffers.values()]
    assert {tensor.dtype for tensor in (*moments, *parameters, *losses)} == objective.dtypes == {want}
    assert len(moments) == 2 * len(list(run.pair.parameters()))
    assert all(math.isfinite(loss) for name in ("train_loss", "validation_loss") for loss in run.history[name])


@pytest.mark.parametrize("precision", [None, "float32", "float64", "tf32", "bfloat16"])
def test_tf32_is_asked_for_while_fit_runs(precision):
    seen = []
    quietly(vae(), BITS, max_epochs=1, precision=precision, callbacks=[lambda run: seen.append(products())])
    assert seen == [("high", "tf32", "tf32", products()[3]) if precision == "tf32" else products()]


@pytest.mark.parametrize("older", ["highest", "high", "medium"])
def test_tf32_leaves_the_older_setting(older):
    original = products()
    torch.set_float32_matmul_precision(older)
    try:
        before = products()
        quietly(vae(), BITS, max_epochs=1, precision="tf32")
        assert products() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        _, torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision, _ = original


def test_tf32_leaves_the_newer_settings():
    """torch refuses to tell the older setting where the newer ones say something else."""
    original, seen = products(), []
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            torch.get_float32_matmul_precision()
        quietly(vae(), BITS, max_epochs=1, precision="tf32", callbacks=[
            lambda run: seen.append(torch.backends.mkldnn.matmul.fp32_precision)])  # fmt: skip
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
        assert torch.backends.mkldnn.matmul.fp32_precision == original[2]
        assert seen == ["tf32"]
    finally:
        torch.backends.cuda.matmul.fp32_precision = original[1]
    assert products() == original


def test_float64_gives_the_float32_losses_to_float32_precision():
    losses = [quietly(vae(), BITS, max_epochs=1, lr=1e-30, precision=p).history.last for p in ("float32", "float64")]
    assert losses[0]["train_loss"] != losses[1]["train_loss"]
    exact = [quietly(vae(), BITS.to(d), objective=ELBO(500), max_epochs=1, lr=1e-30, precision=p).history.last
             for d, p in ((torch.float32, None), (torch.float64, "float64"))]  # fmt: skip
    assert exact[0]["train_loss"] == pytest.approx(exact[1]["train_loss"], abs=0.02)  # other draws, same mean


def test_bfloat16_trains_with_parameters_in_float32():
    pair, dtypes = vae(), []
    pair.encoder.layers[0].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    run = quietly(pair, BITS, max_epochs=30, lr=0.03, batch_size=20, precision="bfloat16", validation=0.25)
    assert set(dtypes[1:]) == {torch.bfloat16}  # in training and in validation; the first is the dry run
    assert {p.dtype for p in pair.parameters()} == {torch.float32}
    assert run.history["train_loss"][-1] < run.history["train_loss"][0] - 0.1
    assert all(math.isfinite(loss) for loss in run.history["validation_loss"])


FORMS = {
    "tensor": BITS,
    "array": BITS.numpy(),
    "tuple": (BITS,),
    "dict": {"y": torch.arange(40), "x": BITS},
    "Split": Split({"x": BITS, "y": torch.arange(40)}),
    "Data": Data(Split({"x": BITS})),
    "TensorDataset": TensorDataset(BITS),
    "Dataset": Rows(BITS),
    "bits": BITS.bool(),
    "bytes": BITS.byte(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_trains_alike(form):
    pair, expected = vae(), vae()
    quietly(pair, FORMS[form], max_epochs=2, batch_size=16)
    quietly(expected, BITS, max_epochs=2, batch_size=16)
    assert same(snapshot(pair), snapshot(expected))


def test_the_validation_split_of_data_is_used_unless_told_otherwise():
    data = Data(Split({"x": BITS[:30]}), Split({"x": BITS[30:]}))
    by_data, by_name = (quietly(vae(), *given, max_epochs=1, **more).history for given, more in (
        ((data,), {}), ((BITS[:30],), {"validation": BITS[30:]})))  # fmt: skip
    assert without_time(by_data) == without_time(by_name)
    assert "validation_loss" not in quietly(vae(), data, max_epochs=1, validation=False).history
    fraction = quietly(vae(), BITS, max_epochs=1, validation=0.25)
    assert (fraction.config["rows"], fraction.config["validation_rows"]) == (30, 10)


def test_lines_tell_the_progress_and_nothing_else_is_printed(capsys):
    fit(vae(), BITS, max_epochs=40, validation=0.25, seed=0)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().split("\n")
    assert lines.pop(0) == "eager steps, 40 are planned: too few to be worth compiling"
    assert len(lines) == 20
    assert lines[-1].startswith("epoch 40/40: train loss ")
    assert "validation loss" in lines[-1]
    quietly(vae(), BITS, max_epochs=2)
    assert capsys.readouterr() == ("", "")


# Interruption ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_after_the_step_and_leaves_a_usable_pair(tmp_path):
    pair = vae()
    begun = []

    def kill():
        begun.append(snapshot(pair))
        os.kill(os.getpid(), signal.SIGINT)

    run = quietly(pair, BITS, max_epochs=50, batch_size=10, out=tmp_path / "run", callbacks=[At(6, kill)])
    assert run.interrupted
    assert (run.step, run.epoch, len(run.history.rows)) == (6, 1, 1)
    assert same(snapshot(pair), begun[0])
    assert same(snapshot(load(tmp_path / "run").pair), begun[0])
    more = quietly(pair, BITS, max_epochs=1)
    assert not more.interrupted
    assert math.isfinite(more.history.last["train_loss"])


def test_a_second_ctrl_c_ends_at_once():
    def twice():
        interrupt()
        interrupt()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores the signal
    try:
        with pytest.raises(KeyboardInterrupt):
            quietly(vae(), BITS, max_epochs=50, callbacks=[At(2, twice)])
    finally:
        signal.signal(signal.SIGINT, before)


# Bad input ------------------------------------------------------------------------------------------------------------


def no_guide_site(x):
    pass


def without_plate(x):
    pyro.sample("z", dist.Normal(0.4 * x, 1.0).to_event(1))


NAN = BITS.clone()
NAN[7, 2] = math.nan
INFINITE = BITS.clone()
INFINITE[7, 2] = math.inf
REVERSED = Split({"x": BITS}, transform=lambda tensors: {"x": 2 - tensors["x"]})

BAD = {
    "no pair": (lambda: None, BITS, {}, TypeError, "pair is NoneType 'None'"),
    "shape": (vae, torch.ones(40, 5), {}, ValueError, r"x has event shape \(5,\), the network expects \(4,\); pass"),
    "shape, somebody's network": (
        lambda: vae(encoder=nn.Linear(4, 3)), torch.ones(40, 5), {}, ValueError, r"does not run on .* \(40, 5\)"),
    "dtype": (vae, BITS.long(), {}, ValueError, r"does not run on .* \(40, 4\) int64 .*; a network takes floating"),
    "precision of data": (vae, BITS.double(), {}, ValueError, r"does not run on .* \(40, 4\) float64 "),
    "complex data": (vae, BITS.to(torch.complex64), {}, TypeError, "x is a torch.complex64, real numbers are wanted"),
    "NaN": (vae, NAN, {}, ValueError, "x has 1 NaN or infinite values, the first in row 7; drop or fill them"),
    "infinity": (vae, INFINITE, {}, ValueError, "x has 1 NaN or infinite values, the first in row 7"),
    "pixels above 1": (
        vae, BITS * 2, {}, ValueError,
        r"x of data has values that site 'x' cannot give: row \d lies in \[0, 2\], wanted is 0 or 1; scale or bin"),
    "grey pixels": (vae, 0.3 + 0 * BITS, {}, ValueError, r"row 0 lies in \[0.3, 0.3\], wanted is 0 or 1"),
    "pixels below 0": (
        lambda: vae(likelihood=conditionals.ContinuousBernoulli), BITS - 0.5, {}, ValueError, r"in \[-0.5, 0.5\]"),
    "pixels of a transform": (vae, REVERSED, {}, ValueError, "cannot give"),
    "pixels to validate on": (
        vae, BITS, {"validation": BITS + 1}, ValueError, r"x of validation has values that site 'x' cannot give"),
    "reshaped pixels": (
        lambda: (lambda x: pyro.plate("data", len(x))(lambda: pyro.sample(
            "x", dist.Bernoulli(pyro.param("p", torch.tensor(0.5))).expand([4]).to_event(1), obs=x.reshape(-1, 4)))(),
         lambda x: None), 2 * BITS.reshape(40, 2, 2), {}, ValueError, "cannot give"),
    "empty": (vae, BITS[:0], {}, ValueError, r"x has shape \(0, 4\) and no rows"),
    "no tensor": (vae, "digits", {}, TypeError, "data hold a str"),
    "too many tensors": (vae, (BITS, BITS), {}, ValueError, r"model takes \(x\), the data are 2 tensors"),
    "no such tensor": (vae, {"y": BITS}, {}, ValueError, "model wants 'x', the data have y"),
    "batch": (vae, BITS, {"batch_size": 41}, ValueError, "batch_size is 41, the data have 40 rows; pass batch_size<="),
    "batch of 0": (vae, BITS, {"batch_size": 0}, ValueError, "batch_size is 0, it must be positive"),
    "batch of 1.5": (vae, BITS, {"batch_size": 1.5}, TypeError, "batch_size is 1.5, a whole number is wanted"),
    "max_epochs": (vae, BITS, {"max_epochs": 0}, ValueError, "max_epochs is 0, it must be positive"),
    "lr": (vae, BITS, {"lr": math.nan}, ValueError, "lr is nan, it must be positive and finite"),
    "lr as text": (vae, BITS, {"lr": "1e-3"}, TypeError, "lr is '1e-3', a number is wanted"),
    "clip_norm": (vae, BITS, {"clip_norm": -1.0}, ValueError, "clip_norm is -1.0"),
    "patience": (vae, BITS, {"patience": 2}, ValueError, "patience is 2, but there are no validation data"),
    "seed": (vae, BITS, {"seed": -1}, ValueError, "seed is -1, it must be at least 0"),
    "large seed": (vae, BITS, {"seed": 2**32}, ValueError, r"seed is 4294967296, .* below 2\*\*32"),
    "seed as text": (vae, BITS, {"seed": "a"}, TypeError, "seed is 'a', a whole number is wanted"),
    "precision": (vae, BITS, {"precision": "half"}, ValueError, "precision is 'half'; pass one of None, float32, "),
    "accelerator": (vae, BITS, {"accelerator": "abacus"}, ValueError, "accelerator is 'abacus'; pass 'auto'"),
    "objective": (vae, BITS, {"objective": ELBO}, TypeError, "objective is <class .*ELBO'>, not an objective"),
    "optimizer": (vae, BITS, {"optimizer": "adam"}, TypeError, "optimizer is 'adam', which makes no torch optimizer"),
    "Pyro's optimizer": (
        vae, BITS, {"optimizer": pyro.optim.Adam({"lr": 0.1})}, TypeError, "which makes no torch optimizer; pass"),
    "callbacks": (vae, BITS, {"callbacks": print}, TypeError, "callbacks is <built-in.*, a list of functions"),
    "validation fraction": (vae, BITS, {"validation": 1.5}, ValueError, "validation is 1.5, a fraction between 0 and"),
    "validation shape": (vae, BITS, {"validation": torch.ones(9, 5)}, ValueError, r"validation has event shape \(5,\)"),
    "plate": (vae, BITS, {"plate": "rows"}, ValueError, r"plate='rows' is no plate of the model, whose"),
    "resume": (vae, BITS, {"resume": True}, ValueError, "resume is True, but out is None"),
    "sites of the model": (
        lambda: (local_model, no_guide_site), REALS, {}, ValueError, r"the model samples \['z'\], which the guide"),
    "sites of the guide": (
        lambda: (lambda x: pyro.plate("data", len(x))(pyro.sample)("x", dist.Normal(0.0, 1.0), obs=x), local_guide),
        REALS, {}, ValueError, r"the guide samples \['z'\], which the model"),
    "guide without the plate": (
        lambda: (local_model, without_plate), REALS, {}, ValueError,
        r"guide site 'z' is outside the plate 'data' .*; put it inside `with pyro.plate\('data', ...\):` in the guide"),
    "model without a plate": (
        lambda: (lambda x: pyro.sample("x", dist.Normal(x, 1.0).to_event(1), obs=x), no_guide_site), REALS, {},
        ValueError, "the model has no plate over the data"),
    "no parameters": (
        lambda: (lambda x: pyro.plate("data", len(x))(pyro.sample)("x", dist.Normal(0.0, 1.0), obs=x), no_guide_site),
        REALS, {}, ValueError, "the pair has no parameters, so there is nothing to fit"),
    "frozen parameters": (
        lambda: vae().requires_grad_(False), BITS, {}, ValueError, "the pair has no parameters, so there is nothing"),
}  # fmt: skip


def check_refusal(raised, before: dict, pair, kind: type, tmp_path: Path) -> None:
    assert type(raised.value) is kind
    message = str(raised.value)
    assert "\n" not in message, "one sentence"
    assert not message.endswith(".")
    if isinstance(pair, nn.Module):
        assert same(snapshot(pair), before)
    assert not any((tmp_path / "run").glob("*")), "nothing has been written"


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_before_anything_changes(case, tmp_path):
    make, data, options, kind, message = BAD[case]
    pair = make()
    before = snapshot(pair) if isinstance(pair, nn.Module) else {}
    state, out = torch.get_rng_state(), None if "resume" in options else tmp_path / "run"
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        fit(pair, data, **{"out": out, "progress": False, "seed": 0, **options})
    check_refusal(raised, before, pair, kind, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    if not isinstance(pair, nn.Module):
        assert all(parameter.grad is None for _, parameter in pyro.get_param_store().named_parameters())


def test_latent_dim_0_is_refused_by_the_constructor():
    with pytest.raises(ValueError, match="latent_dim is 0, expected sizes of at least 1; pass a positive latent_dim"):
        VAE(4, 0)


def test_folders_that_cannot_hold_the_run_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    pair = vae()
    before = snapshot(pair)
    quietly(vae(), BITS, max_epochs=1, out=tmp_path / "other")
    kept = sorted(path.name for path in (tmp_path / "other").rglob("*"))
    (tmp_path / "damaged" / "checkpoints" / "step_7.tmp").mkdir(parents=True)
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "history.csv").write_text("epoch")
    for out, resume, kind, message in [
        ("file", False, ValueError, r"out='.*file' can't be written to; pass a folder that you may write to"),
        ("file/below", False, ValueError, r"out='.*below' can't be written to"),
        ("other", False, ValueError, r"out='.*other' already holds a run; pass resume=True to go on with it, or an"),
        ("nothing", True, FileNotFoundError, r"out='.*nothing' has no complete checkpoint; pass resume=False"),
        ("damaged", False, ValueError, r"out='.*damaged' already holds a run; pass another folder, or delete this one"),
        ("damaged", True, FileNotFoundError, r"out='.*damaged' has no complete checkpoint; pass another folder"),
        ("losses", False, ValueError, r"out='.*losses' already holds a run; pass another folder, or delete this one"),
    ]:
        with pytest.raises(kind, match=message) as raised:
            quietly(pair, BITS, out=tmp_path / out, resume=resume)
        check_refusal(raised, before, pair, kind, tmp_path)
    assert sorted(path.name for path in (tmp_path / "other").rglob("*")) == kept
    assert not (tmp_path / "nothing").exists()


def test_a_run_of_another_pair_is_not_resumed(tmp_path):
    quietly(vae(), BITS, max_epochs=1, out=tmp_path)
    pair = vae(hidden=(9,))
    before = snapshot(pair)
    with pytest.raises(ValueError, match=r"pair is \{.*, the run in .* has \{"):
        quietly(pair, BITS, max_epochs=2, out=tmp_path, resume=True)
    assert same(snapshot(pair), before)


def test_an_autoguide_that_knows_its_rows_takes_mini_batches():
    """As stock Pyro: of Pyro's own example of a model whose plate is made by `create_plates`."""

    def plates(x, rows):
        return pyro.plate("data", 12, subsample=rows)

    def model(x, rows):
        with plates(x, rows):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, rows = 3 * torch.randn(12), torch.arange(12)
    guide = AutoNormal(model, create_plates=plates)
    decay = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.996)
    quietly((model, guide), (x, rows), batch_size=4, max_epochs=1000, lr=0.05, schedule=decay)
    torch.testing.assert_close(guide.median(x, rows)["z"].detach(), x / 2, atol=0.25, rtol=0)


@pytest.mark.parametrize("name", [name for name in dir(pyro.infer) if name.startswith("Jit") and "ELBO" in name])
def test_objectives_that_jit_the_program_are_refused(name):
    """Compiled, it says no plate's size any more: losses and gradients were N times too large."""
    with pytest.raises(TypeError, match=f"objective is pyro.infer.{name}, whose program, once compiled"):
        quietly((local_model, AutoNormal(local_model)), REALS, objective=getattr(pyro.infer, name)())


def test_an_objective_whose_loss_is_infinite_by_design_is_refused():
    with pytest.raises(TypeError, match="TraceTailAdaptive_ELBO, which reports an infinite loss"):
        quietly((local_model, AutoNormal(local_model)), REALS, objective=pyro.infer.TraceTailAdaptive_ELBO())


def packed(x):
    lengths = (x > 0).sum(1)
    rows = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    return nn.utils.rnn.pad_packed_sequence(rows, batch_first=True)[0]


@pytest.mark.parametrize("seen", [lambda x: (-x.log()).log(), lambda x: x / x.sum(-1, keepdim=True), packed])
def test_a_run_is_loaded_where_zeros_are_no_data(tmp_path, seen):
    """Loading dry-runs the pair on tensors of the batch's shape, which hold no data."""

    def model(x):
        shape = pyro.param("shape", torch.ones(4), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Gamma(shape, z.sum(-1, keepdim=True).exp()).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("weight", torch.zeros(4, 2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(seen(x) @ weight, 1.0).to_event(1))

    x = 0.1 + 0.8 * torch.rand(20, 4)
    quietly((model, guide), x, max_epochs=3, lr=0.1, out=tmp_path)
    fitted = {name: value.clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()
    run = load(tmp_path, (model, guide))
    assert run.epoch == 3
    for name, value in fitted.items():
        assert torch.equal(pyro.param(name), value)
