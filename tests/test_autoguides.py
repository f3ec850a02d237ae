"""Pyro's autoguides: their bounds are Pyro's, and what they leave without a weight is refused."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal, AutoNormalMessenger, init_to_value

import pyrovae as pv
from pyrovae import evaluation as ev
from pyrovae.objectives import ledger
from pyrovae.reports import pictures

X = torch.tensor([0.01, 0.02, 0.03])


def rates(x):
    """A latent that AutoNormal transforms: z = exp(u), whose log-Jacobian is the log-density of its Delta."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 100.0))
        pyro.sample("x", dist.Normal(z, 0.01), obs=x)


def normals(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def log_p(x):
    """By the trapezoidal rule."""
    z = torch.linspace(1e-6, 0.3, 100_001)
    joint = dist.Gamma(2.0, 100.0).log_prob(z) + dist.Normal(z, 0.01).log_prob(x[:, None])
    return torch.trapezoid(joint.exp(), z).log()


@pytest.mark.parametrize("closed_form", [True, False])
def test_the_log_jacobian_counts(closed_form):
    """Pyro's KL of a Delta leaves out its log-density: the bound was 4 nats above log p(x)."""
    pyro.set_rng_seed(0)
    guide = AutoNormal(rates, init_loc_fn=pyro.infer.autoguide.init_to_median)
    guide(X)
    with torch.no_grad():
        guide.locs.z.fill_(-4.2)
    stock = -Trace_ELBO(40_000, vectorize_particles=True, max_plate_nesting=1).loss(rates, guide, X) / 3
    objective = -pv.ELBO(40_000, closed_form=closed_form).loss(rates, guide, X) / 3
    assert objective == pytest.approx(stock, abs=0.02)
    parts = pv.elbo((rates, guide), X, num_particles=40_000)
    assert parts.elbo.value == pytest.approx(stock, abs=0.02)
    assert parts.elbo.value == pytest.approx(sum(parts.reconstruction.values()) - sum(parts.kl.values()), abs=1e-4)
    assert parts.elbo.value < log_p(X).mean()


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoDiagonalNormal])
def test_a_mixture_as_prior_has_the_support_of_its_components(autoguide):
    pyro.set_rng_seed(0)
    vae = pv.VAE(5, 2, hidden=(7,), prior=partial(pv.priors.GaussianMixture, num_components=3))
    x, guide = torch.rand(6, 5).round(), autoguide(vae.model)
    guide(x)
    pyro.set_rng_seed(1)
    loss = Trace_ELBO().loss(vae.model, guide, x)
    pyro.set_rng_seed(1)
    drawn = pyro.poutine.trace(guide).get_trace(x)
    z = drawn.nodes["z"]["value"]
    joint = vae.prior().log_prob(z) + vae.likelihood(vae.decoder(z)).log_prob(x)
    assert loss == pytest.approx((drawn.log_prob_sum() - joint.sum()).item(), rel=1e-5)


def test_a_step_is_that_of_stock_pyro():
    """Same seed, same gradient, with the closed form where there is one."""
    gradients = []
    for objective in (pv.ELBO(), Trace_ELBO()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoNormal(rates)
        guide(X)
        pyro.set_rng_seed(1)
        objective.loss_and_grads(rates, guide, X)
        gradients.append(torch.stack([p.grad for p in guide.parameters()]))
    torch.testing.assert_close(*gradients)


def test_a_joint_guide_has_an_elbo_and_no_weights():
    """AutoDiagonalNormal draws all rows' z as one vector outside the plate; weights without it were p(x, z)."""
    x = torch.tensor([0.5, -1.0, 2.0])
    pyro.set_rng_seed(0)
    guide = AutoDiagonalNormal(normals, init_scale=0.5**0.5)
    guide(x)
    with torch.no_grad():
        guide.loc.copy_(x / 2)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).mean().item()
    bound = pv.elbo((normals, guide), x, num_particles=2000)
    assert bound.elbo.value == pytest.approx(exact, abs=1e-4)
    assert bound.elbo.standard_error < 1e-4  # at the posterior: z of all rows come from one draw, whose parts make up
    for refused in (
        lambda: pv.log_likelihood((normals, guide), x),
        lambda: pv.log_weights((normals, guide), x, num_particles=2),
        lambda: pv.expectation((normals, guide), x, lambda latents: latents["z"]),
        lambda: pv.IWAE(3).loss(normals, guide, x),
        lambda: pv.DReG(3).loss(normals, guide, x),
        lambda: pv.VIMCO(3).loss(normals, guide, x),
        lambda: pv.ReweightedWakeSleep(3).loss(normals, guide, x),
        lambda: ledger((normals, guide), x).log_q(),
    ):
        with pytest.raises(ValueError, match=r"the guide draws the latents of all data at once, at .*_latent"):
            refused()


def two(x):
    """Two latents, of which AutoDiagonalNormal has one density."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + w.sum(-1), 1.0), obs=x)


def guided(family, model=two, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = family(model, init_scale=0.4, **options)
    guide(X)
    return guide


def test_what_is_drawn_and_what_is_made_of_it_have_one_kl():
    """Each had a number of its own, of which one was below 0."""
    guide = guided(AutoNormal)
    with torch.no_grad():
        guide.locs.w.fill_(0.3)
    drawn = ledger((two, guide), X, num_particles=20_000)
    for kl in (
        pv.elbo((two, guide), X, num_particles=20_000).kl,
        {k: v.mean().item() for k, v in drawn.parts()[1].items()},
    ):
        assert list(kl) == ["z", "w"]
        for name, value in kl.items():
            q = dist.Normal(getattr(guide.locs, name), getattr(guide.scales, name))
            exact = torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).sum().item() / 3
            assert value == pytest.approx(exact, abs=0.03)
    with pytest.raises(ValueError, match="site 'w' depends on what the model enumerates, is on a point, or"):
        drawn.kl_by_dimension("w")


def test_observed_sites_that_a_guide_has_too_are_no_latents():
    """AutoNormalMessenger's guides have them: free bits counted x, in `elbo` it had a KL."""
    values = []
    for family in (AutoNormal, AutoNormalMessenger):
        pyro.clear_param_store()
        guide = family(normals)
        guide(X)
        kl = ledger((normals, guide), X).parts()[1]
        parts = pv.elbo((normals, guide), X, num_particles=1)
        assert list(kl) == list(parts.kl) == ["z"]
        assert parts.elbo.value == pytest.approx(parts.reconstruction["x"] - parts.kl["z"], abs=1e-5)
        pyro.set_rng_seed(0)
        free = pv.FreeBits(5.0).loss(normals, guide, X) / 3
        pyro.set_rng_seed(0)
        kl = ledger((normals, guide), X).parts()[1]["z"].mean().item()
        pyro.set_rng_seed(0)
        values.append(free - pv.ELBO().loss(normals, guide, X) / 3 - (5 - kl))
    assert values == pytest.approx([0, 0], abs=1e-5)


def test_a_joint_guide_has_one_kl_of_all():
    guide = guided(AutoDiagonalNormal)
    q = dist.Normal(guide.loc, guide.scale)
    exact = torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).sum().item() / 3
    parts = pv.elbo((two, guide), X, num_particles=20_000)
    assert list(parts.kl) == ["z, w"]
    assert parts.kl["z, w"] == pytest.approx(exact, abs=0.05)
    assert parts.elbo.value == pytest.approx(sum(parts.reconstruction.values()) - parts.kl["z, w"], abs=1e-4)


@pytest.mark.parametrize(
    ("family", "same"),
    [
        (AutoNormal, {"z": 2.0, "w": 2.0}),
        (AutoDiagonalNormal, {"z, w": 2.0}),
    ],
)
def test_weights_and_levels_are_of_whole_kls(family, same):
    """log q of the drawn and log p of the made site were weighed apart: free bits of 0 nats shrank q to 0.27 of it."""
    guide, losses = guided(family), {}
    for objective in (pv.ELBO(8), pv.FreeBits(0.0, num_particles=8), pv.ELBO(8, beta=2.0), pv.ELBO(8, beta=same)):
        pyro.set_rng_seed(1)
        losses[str(objective)] = objective.loss_and_grads(two, guide, X), [p.grad.clone() for p in guide.parameters()]
        guide.zero_grad()
    plain, free, doubled, of_each = losses.values()
    torch.testing.assert_close(free, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_each, doubled, rtol=1e-5, atol=1e-6)
    assert doubled[0] > plain[0] + 0.1
    with pytest.raises(ValueError, match=r"beta has weights for \['z_unconstrained'\], the latent sites are"):
        pv.ELBO(beta={"z_unconstrained": 2.0}).loss(two, guide, X)


@pytest.mark.parametrize("objective", [pv.DReG(5), pv.STL(5), pv.ReweightedWakeSleep(5)])
def test_gradients_without_the_score_are_those_of_a_plain_guide(objective):
    def plain(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    guide = guided(AutoNormal, normals)
    loc, scale = guide.locs.z.detach().clone().requires_grad_(), guide.scales.z.detach().clone().requires_grad_()
    pyro.set_rng_seed(1)
    want = objective.loss_and_grads(normals, plain, X)
    pyro.set_rng_seed(1)
    assert objective.loss_and_grads(normals, guide, X) == pytest.approx(want)
    torch.testing.assert_close(guide.locs.z.grad, loc.grad)
    assert loc.grad.abs().sum() > 0.1


@pytest.mark.parametrize(
    ("objective", "refused"),
    [
        (pv.DReG(5), {"scale", "loc"}),
        (pv.ReweightedWakeSleep(5), {"scale", "loc"}),
        (pv.STL(5), {"scale"}),
        (pv.IWAE(5), set()),
        (pv.PIWAE(4, num_groups=2), set()),
    ],
)
@pytest.mark.parametrize("learned", ["scale", "loc"])
def test_points_that_parameters_move_have_no_score(objective, refused, learned):
    """z = loc + scale u: what parameters do to z or to the Jacobian at a given u is in no score, and was left out."""
    values, x = {"loc": torch.tensor(0.0), "scale": torch.tensor(1.0)}, X.repeat(20_000)
    values[learned].requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(torch.zeros(len(x)), 1.0), infer={"is_auxiliary": True})
            z = values["loc"] + values["scale"] * u
            pyro.sample("z", dist.Delta(z, log_density=-values["scale"].log().expand_as(z)))

    if learned in refused:
        with pytest.raises(ValueError, match=r"the guide puts \['z'\] on a point"):
            objective.loss_and_grads(normals, guide, x)
        return

    def plain(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(values["loc"], values["scale"]))

    gradients = []
    for q in (guide, plain):
        pyro.set_rng_seed(1)
        values[learned].grad = None
        objective.loss_and_grads(normals, q, x)
        gradients.append(values[learned].grad / len(x))
    torch.testing.assert_close(*gradients, atol=0.01, rtol=0)


def test_a_compiled_step_keeps_points_whose_parameters_are_drawn_through():
    guides = []
    for compile in (False, True):
        guide = guided(AutoNormal, normals)
        options = {"max_epochs": 40, "batch_size": 3, "seed": 0, "progress": False}
        pv.fit((normals, guide), X, objective=pv.STL(2), compile=compile, **options)
        guides.append(guide.locs.z.detach())
    torch.testing.assert_close(*guides)


def test_noise_of_the_guide_alone_is_refused():
    """p(x, z) / q(a, z) has no mean: its `bound` was half a nat above log p(x)."""

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x / 2, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(a, 0.7))

    for refused in (
        lambda: pv.elbo((normals, guide), X),
        lambda: pv.log_likelihood((normals, guide), X),
        lambda: pv.IWAE(2).loss(normals, guide, X),
    ):
        with pytest.raises(ValueError, match=r"the guide alone samples \['a'\], and puts no latents on points made of"):
            refused()


@pytest.mark.parametrize("family", [AutoNormal, AutoDiagonalNormal])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_fit_gives_each_row_its_own_posterior(family, batch_size):
    """Rows in another order at each step would give all rows the mean."""
    x = torch.tensor([0.5, -1.0, 2.0])
    pyro.set_rng_seed(0)
    guide = family(normals)
    decay = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.997)
    options = {"max_epochs": 1500, "lr": 0.05, "schedule": decay, "batch_size": batch_size}
    pv.fit((normals, guide), x, **options, seed=0, compile=False, progress=False)
    torch.testing.assert_close(guide.median(x)["z"].detach(), x / 2, atol=0.1, rtol=0)


def points(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x)


def at_the_data(x, family=AutoDelta):
    """A guide with z = x, one row for each datum."""
    pyro.clear_param_store()
    guide = family(points, init_loc_fn=init_to_value(values={"z": x}))
    guide(x)
    return points, guide


OF_ROWS = {
    "active_units": lambda pair, x: ev.active_units(pair, x),
    "elbo": lambda pair, x: pv.elbo(pair, x),
    "encode": lambda pair, x: ev.encode(pair, x),
    "expectation": lambda pair, x: pv.expectation(pair, x, lambda latents: latents["z"], num_samples=2),
    "interpolate": lambda pair, x: ev.interpolate(pair, x),
    "log_likelihood": lambda pair, x: pv.log_likelihood(pair, x, num_samples=2),
    "manifold": lambda pair, x: ev.manifold(pair, 3, like=x),
    "reconstruct": lambda pair, x: ev.reconstruct(pair, x),
    "traverse": lambda pair, x: ev.traverse(pair, x),
}


@pytest.mark.parametrize("name", OF_ROWS)
@pytest.mark.parametrize("rows", [slice(3), slice(10, None), [0] * 40])
def test_other_data_than_the_rows_of_the_guide_are_refused(name, rows):
    """They had codes, those of other data, or failed with a shape that nobody had passed."""
    x = torch.arange(40.0).reshape(20, 2)
    pair, count = at_the_data(x), len(x[rows])
    with pytest.raises(
        ValueError, match=rf"the guide has rows for 20 data in its plate 'data', these are {count}; pass"
    ):
        OF_ROWS[name](pair, x[rows])


def test_a_plate_of_fixed_size_in_the_guide_is_refused_for_other_data():
    x = torch.arange(40.0).reshape(20, 2)

    def guide(x):
        loc = pyro.param("loc", lambda: x.clone())
        with pyro.plate("data", 20):
            pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

    torch.testing.assert_close(ev.encode((points, guide), x), x)
    with pytest.raises(ValueError, match="the guide has rows for 20 data in its plate 'data', these are 3"):
        ev.encode((points, guide), x[:3])
    with pytest.raises(ValueError, match=r"these are 7; pass all 20 data .* with batch_size=20"):
        ev.encode((points, guide), x, batch_size=7)


@pytest.mark.parametrize("count", [20, 300])
def test_walks_and_batches_find_the_row_of_their_datum(count):
    x = torch.arange(2.0 * count).reshape(count, 2)
    pair = at_the_data(x)
    for batch_size in (None, 7, count):
        assert torch.equal(ev.encode(pair, x, batch_size=batch_size), x)
    assert ev.traverse(pair, x, dims=[0], values=[0.0]).flatten().tolist() == [0.0, 1.0]
    assert torch.equal(ev.traverse(pair, x, dims=[1], values=[5.0, 6.0])[0], torch.tensor([[0.0, 5.0], [0.0, 6.0]]))
    assert torch.equal(ev.interpolate(pair, x, steps=2).flatten(0, 1), x)
    assert torch.equal(ev.manifold(pair, 2, like=x, extent=1.0)[0][0, 1], torch.tensor([-1.0, 1.0]))
    for n in (3, 20, 301):
        assert torch.equal(ev.decode(pair, torch.ones(n, 2), like=x), torch.ones(n, 2))
        assert ev.generate(pair, n, like=x).unique(dim=0).shape == (n, 2)


@pytest.mark.parametrize("max_rows", [1000, None])
def test_a_check_takes_all_rows_of_an_autoguide(max_rows):
    """In batches of 1024, or of chosen rows, the guide's rows were those of other data."""
    x = torch.arange(2400.0).reshape(1200, 2) / 1200
    checked = pv.check(at_the_data(x), x, "mean", sources="posterior", num_replicates=5, max_rows=max_rows)
    assert checked.num_rows == 1200
    (row,) = checked.rows
    assert row.observed == pytest.approx(x.mean().item(), abs=1e-6)
    assert (row.replicated - row.observed).abs().max() < 5 * 0.1 / 2400**0.5  # x_rep ~ N(z, 0.1), z = x


def test_an_autoguide_is_drawn(tmp_path):
    x = torch.arange(40.0).reshape(20, 2) / 40
    drawn, skipped = pictures(at_the_data(x, AutoNormal), x, tmp_path)
    assert {"reconstructions", "samples", "interpolation", "manifold"} <= {path.stem for path in drawn}
    assert not any("the guide has rows for" in reason for reason in skipped.values())
