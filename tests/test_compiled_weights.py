"""Compiled log-weights are those of Pyro's handlers, or there are none and one line says why."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from foreign import PROGRAMS, UNCAPTURABLE
from test_laws import ALL, DENSE, KNOWN, made
from test_likelihood import OneByOne, coins_guide, coins_model, labelled_guide, labelled_model

import pyrovae as pv
from pyrovae.data import Split
from pyrovae.evaluation import compiled
from pyrovae.graphs.backends import interpreted
from pyrovae.models.base import as_pair

SAMPLES = {"num_samples": 23, "chunk": 5, "batch_size": 4, "seed": 3}  # with a smaller last chunk, and last batch
WEIGHED = [
    name
    for name in DENSE
    if not (KNOWN[name].global_latent or KNOWN[name].improper) and KNOWN[name].rows == len(ALL[name][1][0])
]


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.4 * x, 0.9))


@pytest.fixture
def graphs(monkeypatch):
    """Graphs run operation by operation, and a list of how many chunks each did."""
    calls = []

    def counted(graph):
        number = len(calls)
        calls.append(0)

        def call(*inputs):
            calls[number] += 1
            return interpreted(graph)(*inputs)

        return call

    monkeypatch.setattr(compiled, "inductor", counted)
    return calls


def both(pair, data, **options):
    """Estimates by handlers and by a graph."""
    return [pv.log_likelihood(pair, data, **{**SAMPLES, **options}, compile=compile) for compile in (False, True)]


def same(first, second):
    torch.testing.assert_close(first.per_datum, second.per_datum, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.ess, second.ess, rtol=1e-3, atol=1e-3)
    assert (first.num_samples, first.is_density) == (second.num_samples, second.is_density)


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_of_every_pair_are_those_of_handlers(name, graphs):
    pair, batch = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(*both(pair, batch))
    (calls,) = graphs
    assert calls >= 1 + 3  # compared, and the three chunks of five that the first batch has left


def test_a_graph_serves_all_chunks_of_its_shape(graphs):
    eager, found = both((model, guide), torch.arange(10.0) / 5)
    same(eager, found)
    assert graphs == [1 + 3 + 4]  # compared; of the second batch all four; none of three particles, or of two rows
    exact = dist.Normal(0.0, 2**0.5).log_prob(torch.arange(10.0) / 5)
    many = pv.log_likelihood((model, guide), torch.arange(10.0) / 5, num_samples=20_000, chunk=1000, compile=True)
    assert float((many.per_datum - exact).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("pair", "x"),
    [((labelled_model, labelled_guide), torch.randn(9)), ((coins_model, coins_guide), torch.randn(3, 9).sign().relu())],
)
def test_enumerated_sites_are_summed(pair, x, graphs):
    if x.dim() == 2:  # its rows are the last dim
        same(*both(pair, Split({"x": x}), batch_size=3))
    else:
        same(*both(pair, x))
    assert graphs[0] > 1


def test_weights_from_the_prior(graphs):
    same(*both((model, guide), torch.randn(9), proposal="prior"))
    assert graphs[0] > 1


def test_compiled_by_inductor():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        eager, found = both((model, guide), torch.arange(10.0) / 5, num_samples=600, chunk=50)
    torch.testing.assert_close(eager.per_datum, found.per_datum, rtol=1e-6, atol=1e-6)


def refusal(pair, data, **options):
    """What the warning says, of weights that are then those of handlers, bit by bit."""
    expected = pv.log_likelihood(pair, data, **{**SAMPLES, **options}, compile=False)
    with pytest.warns(RuntimeWarning) as caught:
        found = pv.log_likelihood(pair, data, **{**SAMPLES, **options}, compile=True)
    assert torch.equal(expected.per_datum, found.per_datum)
    (said,) = [str(w.message) for w in caught if "without a compiled graph" in str(w.message)]
    return said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a value decides", "the program reads the value of a tensor"),
        ("Python's random numbers", "the program draws random numbers from Python's or NumPy's generator"),
        ("NumPy's random numbers", "the program draws random numbers from Python's or NumPy's generator"),
        ("through a list", "the program reads the value of a tensor"),
    ],
)
def test_what_cannot_be_captured_is_named(name, said, graphs):
    pyro.set_rng_seed(0)
    program = UNCAPTURABLE[name]()
    assert said in refusal(program.pair, program.batch, num_samples=3, chunk=1)  # whether they vectorise is not asked
    assert all(calls <= 1 for calls in graphs)


def test_a_program_that_changes_from_call_to_call_is_not_frozen(graphs):
    class Drifting:
        calls = 0
        model = staticmethod(model)

        def guide(self, x):
            self.calls += 1
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(0.4 * x + 0.1 * self.calls, 0.9))

    with pytest.warns(RuntimeWarning, match="compiled, they are others: what the program reads in Python changes"):
        pv.log_likelihood(Drifting(), torch.randn(9), num_samples=3, chunk=1, compile=True)
    assert graphs == [1]


@pytest.mark.filterwarnings("ignore:.*does not vectorise")
def test_loops_over_particles_are_not_unrolled(graphs):
    pair = OneByOne()
    assert "does not vectorise over particles" in refusal(pair, torch.randn(8, 5))
    assert graphs == []


def test_a_model_that_subsamples_has_other_rows_at_each_call(graphs):
    program = PROGRAMS["subsampled inside"]()
    assert "subsamples the data by itself" in refusal(program.pair, program.batch, batch_size=None)
    assert graphs == []


def test_handlers_say_what_is_no_number(graphs):
    """In a later batch than the graph's; checks of values are not in it."""

    def root(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sqrt(), 1.0))

    x = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -7.0, 8.0])
    said = []
    for compile in (False, True):
        with pytest.raises(ValueError, match="Expected parameter loc") as caught:
            pv.log_likelihood((model, root), x, num_samples=20, chunk=5, batch_size=4, compile=compile)
        said.append(str(caught.value).splitlines()[0])
    assert said[0] == said[1]
    assert graphs[0] > 1


def test_auto_compiles_what_is_large_where_there_is_a_compiler(graphs, monkeypatch):
    x = torch.arange(10.0) / 5
    pv.log_likelihood((model, guide), x, **SAMPLES)
    assert graphs == []
    numbers = 10 * 23 * 3  # rows, particles, numbers in z twice and x
    monkeypatch.setattr(compiled, "WORTHWHILE", numbers - 1)
    pv.log_likelihood((model, guide), x, **SAMPLES)
    assert len(graphs) == 1
    monkeypatch.setattr(compiled, "WORTHWHILE", numbers)
    pv.log_likelihood((model, guide), x, **SAMPLES)
    assert len(graphs) == 1
    monkeypatch.setattr(compiled, "WORTHWHILE", 0)
    monkeypatch.setattr(compiled, "compiler", lambda device: "there is none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.log_likelihood((model, guide), x, **SAMPLES)
    assert len(graphs) == 1


def test_a_compiler_that_fails_costs_no_result(monkeypatch):
    def fails(graph):
        raise OSError("no space left")

    monkeypatch.setattr(compiled, "inductor", fails)
    assert refusal((model, guide), torch.randn(9)).endswith("no space left")


def test_only_three_values_of_compile():
    with pytest.raises(ValueError, match=r"compile is 'yes'; pass True, False or \"auto\""):
        pv.log_likelihood((model, guide), torch.randn(9), compile="yes")


def test_the_random_numbers_after_the_graph_are_those_of_handlers(graphs):
    """The first chunk's are drawn once, whatever capturing took."""
    pair = as_pair((model, guide))
    states = []
    for compile in (False, True):
        drawn = []

        def spying(x, drawn=drawn):
            drawn.append(torch.get_rng_state())
            guide(x)

        pv.log_likelihood((pair.model, spying), torch.randn(9), **SAMPLES, compile=compile)
        states.append(drawn)
    assert torch.equal(states[0][-1], states[1][-1])
