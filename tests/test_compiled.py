"""The compiled update is the eager update: with every optimizer and mode, and where nothing can be compiled."""

import importlib
import random
import warnings
from contextlib import contextmanager
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from foreign import PROGRAMS, UNCAPTURABLE
from test_laws import OBJECTIVES, PAIRS
from torch import nn, optim

from pyrovae.graphs import backends
from pyrovae.graphs.backends import compiler, inductor, interpreted
from pyrovae.models import VAE
from pyrovae.models.base import Pair, structure
from pyrovae.objectives import ELBO
from pyrovae.training import compiled as compiled_module
from pyrovae.training import loop as loop_module
from pyrovae.training.compiled import CompiledUpdate, worthwhile
from pyrovae.training.fit import fit
from pyrovae.training.schedules import Linear
from pyrovae.training.step import Step
from pyrovae.training.update import Update

fit_module = importlib.import_module("pyrovae.training.fit")  # the package has the function by this name

NAN = ("turns NaN", "turns NaN outside the plate")

pytestmark = [
    # Pyro says so whenever a module with a frozen parameter is registered.
    pytest.mark.filterwarnings("ignore:.*not registered in the param store because requires_grad=False"),
    pytest.mark.filterwarnings("ignore:Encountered NaN"),
]


@pytest.fixture(autouse=True)
def double():
    """Programs are made and run in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def reals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bits(rows=4, seed=0):
    return (reals(rows, 6, seed=seed) > 0).double()


BATCHES = [(bits(seed=seed),) for seed in range(3)]


ADAM = partial(optim.Adam, lr=0.02)


class Training:
    """A few steps of one kind, and everything that they leave behind, by name.

    Args:
        make: makes a pair, or a pair and its objective.
        batches: taken in turn.
        compiled: whether the steps are compiled ones.
        optimizer: called with the parameters.
    """

    def __init__(self, make, batches=BATCHES, *, compiled, optimizer=ADAM, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        made = make()
        self.pair, objective = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        self.batches, self.known = batches, structure(self.pair, *batches[0])
        step = Step(self.pair, objective, self.known)
        self.optimizer = optimizer([*self.known.parameters.values()])
        if compiled:
            self.update = CompiledUpdate(step, self.optimizer, **{"backend": interpreted, **options})
        else:
            self.update = Update(step, self.optimizer, clip_norm=options.get("clip_norm"))
        self.losses = []
        pyro.set_rng_seed(1)

    def steps(self, count):
        for _ in range(count):
            self.losses.append(self.update(*self.batches[len(self.losses) % len(self.batches)]))

    def watch(self):
        if isinstance(self.update, CompiledUpdate):
            self.update.watch()

    def left(self):
        """Copies, so that another training can share the param store."""
        state = pyro.util.get_rng_state()
        numbers = torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()])  # noqa: NPY002
        pyro.util.set_rng_state(state)
        tensors = {"losses": torch.stack(self.losses), "random numbers": numbers}
        for name, parameter in self.known.parameters.items():
            tensors[f"parameter {name}"] = parameter
            if parameter.grad is not None:
                tensors[f"gradient {name}"] = parameter.grad
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{kind} {name}"] = torch.as_tensor(value)
        tensors |= {f"buffer {name}": buffer for name, buffer in self.known.buffers.items()}
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(make, *args, steps=10, between=lambda number, training: None, tolerance=1e-10, **options):
    """Assert that both kinds of steps leave the same behind; the compiled training."""
    trained = {}
    for compiled in (False, True):
        training = Training(make, *args, compiled=compiled, **options)
        for number in range(steps):
            between(number, training)
            training.steps(1)
        trained[compiled] = training.left()
    assert_same(trained[True], trained[False], tolerance)
    return training


def assert_same(got, wanted, tolerance=1e-10):
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        torch.testing.assert_close(
            value,
            wanted[name],
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            check_dtype=not name.startswith("step "),
            msg=lambda m, name=name: f"{name}: {m}",
        )


@contextmanager
def one_line(reason):
    """One warning, in one line, that says why steps are eager ones."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said = [str(w.message) for w in caught if w.category is RuntimeWarning and "Encountered NaN" not in str(w.message)]
    assert len(said) == 1, said
    assert said[0].startswith("training goes on with eager steps: ")
    assert "\n" not in said[0]
    assert reason in said[0]


# Programs that no graph can hold --------------------------------------------------------------------------------------

READS = "the program reads the value of a tensor (foreign.py, line {}: {})"
CHANGED = "what the program reads in Python has changed since"
DRAWS = "the program draws random numbers from Python's or NumPy's generator; draw from torch's"
CALLED_AGAIN = pytest.mark.xfail(
    reason="capture calls the program once more, which moves what it keeps in Pyro's store besides parameters",
    raises=AssertionError,
    strict=True,
)
# Why, and the line that says so in the program; and how far the program itself goes with each call.
REASONS = {
    "a value decides": (READS, "return 2 * z if z[0, 0] > z[1, 0] else -z"),
    "counted sites": (CHANGED, None),
    "random sites": (DRAWS, None),
    "a growing attribute": (CHANGED, None),
    "Python's random numbers": (DRAWS, None),
    "NumPy's random numbers": (DRAWS, None),
    "through NumPy": (READS, "return z / (1 + np.abs(z.detach().numpy()).max())"),
    "through a list": (READS, "first, *_ = z.detach().mean(0).tolist()"),
    "chosen rows": ("the shape of a tensor depends on values (foreign.py, line {}: {})", "chosen = z[z[:, 0] > 0]"),
    "average baseline": (CHANGED, None),
}
EAGER = [pytest.param(name, marks=CALLED_AGAIN) if name == "average baseline" else name for name in REASONS]


def reason(name):
    """What the warning has to say, with the number of the line in the file as it is now."""
    text, line = REASONS[name]
    if line is None:
        return text
    with open(UNCAPTURABLE[name].__globals__["__file__"]) as file:
        (number,) = (number for number, text in enumerate(file, start=1) if text.strip() == line)
    return text.format(number, line)


def program(name):
    """What makes a program's pair and objective, and its batches: one, and its rows backwards."""
    made = {**PROGRAMS, **UNCAPTURABLE}[name]
    batch = made().batch
    return lambda: (lambda p: (p.pair, p.objective()))(made()), [batch, tuple(tensor.flip(0) for tensor in batch)]


def test_every_uncapturable_program_has_its_reason():
    assert {*REASONS, *NAN, "a later parameter"} == set(UNCAPTURABLE)


def watch_every_third(number, training):
    if number % 3 == 0:
        training.watch()


@pytest.mark.parametrize("name", EAGER)
def test_what_can_not_be_captured_is_trained_eagerly(name):
    """Exactly: losses, parameters, gradients, the optimizer's state and random numbers are those of eager steps."""
    make, batches = program(name)
    with one_line(reason(name)):
        training = same(make, batches, between=watch_every_third, tolerance=0.0)
    assert training.update.failure is not None
    assert not training.update.graphs


@pytest.mark.parametrize("name", REASONS)
def test_what_can_not_be_captured_says_why(name):
    make, batches = program(name)
    training = Training(make, batches, compiled=True)
    with one_line(reason(name)):
        training.steps(4)
    assert not training.update.graphs


@pytest.mark.parametrize("name", [*NAN, "a later parameter"])
def test_nan_is_compiled_too(name):
    """It is the loop that looks at losses."""
    make, batches = program(name)
    with pyro.validation_enabled(False):
        training = same(make, batches, between=watch_every_third, optimizer=partial(optim.SGD, lr=0.1))
    assert training.update.failure is None
    assert torch.isnan(training.losses[-1]) == (name in NAN)


@pytest.fixture
def interpreting(monkeypatch):
    """fit(compile=True) without a compiler."""

    class Interpreted(CompiledUpdate):
        def __init__(self, *args, **options):
            super().__init__(*args, **options, backend=interpreted)

    monkeypatch.setattr(loop_module, "CompiledUpdate", Interpreted)


def fitted(name, compile, **options):
    """History and parameters of a program."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    p = {**PROGRAMS, **UNCAPTURABLE}[name]()
    options = {"max_epochs": 3, "lr": 0.02, "batch_size": p.batch_size, "seed": 3, "progress": False} | options
    run = fit(p.pair, p.data or p.batch, objective=p.objective(), compile=compile, **options)
    return {
        "train_loss": torch.tensor(run.history["train_loss"]),
        **{n: parameter.detach().clone() for n, parameter in run.known.parameters.items()},
    }


@pytest.mark.parametrize("name", EAGER)
def test_fit_trains_eagerly_what_can_not_be_captured(name, interpreting):
    wanted = fitted(name, False)
    with one_line(reason(name)):
        got = fitted(name, True)
    assert_same(got, wanted, tolerance=0.0)


@pytest.mark.filterwarnings("ignore:training goes on with eager steps")  # see the test below
@pytest.mark.parametrize("name", NAN)
def test_fit_stops_at_nan_as_in_eager_training(name, interpreting):
    """With the parameters from before the epoch."""
    messages, parameters = [], []
    for compile in (False, True):
        with pytest.raises(FloatingPointError, match="at step 2, in epoch 1") as raised:
            fitted(name, compile, lr=0.1)
        messages.append(str(raised.value))
        parameters.append({n: p.detach().clone() for n, p in pyro.get_param_store().items()})
    assert messages[0] == messages[1]
    assert_same(*parameters, tolerance=0.0)
    assert parameters[0]["rate"].item() == 0.05


@pytest.mark.parametrize("name", NAN)
def test_nan_is_no_difference(name, interpreting):
    with pytest.raises(FloatingPointError, match="at step 2, in epoch 1"):
        fitted(name, True, lr=0.1)


# Optimizers -----------------------------------------------------------------------------------------------------------


def vae():
    return VAE((6,), latent_dim=2, hidden=(5,))


OPTIMIZERS = {
    "Adam": optim.Adam,
    "Adam fused": partial(optim.Adam, fused=True),
    "Adam one by one": partial(optim.Adam, foreach=False),
    "Adam amsgrad": partial(optim.Adam, amsgrad=True, betas=(0.8, 0.95)),
    "AdamW": partial(optim.AdamW, weight_decay=0.1),
    "AdamW fused": partial(optim.AdamW, weight_decay=0.1, fused=True),
    "SGD": optim.SGD,
    "SGD momentum": partial(optim.SGD, momentum=0.9, weight_decay=0.01),
    "SGD Nesterov": partial(optim.SGD, momentum=0.9, nesterov=True),
    "SGD fused": partial(optim.SGD, momentum=0.9, fused=True),
    "RMSprop": partial(optim.RMSprop, momentum=0.5, centered=True),
    "Adamax": optim.Adamax,
    "NAdam": optim.NAdam,
    "RAdam": optim.RAdam,
    "Adagrad": partial(optim.Adagrad, lr_decay=0.1),
    "Adadelta": optim.Adadelta,
    "ASGD": optim.ASGD,
    "Rprop": optim.Rprop,
}
# What asks for the value of the learning rate: only gradients and clipping could be in the graph.
OUTSIDE = {"SGD", "SGD momentum", "SGD Nesterov", "SGD fused", "RMSprop", "Adagrad", "Adadelta"}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_are_ten_eager_steps(name):
    training = same(vae, optimizer=partial(OPTIMIZERS[name], lr=0.02))
    (graph,) = training.update.graphs.values()
    assert graph.applies == (name not in OUTSIDE)
    assert training.update.failure is None


def two_groups(parameters, make):
    half = len(parameters) // 2
    return make([{"params": parameters[:half], "lr": 0.003}, {"params": parameters[half:]}], lr=0.05)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_group_has_its_rate_which_a_scheduler_changes(name):
    """And with gradients clipped: they are half as long, or shorter."""

    def make(parameters):
        half = len(parameters) // 2
        groups = [{"params": parameters[:half], "lr": 0.003}, {"params": parameters[half:]}]
        optimizer = OPTIMIZERS[name](groups, lr=0.05)
        optimizer.scheduler = optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
        return optimizer

    def schedule(number, training):
        if number:
            training.optimizer.scheduler.step()

    training = same(vae, optimizer=make, between=schedule, clip_norm=0.7)
    assert [group["lr"] for group in training.optimizer.param_groups] == pytest.approx([0.003 / 8, 0.05 / 8])
    assert len(training.update.graphs) == 1
    assert training.update.failure is None


def test_a_rate_in_a_tensor_may_be_changed_in_place():
    def change(number, training):
        if number == 5:
            training.optimizer.param_groups[0]["lr"].fill_(0.2)

    same(vae, optimizer=lambda p: optim.Adam(p, lr=torch.tensor(0.02)), between=change)


def test_hyperparameters_may_be_lists():
    assert same(vae, optimizer=partial(optim.Adam, lr=0.02, betas=[0.8, 0.95])).update.failure is None


def change_weight_decay(training):
    training.optimizer.param_groups[0]["weight_decay"] = 0.3


def change_betas(training):
    training.optimizer.param_groups[0]["betas"] = (0.5, 0.9)


def freeze(training):
    next(iter(training.known.parameters.values())).requires_grad_(False)


def evaluate(training):
    training.pair.eval()


def unchanged(training):
    pass


@pytest.mark.parametrize(
    ("change", "graphs", "applies"),
    [
        (unchanged, 1, True),
        (freeze, 2, True),
        (evaluate, 2, True),
        (change_weight_decay, 1, False),  # the one of before is gone, and the optimizer is in no other one
        (change_betas, 1, False),
    ],
)
def test_what_a_graph_is_fixed_for_makes_a_new_one(change, graphs, applies):
    training = same(normalised, between=lambda number, training: change(training) if number == 5 else None)
    assert len(training.update.graphs) == graphs
    assert {graph.applies for graph in training.update.graphs.values()} == {applies}
    assert training.update.failure is None


def test_a_schedule_may_change_more_than_the_rate():
    """OneCycleLR has other betas at each step."""

    def make(parameters):
        optimizer = optim.Adam(parameters, lr=0.02)
        optimizer.scheduler = optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=20)
        return optimizer

    def schedule(number, training):
        if number:
            training.optimizer.scheduler.step()

    training = same(vae, optimizer=make, between=schedule, clip_norm=0.7)
    assert training.update.failure is None
    assert len(training.update.graphs) == 1


# Batches and modes ----------------------------------------------------------------------------------------------------


class Normalised(nn.Module):
    feature_shape = (5,)

    def __init__(self, event_shape):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(*event_shape, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3)
        )

    def forward(self, x):
        return self.layers(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def normalised():
    return VAE((6,), latent_dim=2, hidden=(5,), encoder=Normalised)


def test_the_first_step_is_eager_and_each_shape_has_a_graph():
    training = Training(vae, [(bits(4),), (bits(4, seed=1),), (bits(3),)], compiled=True)
    graphs = []
    for _ in range(6):
        training.steps(1)
        graphs.append(len(training.update.graphs))
    assert graphs == [0, 1, 2, 2, 2, 2]
    same(vae, [(bits(4),), (bits(4, seed=1),), (bits(3),)])


def test_statistics_of_batches_and_dropout_are_those_of_eager_steps():
    """Also where the pair goes to evaluation and back."""

    def change(number, training):
        training.pair.train(number not in (4, 5))
        watch_every_third(number, training)

    training = same(normalised, [(bits(4),), (bits(3),)], between=change)
    assert len(training.update.graphs) == 4
    assert training.known.buffers["encoder.layers.1.num_batches_tracked"].item() == 8  # of ten steps


def test_too_many_shapes_are_trained_eagerly(monkeypatch):
    monkeypatch.setattr(compiled_module, "MOST_GRAPHS", 2)
    with one_line("2 shapes of batches"):
        training = same(vae, [(bits(rows + 1),) for rows in range(4)])
    assert not training.update.graphs


# What programs reach otherwise ----------------------------------------------------------------------------------------


class Closure(Pair):
    """A VAE of scalars whose model reads or changes what `look` reaches."""

    def __init__(self, look):
        super().__init__()
        self.look = look
        self.slope, self.loc = nn.Parameter(torch.tensor(0.4)), nn.Parameter(torch.tensor(0.1))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0))
            pyro.sample("x", dist.Normal(self.look(z), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 0.7))


SCALARS = [(reals(4, seed=seed),) for seed in range(3)]


def closing_over(look, **tensors):
    """Makes a pair, with new tensors each time."""

    def make():
        own = {name: tensor.clone() for name, tensor in tensors.items()}
        pair = Closure(partial(look, **own))
        pair.own = own.values()  # no buffers
        return pair

    return make


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_tensor_that_the_program_reaches_may_change_in_place(dtype):
    def change(number, training):
        (weight,) = training.pair.own
        weight.fill_(0.1 * number)

    make = closing_over(lambda z, weight: weight * z, weight=torch.ones((), dtype=dtype))
    training = same(make, SCALARS, between=change)
    assert len(training.update.graphs) == 1
    assert training.update.failure is None


def running_average(z, average):
    with torch.no_grad():
        average.mul_(0.9).add_(0.1 * z.detach().mean())
    return z + average


def functional_batch_norm(z, mean, var):
    return F.batch_norm(z[:, None], mean, var, training=True).squeeze(-1) + mean


CHANGING = {
    "running average": closing_over(running_average, average=torch.zeros((), dtype=torch.float64)),
    "batch norm without a module": closing_over(functional_batch_norm, mean=reals(1), var=reals(1).exp()),
}


@pytest.mark.filterwarnings("ignore:training goes on with eager steps")  # the law is below
@pytest.mark.parametrize("name", CHANGING)
def test_what_the_program_changes_in_place_is_changed_once_a_step(name):
    """Neither frozen nor changed again by comparison and capture."""
    trainings = [Training(CHANGING[name], SCALARS, compiled=compiled) for compiled in (False, True)]
    for training in trainings:
        pyro.set_rng_seed(1)
        for number in range(8):
            watch_every_third(number, training)
            training.steps(1)
    eager, compiled = ([*training.pair.own] for training in trainings)
    for a, b in zip(eager, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert_same(trainings[1].left(), trainings[0].left())
    assert trainings[1].update.failure is None


def test_a_counter_in_a_buffer_counts_eager_steps():
    training = same(program("batch norm and dropout")[0], program("batch norm and dropout")[1])
    (calls,) = (b.item() for n, b in training.known.buffers.items() if n.endswith("calls"))
    eager = Training(*program("batch norm and dropout"), compiled=False)
    start = next(b.item() for n, b in eager.known.buffers.items() if n.endswith("calls"))
    assert calls == start + 10


@pytest.mark.parametrize("draw", [lambda z: torch.randn(3), lambda z: dist.Gamma(z.exp(), 1.0).sample()])
def test_draws_that_nobody_uses_are_drawn(draw):
    """Or the numbers after them would be others than in eager steps."""

    def look(z):
        draw(z)
        return z

    assert same(partial(Closure, look), SCALARS).update.failure is None


def test_schedules_are_followed():
    """A graph reads the weight of now."""
    schedule = Linear(0.0, 1.0, epochs=8)

    def change(number, training):
        training.update.step.objective.beta.update(number)

    training = same(lambda: (vae(), ELBO(beta=schedule)), between=change)
    assert training.update.failure is None
    constant = Training(lambda: (vae(), ELBO(beta=Linear(0.0, 1.0, epochs=8))), compiled=True)
    constant.steps(10)
    assert abs(constant.losses[-1] - training.losses[-1]) > 0.01


def test_frozen_and_unused_parameters_have_no_gradient():
    def make():
        pair = vae()
        pair.unused = nn.Parameter(torch.ones(2))
        next(pair.parameters()).requires_grad_(False)
        return pair

    training = same(make)
    gradients = [name for name in training.left() if name.startswith("gradient")]
    assert 0 < len(gradients) < len(training.known.parameters)


def test_gradients_of_before_are_not_added():
    def spoil(number, training):
        for parameter in training.known.parameters.values():
            parameter.grad = torch.ones_like(parameter)

    same(vae, between=spoil)


# Where the graph is wrong ---------------------------------------------------------------------------------------------


def weighted():
    pair = Closure(lambda z: pair.weight * z)
    pair.weight = 1.0
    return pair


def test_watching_finds_what_was_changed_in_python():
    def change(number, training):
        if number == 5:
            training.pair.weight = -2.0
            training.watch()

    with one_line(CHANGED):
        training = same(weighted, SCALARS, between=change, clip_norm=0.5)
    assert not training.update.graphs


def test_the_step_that_was_found_wrong_is_the_eager_one_exactly():
    training = Training(weighted, SCALARS, compiled=True)
    training.steps(5)
    assert len(training.update.graphs) == 1
    states = [t for values in training.update._named().values() for t in values.values()]
    before, generators = [t.detach().clone() for t in states], pyro.util.get_rng_state()
    training.pair.weight = -2.0
    training.watch()
    with one_line(CHANGED):
        training.steps(1)
    got = training.left()
    with torch.no_grad():
        for tensor, value in zip(states, before, strict=True):
            tensor.copy_(value)
    pyro.util.set_rng_state(generators)
    del training.losses[-1]
    training.update = Update(training.update.step, training.optimizer)
    training.steps(1)
    assert_same(training.left(), got, tolerance=0.0)


def raises(graph):
    raise RuntimeError("no room\nfor two lines")


def raises_later(graph):
    def call(*inputs):
        raise RuntimeError("no kernel")

    return call


def wrong_gradient(graph):
    return lambda *inputs: [2 * output for output in graph.module(*inputs)]


@pytest.mark.parametrize(
    ("backend", "said"),
    [(raises, "no room for two lines"), (raises_later, "no kernel"), (wrong_gradient, "another loss")],
)
@pytest.mark.parametrize("clip_norm", [None, 0.7])
@pytest.mark.parametrize("make", [vae, normalised])
def test_a_failing_backend_costs_nothing(make, backend, said, clip_norm):
    with one_line(said):
        same(make, backend=backend, clip_norm=clip_norm, between=watch_every_third, tolerance=0.0)


@pytest.mark.parametrize("changed", ["parameter", "gradient", "buffer", "exp_avg_sq"])
def test_every_kind_of_difference_is_found(changed):
    """A backend that changes a single number after its graph."""

    def backend(graph):
        def call(*inputs):
            outputs = graph.module(*inputs)
            tensors = training.update._named() | {"gradient": dict(enumerate(outputs[1:]))}
            kind = changed if changed in tensors else f"optimizer's {changed}"
            with torch.no_grad():
                next(t for t in reversed(tensors[kind].values()) if t.is_floating_point()).view(-1)[0] += 1e-3
            return outputs

        return call

    training = Training(normalised, compiled=True, backend=backend)
    with one_line(f"the compiled step has another {'optimizer' if changed.startswith('exp') else changed}"):
        training.steps(3)


@pytest.mark.parametrize(("element", "found"), [(1, None), (0, "parameter w")])
def test_adam_makes_a_step_of_a_gradient_that_is_rounding(element, found):
    """Two first steps of Adam, of gradients that differ by rounding: that element alone may have gone either way."""
    outcomes = []
    for rounding in (1e-9, -1e-9):
        w = torch.tensor([0.05, 0.05], requires_grad=True)
        w.grad = torch.tensor([1.0, rounding])
        optim.Adam([w]).step()
        outcomes.append({"gradient": {"w": w.grad}, "parameter": {"w": w.detach()}})
    expected, got = outcomes
    assert (expected["parameter"]["w"] - got["parameter"]["w"])[1].abs() > 1e-4
    if found:
        got["parameter"]["w"][element] += 1e-4
    assert compiled_module._difference(expected, got, lambda dtype: 1e-3) == found


# The rule -------------------------------------------------------------------------------------------------------------

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_no_compiler_is_named(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    assert compiler(CPU) is None
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiler(CPU) == "there is no C++ compiler; install g++ or clang++, or set CXX"
    monkeypatch.setattr(backends.shutil, "which", lambda name: name if name == "no-such-compiler" else None)
    assert compiler(CPU) is None
    monkeypatch.setattr(backends, "_importable", lambda name: name != "triton")
    assert compiler(GPU) == "triton is not installed"
    monkeypatch.setattr(backends, "_importable", lambda name: False)
    assert compiler(CPU) == "this torch has no inductor"


@pytest.mark.parametrize("device", [CPU, GPU])
def test_the_rule_is_monotone_in_steps(device):
    pair = vae()
    known = structure(pair, bits())
    decided = [worthwhile(steps, known, device) for steps in (1, 10, 100, 1000, 10_000, 100_000, 10**6)]
    assert decided == sorted(decided)
    assert not decided[0]
    assert decided[-1]
    assert decided == [worthwhile(steps, known, device) for steps in (1, 10, 100, 1000, 10_000, 100_000, 10**6)]
    assert all(worthwhile(steps, known, GPU) for steps in (10**3, 10**4, 10**5) if worthwhile(steps, known, CPU))


# Through inductor -----------------------------------------------------------------------------------------------------
# Its cache stays where it is by default: what is in it is named by the graph and by torch's version, so that nothing
# stale is found, and a second run takes a quarter of the time.

needs_compiler = pytest.mark.skipif(compiler(CPU) is not None, reason=f"{compiler(CPU)}")


def law(pair, objective):
    """What makes a cell of the laws in float64, and its batches."""
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        batch = tuple(t.double() if t.is_floating_point() else t for t in PAIRS[pair]()[1])
    return lambda: (PAIRS[pair]()[0], OBJECTIVES[objective][0]()), [batch, tuple(tensor.flip(0) for tensor in batch)]


QUICK = {
    "VAE Bernoulli, ELBO": partial(law, "VAE Bernoulli", "ELBO"),
    "VAE batch norm and dropout, ELBO": partial(law, "VAE batch norm and dropout", "ELBO"),
    "Mixture, TraceEnum_ELBO": partial(law, "Mixture", "TraceEnum_ELBO"),
    "custom backward": partial(program, "custom backward"),
}
LONG = {
    "deep Markov model": partial(program, "deep Markov model"),
    "VAE convolutional, ELBO": partial(law, "VAE convolutional", "ELBO"),
    "VAE mixture prior, IWAE 5": partial(law, "VAE mixture prior", "IWAE 5"),
    "M2 with enumerated labels, ELBO": partial(law, "M2 with enumerated labels", "ELBO"),
    "labels enumerated by the guide, TraceEnum_ELBO": partial(law, "labels enumerated by the guide", "TraceEnum_ELBO"),
    "hierarchy over words, ELBO Monte Carlo": partial(law, "hierarchy over words", "ELBO Monte Carlo"),
    "functions with pyro.param, Trace_ELBO": partial(law, "functions with pyro.param", "Trace_ELBO"),
    "autoguide, TraceMeanField_ELBO": partial(law, "autoguide", "TraceMeanField_ELBO"),
    "particles at once": partial(program, "mean field, particles at once"),
    "nested plates": partial(program, "nested plates"),
    "subsampled inside": partial(program, "subsampled inside"),
    "score function": partial(program, "score function"),
    "batch norm and dropout": partial(program, "batch norm and dropout"),
}
# A gradient that is nothing but rounding would be a whole step of Adam with its usual eps.
DAMPED_ADAM = partial(optim.Adam, lr=0.02, eps=1e-3)


IN_FLOAT32 = pytest.mark.xfail(
    reason="inductor draws torch.bernoulli(p) in float32 where eager draws in float64",
    raises=RuntimeWarning,
    strict=True,
)


@needs_compiler
@pytest.mark.parametrize(
    "name",
    [
        *QUICK,
        *(pytest.param(n, marks=[pytest.mark.slow, *([IN_FLOAT32] if n == "score function" else [])]) for n in LONG),
    ],
)
def test_ten_compiled_steps_are_ten_eager_steps(name):
    make, batches = (QUICK | LONG)[name]()
    training = same(make, batches, backend=inductor, optimizer=DAMPED_ADAM, clip_norm=5.0, tolerance=1e-8)
    assert training.update.failure is None
    assert len(training.update.graphs) == 1


@needs_compiler
@pytest.mark.parametrize("draw", [lambda z: torch.randn(3), lambda z: dist.Gamma(z.exp(), 1.0).sample()])
def test_compiled_draws_that_nobody_uses_are_drawn(draw):
    def look(z):
        draw(z)
        return z

    assert same(partial(Closure, look), SCALARS, backend=inductor, tolerance=1e-8).update.failure is None


# In fit ---------------------------------------------------------------------------------------------------------------

X = bits(10)  # two batches of four rows and a last one of two


def fitting(x=X, make=normalised, *, stop_after=None, **options):
    """A run; what it leaves behind; it may be interrupted after a step."""

    def stop(run):
        run.interrupted = run.step == stop_after

    class Stop(loop_module.Callback):
        on_step = staticmethod(stop)

    pyro.set_rng_seed(0)
    options = {"max_epochs": 3, "batch_size": 4, "lr": 0.02, "seed": 1, "progress": False, "validation": X} | options
    run = fit(make(), x, optimizer=DAMPED_ADAM, callbacks=[Stop()], **options)
    losses = ("train_loss", "validation_loss") if run.epoch else ()
    return run, {
        **{name: torch.tensor(run.history[name]) for name in losses},
        **{n: t.detach().clone() for n, t in run.pair.state_dict().items()},
    }


def test_a_fit_is_the_same_compiled(interpreting):
    run, wanted = fitting(compile=False)
    assert run.config["compile"] is False
    run, got = fitting(compile=True)
    assert run.config["compile"] is True
    assert_same(got, wanted, 1e-8)


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 6])
def test_resumed_is_the_same_as_never_interrupted(stop_after, interpreting, tmp_path):
    """After a step of an epoch, or after a whole one; the first step of all is eager, no other one."""
    _, wanted = fitting(compile=True)
    run, _ = fitting(compile=True, out=tmp_path, stop_after=stop_after)
    assert run.step == stop_after
    run, got = fitting(compile=True, out=tmp_path, resume=True)
    assert run.step == 9
    assert_same(got, wanted, 0.0)


@needs_compiler
def test_a_fit_through_inductor_is_resumed_exactly_and_is_the_eager_one(tmp_path):
    _, eager = fitting(make=vae, compile=False)
    _, wanted = fitting(make=vae, compile=True)
    fitting(make=vae, compile=True, out=tmp_path, stop_after=4)
    run, got = fitting(make=vae, compile=True, out=tmp_path, resume=True)
    assert run.step == 9
    assert_same(got, wanted, 0.0)
    assert_same(got, eager, 1e-8)


def test_a_run_that_went_on_eagerly_does_so_when_resumed(interpreting, tmp_path, recwarn):
    def make():
        return Closure(lambda z: z if z[0] > 0 else -z)

    def fitted_closure(**options):
        pyro.set_rng_seed(0)
        options = {"max_epochs": 4, "batch_size": 4, "seed": 1, "progress": False} | options
        run = fit(make(), reals(10), validation=False, **options)
        return {n: p.detach().clone() for n, p in run.pair.named_parameters()}

    wanted = fitted_closure(compile=False)
    with one_line("the program reads the value of a tensor (test_compiled.py, line"):
        fitted_closure(compile=True, max_epochs=2, out=tmp_path)
    recwarn.clear()
    got = fitted_closure(compile=True, out=tmp_path, resume=True)
    assert not recwarn
    assert_same(got, wanted, 0.0)


@pytest.mark.parametrize("compile", ["yes", None, 2, "True"])
def test_other_values_of_compile_are_refused(compile):
    with pytest.raises(ValueError, match=r"compile is .*; pass 'auto', True or False"):
        fitting(compile=compile)


def test_auto_says_once_what_it_chose(interpreting, monkeypatch, capsys):
    def said(**options):
        run, _ = fitting(**{"progress": True, "compile": "auto", **options})
        lines = [line for line in capsys.readouterr().err.splitlines() if "are planned" in line]
        return run.config["compile"], lines

    assert said() == (False, ["eager steps, 9 are planned: too few to be worth compiling"])
    assert said(progress=False) == (False, [])
    assert said(compile=False) == (False, [])
    assert said(compile=True) == (True, [])
    monkeypatch.setattr(fit_module, "worthwhile", lambda steps, known, device: steps >= 9)
    assert said() == (True, ["compiled steps, 9 are planned"])
    assert said(max_epochs=2) == (False, ["eager steps, 6 are planned: too few to be worth compiling"])
    monkeypatch.setattr(fit_module, "compiler", lambda device: "there is no C++ compiler")
    assert said() == (False, ["eager steps, 9 are planned: there is no C++ compiler"])


def test_a_resumed_run_goes_on_as_it_began(interpreting, monkeypatch, tmp_path):
    monkeypatch.setattr(fit_module, "worthwhile", lambda steps, known, device: steps > 9)
    run, _ = fitting(compile="auto", out=tmp_path / "eager", max_epochs=3)
    assert run.config["compile"] is False
    run, _ = fitting(compile="auto", out=tmp_path / "eager", max_epochs=6, resume=True)
    assert run.config["compile"] is False
    run, _ = fitting(compile="auto", out=tmp_path / "compiled", max_epochs=6, stop_after=4)
    assert run.config["compile"] is True
    run, _ = fitting(compile="auto", out=tmp_path / "compiled", max_epochs=2, resume=True)
    assert run.config["compile"] is True
    with pytest.raises(ValueError, match=r"compile is True, .* has False; pass compile=False"):
        fitting(compile=True, out=tmp_path / "eager", max_epochs=7, resume=True)
    with pytest.raises(ValueError, match=r"compile is False, .* has True; pass compile=True"):
        fitting(compile=False, out=tmp_path / "compiled", max_epochs=7, resume=True)


def test_threads_are_those_of_the_run_that_is_resumed(tmp_path):
    seen, before = [], torch.get_num_threads()
    try:
        for threads, resume in ((2, False), (1, True)):
            torch.set_num_threads(threads)
            run = fit(
                *(vae(), X),
                **{"batch_size": 4, "seed": 1, "progress": False, "max_epochs": 1 + resume, "compile": False},
                out=tmp_path,
                resume=resume,
                callbacks=[lambda run: seen.append(torch.get_num_threads())],
            )
            assert torch.get_num_threads() == threads
            assert run.config["threads"] == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 2]


@pytest.mark.parametrize(("folder", "mended"), [("cache", True), ("cache", False), ("elsewhere", True)])
def test_a_library_that_a_killed_process_left_half_written_is_compiled_again(tmp_path, monkeypatch, folder, mended):
    import torch._inductor
    from torch._inductor.exc import InductorError

    library, calls = tmp_path / folder / "ab" / "graph.main.so", []
    library.parent.mkdir(parents=True)
    library.write_bytes(b"")

    def read(module, inputs, options):
        calls.append(module)
        if library.exists() and not library.read_bytes():
            raise InductorError(ImportError(f"{library}: file too short", path=str(library)), None)
        library.write_bytes(b"whole" if mended else b"")
        return module if mended else read(module, inputs, options)

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor, "compile", read)
    if folder == "cache" and mended:
        assert backends._kernels("module", []) == "module"
        assert library.read_bytes() == b"whole"
    else:
        with pytest.raises(InductorError, match="file too short"):
            backends._kernels("module", [])
        assert library.exists()
    assert len(calls) == {("cache", True): 2, ("cache", False): 3, ("elsewhere", True): 1}[folder, mended]
