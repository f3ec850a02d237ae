"""Beta, free bits, the learned beta and the capacity: formulas written out, and toys with a known optimum."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LooseLinearGaussian, Mixture
from pyro import poutine
from torch import nn
from torch.autograd import grad

from pyrovae.graphs.backends import interpreted
from pyrovae.models import VAE
from pyrovae.models.base import Pair, structure
from pyrovae.objectives import ELBO, Beta, Capacity, FreeBits, ledger
from pyrovae.training.compiled import CompiledUpdate
from pyrovae.training.fit import fit
from pyrovae.training.runs import load
from pyrovae.training.schedules import Linear
from pyrovae.training.step import Step

F64 = torch.float64
X = torch.tensor([-1.0, 0.4, 2.5, 0.9], dtype=F64)


def normal_kl(loc, scale, to_loc, to_scale):
    return torch.log(to_scale / scale) + (scale**2 + (loc - to_loc) ** 2) / (2 * to_scale**2) - 0.5


def scalar(value):
    return torch.tensor(value, dtype=F64)


class Hierarchy(Pair):
    """z2 -> z1 -> x, the guide top-down too, in a plate that subsamples, under a mask and a scale."""

    mask = torch.tensor([True, False, True, True])

    def model(self, x):
        with pyro.plate("data", 12, subsample=torch.arange(4)), pyro.poutine.mask(mask=self.mask):
            with pyro.poutine.scale(scale=0.5):
                z2 = pyro.sample("z2", dist.Normal(x.new_zeros(4), 1.0))
            z1 = pyro.sample("z1", dist.Normal(0.7 * z2, 0.9))
            pyro.sample("x", dist.Normal(z1, 0.6), obs=x)

    def guide(self, x):
        with pyro.plate("data", 12, subsample=torch.arange(4)), pyro.poutine.mask(mask=self.mask):
            with pyro.poutine.scale(scale=0.5):
                z2 = pyro.sample("z2", dist.Normal(0.2 * x, 0.8))
            pyro.sample("z1", dist.Normal(0.5 * x + 0.1 * z2, 0.7))


class Labelled(Pair):
    """M2 with two-dimensional z: the guide enumerates y."""

    loc = torch.tensor([-2.0, 0.5, 3.0], dtype=F64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(x.new_tensor([0.2, 0.5, 0.3])))
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1) + self.loc[y], 0.8), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x[:, None] * self.loc), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(*self.posterior(x, y)).to_event(1))

    def posterior(self, x, y):
        loc = torch.stack([0.4 * (x - y), 0.1 * x + 0 * y], -1)
        return loc, torch.stack([0.7 + 0 * loc[..., 0], 0.5 + 0 * loc[..., 0]], -1)


# The parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed_form", [True, False])
def test_parts_of_a_hierarchy_under_masks_and_scales(closed_form):
    drawn = ledger(Hierarchy(), X, num_particles=3)
    reconstruction, kl = drawn.parts(closed_form=closed_form)
    z1, z2 = drawn.values["z1"], drawn.values["z2"]
    want2 = normal_kl(0.2 * X, scalar(0.8), scalar(0.0), scalar(1.0)).expand(3, 4)
    want1 = normal_kl(0.5 * X + 0.1 * z2, scalar(0.7), 0.7 * z2, scalar(0.9))
    if not closed_form:
        want2 = dist.Normal(0.2 * X, 0.8).log_prob(z2) - dist.Normal(0.0, 1.0).log_prob(z2)
        want1 = dist.Normal(0.5 * X + 0.1 * z2, 0.7).log_prob(z1) - dist.Normal(0.7 * z2, 0.9).log_prob(z1)
    assert list(kl) == ["z2", "z1"]
    torch.testing.assert_close(kl["z2"], 0.5 * want2 * Hierarchy.mask)
    torch.testing.assert_close(kl["z1"], want1 * Hierarchy.mask)
    torch.testing.assert_close(reconstruction, dist.Normal(z1, 0.6).log_prob(X) * Hierarchy.mask)
    torch.testing.assert_close(reconstruction - kl["z1"] - kl["z2"], drawn.elbo(closed_form=closed_form))
    for name in kl:
        torch.testing.assert_close(drawn.kl_by_dimension(name, closed_form=closed_form)[..., 0], kl[name])


def test_parts_with_a_site_that_the_model_sums_out():
    """KL from sum_c p(c) p(z | c), and p(x | z) as sum_c p(c | z) p(x | z, c), each by Bayes' rule."""
    pair = Mixture()
    drawn = ledger(pair, X, num_particles=3)
    reconstruction, kl = drawn.parts()
    z, c = drawn.values["z"], torch.arange(3, dtype=F64)
    given_c = pair.logits.softmax(-1) * dist.Normal(pair.loc, 1.0).log_prob(z[..., None]).exp()
    p_z = given_c.sum(-1)
    p_x = (given_c / p_z[..., None] * dist.Normal(z[..., None] + c, 1.0).log_prob(X[:, None]).exp()).sum(-1)
    assert list(kl) == ["c, z"] or list(kl) == ["z, c"]
    torch.testing.assert_close(next(iter(kl.values())), dist.Normal(0.5 * X, 1.2).log_prob(z) - p_z.log())
    torch.testing.assert_close(reconstruction, p_x.log())
    with pytest.raises(ValueError, match="site 'z' depends on what the model enumerates"):
        drawn.kl_by_dimension("z")


def test_parts_with_labels_that_the_guide_enumerates():
    pair = Labelled()
    drawn = ledger(pair, X, num_particles=3)
    reconstruction, kl = drawn.parts()
    log_q = (X[:, None] * pair.loc).log_softmax(-1).T[:, None]  # (Y, 1, B)
    y = torch.arange(3, dtype=F64)[:, None, None]
    z = drawn.values["z"].reshape(3, 3, 4, 2)  # (Y, K, B, 2)
    loc, scale = pair.posterior(X, y)
    each = normal_kl(loc, scale, scalar(0.0), scalar(1.0))  # (Y, 1, B, 2)
    log_x = dist.Normal(z.sum(-1) + pair.loc[:, None, None], 0.8).log_prob(X)
    log_p_y = scalar([0.2, 0.5, 0.3]).log()[:, None, None]
    torch.testing.assert_close(reconstruction, (log_q.exp() * log_x).sum(0))
    torch.testing.assert_close(kl["y"], (log_q.exp() * (log_q - log_p_y)).sum(0).expand(3, 4))
    by_dimension = (log_q.exp()[..., None] * each).sum(0).expand(3, 4, 2)
    torch.testing.assert_close(kl["z"], by_dimension.sum(-1))
    torch.testing.assert_close(drawn.kl_by_dimension("z"), by_dimension)


def test_global_sites_have_a_share_in_each_datum():
    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 2.0))
        with pyro.plate("data", 12, subsample=torch.arange(4)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(x.new_ones(()), 0.5))
        with pyro.plate("data", 12, subsample=torch.arange(4)):
            pyro.sample("z", dist.Normal(x, 0.5))

    pyro.set_rng_seed(3)
    drawn = ledger((model, guide), X, num_particles=2)
    w = drawn.values["w"].reshape(2)
    want = dist.Normal(1.0, 0.5).log_prob(w) - dist.Normal(0.0, 2.0).log_prob(w)
    reconstruction, kl = drawn.parts(closed_form=False)
    torch.testing.assert_close(kl["w"], (want / 12)[:, None].expand(2, 4))
    with torch.no_grad():
        elbo = ELBO(2, closed_form=False).mean(drawn)
        torch.testing.assert_close((reconstruction - kl["w"] - kl["z"]).mean(), elbo)
        # Capacity and free bits count the share once: without a limit they are the ELBO, and with gamma 1, C 0 too.
        kls = sum(kl.values()).mean()
        got = Capacity(1.0, 0.0, num_particles=2, closed_form=False).mean(drawn)
        torch.testing.assert_close(got, elbo + kls - kls.abs())
        got = FreeBits(5.0, num_particles=2, closed_form=False).mean(drawn)
        torch.testing.assert_close(
            got, elbo + kls - max(5.0, kl["z"].mean().item()) - max(5.0 / 12, kl["w"].mean().item())
        )


# beta -----------------------------------------------------------------------------------------------------------------


def test_beta_zero_is_a_stochastic_autoencoder():
    """Value and gradients are those of E log p(x | z), for VaDE's kind of pair too, where x does not depend on c."""

    class Clusters(Mixture):
        def model(self, x):
            with pyro.plate("data", len(x)):
                c = pyro.sample("c", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
                z = pyro.sample("z", dist.Normal(self.loc[c], 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    for pair, batch in ((LooseLinearGaussian(), LooseLinearGaussian().sample(4)), (Clusters(), X)):
        drawn = ledger(pair, batch, num_particles=3)
        z = drawn.values["z"]
        if isinstance(pair, Mixture):
            want = dist.Normal(z, 1.0).log_prob(batch)
        else:
            want = dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).log_prob(batch).sum(-1)
        got = ELBO(3, beta=0).per_datum(drawn)
        torch.testing.assert_close(got, want.mean(0))
        if not isinstance(pair, Mixture):
            parameters = list(pair.parameters())
            for a, b in zip(
                grad(got.sum(), parameters, retain_graph=True), grad(want.mean(0).sum(), parameters), strict=True
            ):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    with pytest.raises(ValueError, match="enumerated sites have weight 0, but observed site 'x' depends on them"):
        ELBO(beta=0).per_datum(ledger(Mixture(), X))


def test_each_site_has_its_own_beta():
    schedule = Linear(0.0, 3.0, 4).double()
    schedule.update(1)
    drawn = ledger(Hierarchy(), X, num_particles=3)
    reconstruction, kl = drawn.parts()
    objective = ELBO(3, beta={"z1": schedule, "z2": 2.0})
    torch.testing.assert_close(objective.per_datum(drawn), (reconstruction - 0.75 * kl["z1"] - 2 * kl["z2"]).mean(0))
    ended = objective.for_validation()
    torch.testing.assert_close(ended.per_datum(drawn), (reconstruction - 3 * kl["z1"] - 2 * kl["z2"]).mean(0))
    torch.testing.assert_close(
        ELBO(3, beta={"z1": 0.5}).per_datum(drawn), (reconstruction - 0.5 * kl["z1"] - kl["z2"]).mean(0)
    )
    assert (objective.is_bound, ended.is_bound, ELBO(beta={"z1": 1}).is_bound, ELBO(beta={}).is_bound) == (
        False, False, True, True,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"beta has weights for \['z'\], the latent sites are \['z1', 'z2'\]"):
        ELBO(beta={"z": 1.0}).per_datum(drawn)
    with pytest.raises(ValueError, match=r"beta\['z1'\] is -1"):
        ELBO(beta={"z1": -1})


def test_each_schedule_is_one():
    pair, objective = LooseLinearGaussian(), ELBO(beta={"z": Linear(0.0, 1.0, 3)})
    objective.loss(pair.model, pair.guide, pair.sample(3))
    assert list(objective.schedules) == ["beta.z"]


def test_warm_up_of_one_site_in_fit():
    x = torch.rand(32, 4).round()
    run = fit(
        VAE(4, 2, hidden=(3,)), x, objective=ELBO(beta={"z": Linear(0, 1, 2)}), max_epochs=4, seed=0, progress=False
    )
    assert run.history["beta.z"] == pytest.approx([0.0, 0.5, 1.0, 1.0])


# Free bits ------------------------------------------------------------------------------------------------------------


class Free(Pair):
    """A guide of given means and scales in four dimensions, one row of parameters for each datum."""

    def __init__(self, scales=(0.9, 0.5, 0.95, 0.2)):
        super().__init__()
        self.loc = nn.Parameter(torch.linspace(-0.3, 0.5, 16, dtype=F64).reshape(4, 4))
        self.scale = nn.Parameter(torch.tensor(scales, dtype=F64).expand(4, 4).clone())

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.scale).to_event(1))


@pytest.mark.parametrize(("group_size", "nats"), [(None, 2.0), (None, 9.0), (1, 0.2), (2, 0.5), (4, 2.0)])
def test_free_bits_by_hand(group_size, nats):
    pair = Free()
    drawn = ledger(pair, X, num_particles=3)
    z = drawn.values["z"]
    kl = normal_kl(pair.loc, pair.scale, scalar(0.0), scalar(1.0)).mean(0)  # of each dimension, over the batch
    groups = {None: [slice(0, 4)], 1: range(4), 2: [slice(0, 2), slice(2, 4)], 4: [slice(0, 4)]}[group_size]
    penalty = sum(torch.where(kl[g].sum() > nats, kl[g].sum(), nats) for g in groups)
    want = dist.Normal(z.sum(-1), 1.0).log_prob(X).mean(0) - penalty
    objective = FreeBits(nats, group_size=group_size, num_particles=3)
    got = objective.per_datum(drawn)
    torch.testing.assert_close(got, want)
    parameters = list(pair.parameters())
    for a, b in zip(grad(got.mean(), parameters, retain_graph=True), grad(want.mean(), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert (got.mean() <= ELBO(3).per_datum(drawn).mean() + 1e-12) == objective.is_bound


def test_the_limit_is_on_batch_means_not_on_each_datum():
    pair = Free()
    each = normal_kl(pair.loc, pair.scale, scalar(0.0), scalar(1.0)).sum(-1)
    level = each.mean().item() - 1e-6
    assert each.min() < level < each.max()
    drawn = ledger(pair, X)
    torch.testing.assert_close(FreeBits(level).per_datum(drawn).mean(), ELBO().per_datum(drawn).mean())


@pytest.mark.parametrize("objective", [FreeBits(5.0), FreeBits(0.4, group_size=1), Capacity(3.0, 2.0)])
def test_levels_are_in_nats_under_a_scale_too(objective):
    """A level was compared with the scaled KL: under 1/10, ten times the nats were free."""
    pair = Free()
    losses = []
    for scale in (None, 0.1, torch.full((4,), 0.1, dtype=F64)):
        model, guide = (poutine.scale(p, scale=scale) if scale is not None else p for p in (pair.model, pair.guide))
        pyro.set_rng_seed(0)
        pair.zero_grad()
        loss = objective.loss_and_grads(model, guide, X)
        losses.append([loss, *(p.grad.clone() for p in pair.parameters())])
    for scaled in losses[1:]:
        for a, b in zip(losses[0], scaled, strict=True):
            torch.testing.assert_close(0.1 * a, b)


def test_a_learned_beta_sees_the_kl_without_its_scale():
    pair, betas = Amortised(), []
    for scale in (1.0, 0.1):
        objective = Beta(0.3, rate=0.1)
        model, guide = poutine.scale(pair.model, scale=scale), poutine.scale(pair.guide, scale=scale)
        objective.loss_and_grads(model, guide, X)
        betas.append(objective.beta.value.item())
    assert betas[0] != 1
    assert betas[1] == pytest.approx(betas[0], rel=1e-12)


def test_latents_of_different_scales_have_no_level():
    for objective in (FreeBits(1.0), Capacity(1.0, 1.0), Beta(1.0)):
        with pytest.raises(
            ValueError, match=r"poutine.scale is 1.0 at site 'z1' and 0.5 at 'z2'; this objective needs"
        ):
            objective.mean(ledger(Hierarchy(), X))


def test_impossible_values_that_are_summed_cost_what_they_cost_the_elbo():
    """0 x log 0 was NaN."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(x.new_ones(3) / 3), infer={"enumerate": "parallel"})
            pyro.factor("possible", torch.where((c == 2) & (x < 0), -torch.inf, 0.0))
            z = pyro.sample("z", dist.Normal(c - 1.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * pyro.param("slope", x.new_tensor(0.9)), 0.2))

    drawn = ledger((model, guide), X)
    want = ELBO().mean(drawn)
    torch.testing.assert_close(FreeBits(0.0).mean(drawn), want)
    torch.testing.assert_close(Capacity(1.0, 0.0).mean(drawn), want)
    reconstruction, kl = drawn.parts()
    assert kl["c, z"].mean() > 0
    (slope,) = grad(reconstruction.sum(), pyro.param("slope"))
    assert math.isfinite(slope)


def test_free_bits_with_enumerated_sites():
    pair = Labelled()
    drawn = ledger(pair, X, num_particles=2)
    reconstruction, kl = drawn.parts()
    by_dimension = drawn.kl_by_dimension("z").mean((0, 1))
    got = FreeBits(1.5, group_size=1, num_particles=2).per_datum(drawn)
    want = reconstruction.mean(0) - by_dimension.clamp(min=1.5).sum() - kl["y"].mean().clamp(min=1.5)
    torch.testing.assert_close(got, want)
    drawn = ledger(Mixture(), X)
    reconstruction, kl = drawn.parts()
    want = reconstruction.mean(0) - sum(kl.values()).mean().clamp(min=3.0)
    torch.testing.assert_close(FreeBits(3.0).per_datum(drawn), want)


def test_groups_of_dimensions_are_refused_where_there_are_none():
    pair = LooseLinearGaussian()
    with pytest.raises(ValueError, match="group_size is 3, which does not divide the 2 dimensions of site 'z'"):
        FreeBits(1.0, group_size=3).per_datum(ledger(pair, pair.sample(3)))

    class Full(LooseLinearGaussian):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                loc, covariance = self.posterior(x)
                pyro.sample("z", dist.MultivariateNormal(loc, covariance))

    with pytest.raises(ValueError, match=r"q of site 'z' \(MultivariateNormal\) is no product over its dimensions"):
        FreeBits(1.0, group_size=1).per_datum(ledger(Full(), pair.sample(3)))


# The learned beta -----------------------------------------------------------------------------------------------------


class Amortised(Pair):
    """A fixed model z ~ N(0, 1), x | z ~ N(z, s^2), and q(z | x) = N(a x, e^(2 r)): all is known for each beta."""

    def __init__(self, scale=0.5):
        super().__init__()
        self.a, self.r = nn.Parameter(scalar(0.5)), nn.Parameter(scalar(-0.5))
        self.scale = scale

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, self.scale), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.a * x, self.r.exp()))

    def kl(self, x, beta):
        """Mean KL of the optimum, q proportional to p(z) p(x | z)^(1/beta)."""
        variance = 1 / (1 + 1 / (beta * self.scale**2))
        slope = variance / (beta * self.scale**2)
        return normal_kl(slope * x, scalar(variance**0.5), scalar(0.0), scalar(1.0)).mean().item()

    def beta(self, x, kl):
        low, high = 1e-3, 1e3
        while high / low > 1 + 1e-9:
            low, high = (middle, high) if self.kl(x, middle := math.sqrt(low * high)) > kl else (low, middle)
        return low


@pytest.mark.parametrize("constraint", [0.4, 1.6])
def test_a_learned_beta_is_the_multiplier_of_the_constraint(constraint):
    """Within 1 and 2 %: E log p(x | z) is estimated with 40 particles a datum, and Adam's steps stay as they are."""
    x = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=F64)
    pair, objective = Amortised(), Beta(constraint, num_particles=40, rate=0.05)
    run = fit(pair, x, objective=objective, max_epochs=600, batch_size=64, lr=0.02, seed=0, progress=False)
    want = pair.beta(x, constraint)
    betas = torch.tensor(run.history["beta"][-100:])
    kl = normal_kl(pair.a * x, pair.r.exp(), scalar(0.0), scalar(1.0)).mean().item()
    print(f"beta {betas.mean():.4f} +- {betas.std():.4f}, exact {want:.4f}; KL {kl:.4f} for {constraint}")
    assert betas.mean().item() == pytest.approx(want, rel=0.01)
    assert kl == pytest.approx(constraint, rel=0.02)


def test_the_multiplier_moves_by_the_violation_and_only_while_training():
    pair, objective = Amortised(), Beta(0.3, rate=0.1)
    kl = normal_kl(pair.a * X, pair.r.exp(), scalar(0.0), scalar(1.0)).mean().item()
    step = Step(pair, objective, structure(pair, X))
    values = []
    for _ in range(3):
        with torch.no_grad():
            step(X)
        values.append(objective.beta.value.item())
        pyro.set_rng_seed(0)
        with torch.no_grad():
            plain = -ELBO(beta=values[-1]).mean(ledger(pair, X, known=step.known))
        pyro.set_rng_seed(0)
        torch.testing.assert_close(step.backward(X), plain)  # with the beta from before the step
    assert values == pytest.approx([math.exp(0.1 * n * (kl - 0.3)) for n in range(3)], rel=1e-10)
    assert isinstance(objective.for_validation(), ELBO)
    assert objective.for_validation().beta == 1


def test_enumerated_sites_have_the_derivative_by_beta_as_their_kl():
    """beta log sum_c p(c, z) p(x | z, c)^(1/beta) is not linear in beta: the KL includes that of the tempered c."""
    pair, objective = Mixture(), Beta(0.5, rate=0.1, num_particles=2)
    drawn = ledger(pair, X, num_particles=2)
    objective.mean(drawn)
    values = [ELBO(2, beta=beta).mean(drawn).item() for beta in (1 - 1e-5, 1 + 1e-5)]
    kl = -(values[1] - values[0]) / 2e-5
    torch.testing.assert_close(objective.beta.log_value.item(), 0.1 * (kl - 0.5), rtol=1e-5, atol=1e-7)


def fitted(objective, tmp_path=None, epochs=4, **options):
    x = torch.rand(48, 4, generator=torch.Generator().manual_seed(0)).round()
    pyro.set_rng_seed(0)
    pair = VAE(4, 2, hidden=(5,))
    run = fit(pair, x, objective=objective, max_epochs=epochs, batch_size=16, lr=0.01, seed=0, progress=False,
              out=tmp_path, validation=0.25, **options)  # fmt: skip
    return pair, run


def test_the_multiplier_is_resumed_exactly_and_begins_anew_with_each_fit(tmp_path):
    def objective():
        return Beta(0.05, rate=0.5)

    straight, run = fitted(objective(), tmp_path / "straight")
    fitted(objective(), tmp_path / "halves", epochs=2)
    resumed, second = fitted(objective(), tmp_path / "halves", resume=True)
    assert second.history["beta"] == run.history["beta"]
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    assert run.history["beta"][-1] != 1
    reused = objective()
    assert [fitted(reused)[1].history["beta"] for _ in range(2)] == [run.history["beta"]] * 2
    loaded = load(tmp_path / "straight")
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), loaded.pair.parameters(), strict=True))


@pytest.mark.parametrize("make", [partial(Beta, 0.3, rate=0.1), partial(Capacity, 5.0, 1.0), partial(FreeBits, 0.5)])
def test_captured_steps_are_eager_ones(make):
    """A captured step changes the multiplier too, and reads its new value: three steps, then their state."""
    results = []
    for compiled in (False, True):
        pair, objective = Amortised(), make()
        step = Step(pair, objective, structure(pair, X))
        optimizer = torch.optim.Adam(pair.parameters(), lr=0.05)
        update = CompiledUpdate(step, optimizer, backend=interpreted)
        if not compiled:
            update.failure = "eager"
        pyro.set_rng_seed(0)
        losses = [update(X).item() for _ in range(5)]
        assert (update.failure is None) == compiled
        assert len(update.graphs) == compiled
        results.append([*losses, pair.a.item(), pair.r.item(), *(b.item() for b in objective.buffers.values())])
    assert results[0] == pytest.approx(results[1], rel=1e-12)


# Capacity -------------------------------------------------------------------------------------------------------------


def test_capacity_by_hand():
    pair = Free()
    drawn = ledger(pair, X, num_particles=3)
    kl = normal_kl(pair.loc, pair.scale, scalar(0.0), scalar(1.0)).sum(-1).mean()
    reconstruction = dist.Normal(drawn.values["z"].sum(-1), 1.0).log_prob(X).mean(0)
    for c in (0.5, 9.0):
        got = Capacity(7.0, c, num_particles=3).per_datum(drawn)
        torch.testing.assert_close(got, reconstruction - 7 * (kl - c).abs())
    rising = Capacity(7.0, Linear(0.0, 9.0, 3), num_particles=3)
    torch.testing.assert_close(rising.per_datum(drawn), reconstruction - 7 * kl)
    torch.testing.assert_close(rising.for_validation().per_datum(drawn), got)


class Linear3(Pair):
    """z ~ N(0, I_3), x | z ~ N(W z, s^2 I) with W of unequal columns, and a linear guide with a scale of its own."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        w = torch.linalg.qr(torch.randn(6, 3, generator=generator, dtype=F64)).Q
        self.weight = w * scalar([2.0, 1.0, 0.5])
        self.slope = nn.Parameter(0.1 * torch.randn(6, 3, generator=generator, dtype=F64))
        self.log_scale = nn.Parameter(torch.zeros(3, dtype=F64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, 0.3).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.slope, self.log_scale.exp()).to_event(1))


def test_the_fitted_kl_follows_a_rising_capacity():
    """To 2 %, step by step, while C rises from 1 to 3 nats and after it."""
    pair = Linear3()
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(256, 3, generator=generator, dtype=F64)
    x = z @ pair.weight.T + 0.3 * torch.randn(256, 6, generator=generator, dtype=F64)
    path = []

    def look(run):
        kl = normal_kl(x @ pair.slope, pair.log_scale.exp(), scalar(0.0), scalar(1.0)).mean(0).detach()
        path.append([run.history.last["C"], *kl.tolist()])

    objective = Capacity(100.0, Linear(1.0, 3.0, 500, delay=200), num_particles=4)
    fit(pair, x, objective=objective, max_epochs=800, batch_size=256, lr=3e-3, callbacks=[look], seed=0, progress=False)
    path = torch.tensor(path)
    c, total = path[200:, 0], path[200:, 1:].sum(1)
    print(f"largest error {((total - c) / c).abs().max():.4f}; at the end {path[-1].tolist()}")
    assert ((total - c) / c).abs().max() < 0.02
    assert c[-1] == 3


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FreeBits(-1.0), "nats is -1.0"),
        (lambda: FreeBits(1.0, group_size=0), "group_size is 0"),
        (lambda: Beta(0.0), "constraint is 0.0, it must be positive"),
        (lambda: Beta(1.0, rate=-0.1), "rate is -0.1"),
        (lambda: Capacity(-1.0, 5.0), "gamma is -1.0"),
        (lambda: Capacity(1.0, math.inf), "C is inf"),
        (lambda: Capacity(1.0, "5"), "C is '5'"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
