"""Sums under autocast: what a program computes in half precision, the objectives add up in float32."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import Mixture
from torch import nn

from pyrovae.distributions import MarkovChain
from pyrovae.models.base import Pair, structure
from pyrovae.models.conjugate import DirichletClasses, NormalGamma, NormalWishart
from pyrovae.objectives import ELBO, IWAE, ledger
from pyrovae.training.step import Step


def half():
    return torch.autocast("cpu", dtype=torch.bfloat16)


class Foreign(Pair):
    """Somebody's pair, whose networks give the parameters of its distributions as autocast leaves them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.prior, self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(6, 4), nn.Linear(2, 6)
        self.dtypes = []
        self.decoder.register_forward_hook(lambda module, inputs, output: self.dtypes.append(output.dtype))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.normal(self.prior(x[:, :3])))
            logits = self.decoder(z)
            pyro.sample("y", dist.Categorical(logits=9 * logits), obs=x.argmax(-1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.normal(self.encoder(x)))

    def normal(self, features):
        loc, log_scale = features.chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)


X = torch.rand(300, 6, generator=torch.Generator().manual_seed(1)).round()


def test_a_foreign_pair_is_summed_in_float32():
    """Against sums in float64 of the very numbers that its distributions give."""
    pair = Foreign()
    with half(), torch.no_grad():
        drawn = ledger(pair, X, num_particles=20, known=structure(pair, X))
        halves = {term.name + term.kind: term.site["fn"].log_prob(term.site["value"]) for term in drawn.terms}
        assert {halves[name].dtype for name in ("zlatent", "yobserved", "zguide")} == {torch.bfloat16}
        log_weights, elbo = drawn.log_weights(), ELBO(20, closed_form=False).mean(drawn)
        iwae, kl = IWAE(20).mean(drawn), drawn.closed_form_kl()["z"]
        (minus_kl,) = [term.log_prob for term in drawn.draws[0].with_closed_form_kl().terms if term.kind == "kl"]
    exact = sum((-1 if name == "zguide" else 1) * value.double() for name, value in halves.items())
    assert {log_weights.dtype, elbo.dtype, iwae.dtype, kl.dtype, minus_kl.dtype} == {torch.float32}
    torch.testing.assert_close(log_weights.double(), exact, rtol=1e-6, atol=1e-6)
    assert elbo.item() == pytest.approx(exact.mean().item(), rel=1e-6)
    assert iwae.item() == pytest.approx((exact.logsumexp(0) - torch.tensor(20.0).log()).mean().item(), rel=1e-6)


def test_sums_over_enumerated_sites_and_their_gradients_are_in_float32():
    """The pair itself has no matrix product, but Pyro's sums are, so that nothing may differ under autocast."""
    pair = Mixture().float()
    x = 3 * X[:, 0] + X[:, 1]
    step = Step(pair, IWAE(3), structure(pair, x))
    results = []
    for around in (torch.enable_grad, half):
        pyro.set_rng_seed(0)
        pair.zero_grad()
        with around():
            results.append([step.backward(x), *(parameter.grad for parameter in pair.parameters())])
    for plain, cast in zip(*results, strict=True):
        torch.testing.assert_close(plain, cast, rtol=1e-6, atol=1e-7)


def test_gradients_are_as_if_backward_came_after_autocast():
    """As torch advises: inside, the backward pass of what was computed in float32 would be cast."""

    class Products(Pair):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 6, generator=torch.Generator().manual_seed(0)))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                with torch.autocast("cpu", enabled=False):
                    loc = z @ self.weight
                pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    pair, results = Products(), []
    for around in (torch.enable_grad, half):
        pyro.set_rng_seed(0)
        pair.zero_grad()
        with around():
            Step(pair, ELBO(), structure(pair, X)).backward(X)
        results.append(pair.weight.grad)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_whether_particles_vectorise_is_found_out_in_full_precision():
    """In half precision one particle may round otherwise than two."""
    pair = Foreign()
    known = structure(pair, X)
    pair.dtypes.clear()
    with half():
        ledger(pair, X, num_particles=2, known=known)
    assert known.vectorises
    # Together and each alone, for all rows; for fewer rows one, and the same again; then the draw itself.
    assert pair.dtypes == [*[torch.float32] * (3 + 1 + 3), torch.bfloat16]


def chain(duration=12, states=5):
    noise = torch.Generator().manual_seed(0)
    initial, moves = torch.randn(states, generator=noise), torch.randn(1, states, states, generator=noise)
    return MarkovChain(initial, moves, duration=duration), torch.randn(3, duration, states, generator=noise)


def moved(part):
    """Away from its prior."""
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=noise))
    return part


@pytest.mark.parametrize(
    "compute",
    [
        lambda: chain()[0].marginals,
        lambda: chain()[0].log_normalizer(chain()[1], parallel=True),
        lambda: chain()[0].log_normalizer(chain()[1], parallel=False),
        lambda: moved(NormalWishart(3, 6)).expected_log_prob(X),
        lambda: moved(NormalWishart(3, 6)).kl(),
        lambda: moved(NormalGamma(3, 6)).expected_log_prob(X),
        lambda: moved(DirichletClasses(3, 6)).expected_log_prob(X),
    ],
    ids=["marginals", "scan", "recursion", "wishart", "wishart-kl", "gamma", "classes"],
)
def test_sums_of_the_librarys_own_densities_are_in_float32(compute):
    plain = compute()
    with half():
        cast = compute()
    torch.testing.assert_close(cast, plain, rtol=1e-6, atol=1e-6)
