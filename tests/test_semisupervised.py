"""M2, FactoredM2 and StackedM2 against sums over labels written out, stock Pyro, and quadrature."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae import priors
from pyrovae.conditionals import DiagonalNormal
from pyrovae.data import Split
from pyrovae.models import M2, VAE, FactoredM2, StackedM2
from pyrovae.models.base import Functions
from pyrovae.objectives import ELBO, SemiSupervised, ledger
from pyrovae.training.step import Step

CLASSES = 3
FORMS = [M2, FactoredM2]


@pytest.fixture(autouse=True)
def double():
    """TraceEnum_ELBO makes tensors of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def made(form, **options):
    pyro.set_rng_seed(0)
    pair = form(5, 2, **{"num_classes": CLASSES, "hidden": (7,), **options})
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.mul_(3)  # so that z and y matter
    x = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)).round()
    return pair, x, torch.tensor([1, -1, 0, -1, 2, -1])


def one_at_a_time(pair, x, z, y):
    """L of each row at one label and one z per row: log p(x | y, z) + log p(y) - KL(q(z | x, y) || p(z)), (B,)."""
    one_hot = torch.nn.functional.one_hot(y.expand(len(x)), CLASSES).to(x)
    log_p = pair.likelihood(pair.decoder(z, one_hot)).log_prob(x)
    features = pair.encoder(x) if isinstance(pair, FactoredM2) else pair.encoder(x, one_hot)
    q = pair.posterior(features).base_dist
    return log_p - math.log(CLASSES) - kl_divergence(q, dist.Normal(0.0, 1.0).expand(q.batch_shape)).sum(-1)


def by_hand(pair, x, y, z, alpha=0.0, beta=1.0):
    """The loss of each row as the paper and the notes write it, row by row and label by label, from the draws z."""
    q = torch.softmax(pair.label_head.layer(pair.classifier(x)), -1)  # (B, C)
    values = []
    for row, label in enumerate(y.tolist()):
        of_row = x[row : row + 1]
        # The draw for each value of y; the factored guide has one for all of them.
        draws = [z.reshape(-1, len(x), 2)[c if z.numel() > len(x) * 2 else 0, row : row + 1] for c in range(CLASSES)]
        total = 0.0
        for c in range(CLASSES):
            of_label = torch.tensor([c if label < 0 else label])
            total = total + q[row, c] * one_at_a_time(pair, of_row, draws[c], of_label)[0]
        if label < 0:
            values.append(beta * (total - (q[row] * q[row].log()).sum()))
        else:
            values.append(total + alpha * q[row, label].log())
    return torch.stack(values)


def gradients(pair, loss):
    options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    found = torch.autograd.grad(loss, list(pair.parameters()), **options)
    return dict(zip(dict(pair.named_parameters()), found, strict=True))


LABELS = {
    "unlabelled": torch.full((6,), -1),
    "labelled": torch.tensor([1, 2, 0, 1, 2, 0]),
    "mixed": torch.tensor([1, -1, 0, -1, 2, -1]),
}


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 1.0), (1.0, 0.5), (3.0, 0.0)])
def test_value_and_gradient_are_those_of_the_sums_written_out(form, labels, alpha, beta):
    pair, x, _ = made(form)
    y = LABELS[labels]
    drawn = ledger(pair, x, y)
    objective = SemiSupervised(alpha=alpha, beta=beta)
    value, want = objective.per_datum(drawn), by_hand(pair, x, y, drawn.values["z"], alpha, beta)
    assert torch.allclose(value, want, rtol=0, atol=1e-12)
    got, wanted = gradients(pair, value.sum()), gradients(pair, want.sum())
    for name, gradient in got.items():
        assert torch.allclose(gradient, wanted[name], rtol=0, atol=1e-11), name
    if (alpha, beta) == (0.0, 1.0):
        assert torch.equal(value, ELBO().per_datum(drawn))


def test_a_scale_of_the_pair_is_one_of_the_whole_loss():
    pair, x, y = made(M2)
    ten = Functions(poutine.scale(pair.model, 10.0), poutine.scale(pair.guide, 10.0))
    values = []
    for each in (pair, ten):
        torch.manual_seed(4)
        values.append(SemiSupervised(alpha=3.0, beta=0.5).per_datum(ledger(each, x, y)))
    assert torch.allclose(values[1], 10 * values[0], rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_the_values_of_labels_differ(form):
    """Else the sums above would hold for any order of the labels."""
    pair, x, _ = made(form)
    z = torch.randn(6, 2)
    each = torch.stack([one_at_a_time(pair, x, z, torch.tensor([c])) for c in range(CLASSES)])
    assert (each.max(0).values - each.min(0).values).min() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_with_beta_0_unlabelled_rows_have_no_gradient(form):
    pair, x, y = made(form)
    value = SemiSupervised(alpha=2.0, beta=0.0).per_datum(ledger(pair, x, y))
    assert not value[y < 0].any()
    assert not any(gradient.any() for gradient in gradients(pair, value[y < 0].sum()).values())
    supervised = SemiSupervised(alpha=2.0)
    torch.manual_seed(3)
    mixed = SemiSupervised(alpha=2.0, beta=0.0).per_datum(ledger(pair, x, y)).sum()
    torch.manual_seed(3)
    alone = supervised.per_datum(ledger(pair, x, y))[y >= 0].sum()
    assert mixed.item() == pytest.approx(alone.item(), abs=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("labels", LABELS)
def test_stock_pyro_has_the_same_loss_and_gradient_from_the_same_seed(form, labels):
    pair, x, _ = made(form)
    y, found = LABELS[labels], []
    for objective in (SemiSupervised(alpha=0.0), ELBO(), ELBO(closed_form=False), TraceEnum_ELBO(max_plate_nesting=1)):
        torch.manual_seed(2)
        loss = objective.differentiable_loss(pair.model, pair.guide, x, y)
        found.append((loss.detach(), gradients(pair, loss)))
    for left, right in ((0, 1), (2, 3)):
        assert torch.allclose(found[left][0], found[right][0], rtol=0, atol=1e-11)
        for name, gradient in found[left][1].items():
            assert torch.allclose(gradient, found[right][1][name], rtol=0, atol=1e-10), name


def test_stock_svi_trains_with_the_objective():
    pair, x, y = made(M2)
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.05}), SemiSupervised(alpha=10.0))
    losses = [svi.step(x, y) for _ in range(40)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert pv.classification_error(pair, Split({"x": x, "y": y})) == 0


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_is_of_x_and_y_where_y_is_known_and_of_x_elsewhere(form):
    """By quadrature over one latent: log p(x, y), or log sum_y p(x, y)."""
    pyro.set_rng_seed(0)
    pair = form(5, 1, num_classes=CLASSES, hidden=(7,))
    with torch.no_grad():
        for parameter in pair.decoder.parameters():
            parameter.mul_(3)
    _, x, y = made(form)
    z = torch.linspace(-8, 8, 2001)[:, None, None].expand(-1, 6, 1)
    joint = []
    for c in range(CLASSES):
        one_hot = torch.eye(CLASSES)[c].expand(2001, 6, CLASSES)
        log_p = pair.likelihood(pair.decoder(z, one_hot)).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z[..., 0])
        joint.append(log_p.logsumexp(0) + math.log(16 / 2000) - math.log(CLASSES))
    joint = torch.stack(joint)  # (C, B)
    exact = torch.where(y >= 0, joint.gather(0, y.clamp(min=0)[None])[0], joint.logsumexp(0))
    with torch.no_grad():
        log_w = pv.log_weights(pair, x, y, num_particles=20_000)
    weights = (log_w - exact).exp()
    mean, error = weights.mean(0), weights.std(0) / math.sqrt(len(weights))
    print(mean, error)
    assert ((mean - 1).abs() < 4 * error).all()
    assert (error < 0.02).all()
    elbo = torch.stack([ELBO(100).per_datum(ledger(pair, x, y, num_particles=100)) for _ in range(5)]).mean(0)
    assert (elbo < exact).all()


def test_particles_are_averaged_and_each_has_its_own_noise():
    pair, x, y = made(M2)
    drawn = ledger(pair, x, y, num_particles=4)
    value = SemiSupervised(4, alpha=1.5, beta=0.5).per_datum(drawn)
    each = [by_hand(pair, x, y, drawn.values["z"][:, k], 1.5, 0.5) for k in range(4)]
    assert torch.allclose(value, torch.stack(each).mean(0), rtol=0, atol=1e-12)
    assert not torch.allclose(each[0], each[1])


def test_weights_may_be_schedules():
    pair, x, y = made(M2)
    objective = SemiSupervised(
        alpha=pv.schedules.Linear(0.0, 2.0, epochs=2), beta=pv.schedules.Linear(0.0, 1.0, epochs=2)
    )
    step = Step(pair, objective, pv.structure(pair, x, y))
    assert set(objective.schedules) == {"alpha", "beta"}
    for schedule in objective.schedules.values():
        schedule.update(1.0)
    torch.manual_seed(0)
    value = step(x, y)
    torch.manual_seed(0)
    assert value.item() == pytest.approx(Step(pair, SemiSupervised(alpha=1.0, beta=0.5), step.known)(x, y).item())
    assert not objective.is_bound


# M1 + M2 --------------------------------------------------------------------------------------------------------------


def stacked(form, kept):
    pyro.set_rng_seed(0)
    fitted = VAE(5, 4, hidden=(6,))
    m2 = form(len(kept), 2, num_classes=CLASSES, hidden=(7,), likelihood=DiagonalNormal)
    x = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)).round()
    return fitted, m2, StackedM2(fitted, m2, kept=kept), x, LABELS["mixed"]


@pytest.mark.parametrize("kept", [(0, 1, 2, 3), (0, 2, 3)])
@pytest.mark.parametrize("form", FORMS)
def test_the_stack_is_m2_on_features_drawn_anew(form, kept):
    """Its bound is M2's on z1 and what does not depend on M2: so is its gradient."""
    fitted, m2, pair, x, y = stacked(form, kept)
    drawn = ledger(pair, x, y)
    z1, z2 = drawn.values["z1"], drawn.values["z2"]
    of_m2 = by_hand(m2, z1[..., kept], y, z2)
    others = [dim for dim in range(4) if dim not in kept]
    rest = fitted.likelihood(fitted.decoder(z1)).log_prob(x) - fitted.posterior_of(x).log_prob(z1)
    rest = rest + dist.Normal(0.0, 1.0).log_prob(z1[..., others]).sum(-1)
    value = SemiSupervised(alpha=0.0).per_datum(drawn)
    assert torch.allclose(value, of_m2 + rest, rtol=0, atol=1e-11)
    assert {name.split(".")[0] for name, _ in pair.named_parameters()} == {"m2"}
    got, wanted = gradients(m2, value.sum()), gradients(m2, of_m2.sum())
    assert all(torch.allclose(got[name], wanted[name], rtol=0, atol=1e-11) for name in got)


def test_the_stack_draws_pictures_of_a_class():
    _, _, pair, x, _ = stacked(M2, (0, 2, 3))
    unknown = torch.full((6,), -1)
    images = [
        pv.evaluation.generate(pair, 6, like=(x, unknown), fixed={"y_unobserved": torch.full((6,), c)})
        for c in range(CLASSES)
    ]
    assert images[0].shape == (6, 5)
    assert not torch.allclose(images[0], images[1])


def test_latents_as_data_are_draws_whose_moments_are_the_guides():
    pyro.set_rng_seed(0)
    fitted = VAE(5, 4, hidden=(6,))
    with torch.no_grad():
        fitted.posterior.head.layer.weight[1].zero_()  # its mean is the same for all x
    x, y = torch.rand(50, 5).round(), torch.arange(50) % CLASSES
    data = pv.data.Data(Split({"x": x, "y": y}), test=Split({"x": x[:7], "y": y[:7]}))
    codes, kept = pv.latent_data(fitted, data, min_std=1e-3)
    assert kept == [0, 2, 3]
    assert codes.train.names == ("x", "y", "x_scale")
    q = fitted.posterior_of(x).base_dist
    assert torch.allclose(codes.test["x"], q.loc[:7, kept])
    draws = torch.stack([codes.train.rows(range(50))[0] for _ in range(4000)])
    error = q.scale[:, kept] / math.sqrt(4000)
    assert ((draws.mean(0) - q.loc[:, kept]).abs() < 5 * error).all()
    assert torch.allclose(draws.std(0), q.scale[:, kept].detach(), rtol=0.08)
    assert torch.equal(codes.train.rows(range(50))[1], y)
    few = pv.data.hide_labels(codes, 6)
    run = pv.fit(M2(3, 2, num_classes=3, hidden=(5,), likelihood=DiagonalNormal), few, max_epochs=1, progress=False)
    assert run.step == 1


@pytest.mark.parametrize("transform", [None, lambda tensors: {**tensors, "x": 1 - tensors["x"]}])
def test_latents_of_partly_labelled_rows_come_with_their_share_of_labels(transform):
    x, digit = torch.rand(60, 5).round(), torch.arange(60) % CLASSES
    tensors = {"x": x, "digit": digit, "row": torch.arange(60)}
    data = pv.data.Data(Split(tensors, transform=transform), test=Split(tensors))
    few = pv.data.hide_labels(data, 6, times=2, label="digit")
    codes, _ = pv.latent_data(VAE(5, 4, hidden=(6,)), few)
    assert torch.equal(codes.train["digit"], few.train["digit"])
    assert len(codes.train) == 66
    counts = [int((batch[1] >= 0).sum()) for batch in codes.train.batches(11, seed=0, epoch=0)]
    assert counts == [2] * 6
    assert type(codes.test) is Split
    train, held_out = codes.train.divided(0.2)
    assert not set(train["row"].tolist()) & set(held_out["row"].tolist()), "copies are on both sides"


def test_latents_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="q of 'z' is MultivariateNormal, not a diagonal Normal"):
        pv.latent_data(LinearGaussian(), pv.data.Data(Split({"x": torch.zeros(4, 5)})))
    with pytest.raises(TypeError, match=r"pass pyrovae\.data\.Data"):
        pv.latent_data(LinearGaussian(), torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"min_std=9\.0"):
        pv.latent_data(VAE(5, 2), pv.data.Data(Split({"x": torch.zeros(4, 5)})), min_std=9.0)


# Classification -------------------------------------------------------------------------------------------------------


def test_classify_gives_q_of_y_whatever_is_known():
    pair, x, y = made(M2)
    want = torch.softmax(pair.label_head.layer(pair.classifier(x)), -1)
    for labels in LABELS.values():
        assert torch.allclose(pv.classify(pair, (x, labels)), want)
    assert torch.allclose(pv.classify(pair, (x, y), site="y", batch_size=2), want)


def test_error_counts_labelled_rows_alone():
    pair, x, _ = made(M2)
    best = pv.classify(pair, (x, LABELS["unlabelled"])).argmax(1)
    error = partial(pv.classification_error, pair)
    assert error(Split({"x": x, "y": best})) == 0
    assert error(Split({"x": x, "y": (best + 1) % CLASSES})) == 1
    half = torch.stack([best[0], (best[1] + 1) % CLASSES, *torch.full((4,), -1)])
    assert error(Split({"x": x, "y": half})) == 0.5


def test_classify_takes_anybodys_enumerated_site():
    """q(c | x) of one-hot values, given a latent that is drawn: the mean over draws."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("c", dist.OneHotCategorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0))
            q = dist.OneHotCategorical(logits=torch.stack([z, torch.zeros_like(z)], -1))
            pyro.sample("c", q, infer={"enumerate": "parallel"})

    x = torch.tensor([-1.0, 0.0, 2.0])
    q = pv.classify((model, guide), x.repeat(200), num_samples=20).reshape(200, 3, 2).mean(0)
    z = torch.linspace(-8, 8, 4001)
    want = [(dist.Normal(m, 1.0).log_prob(z).exp() * torch.sigmoid(z)).sum() * 16 / 4000 for m in x]
    assert q.shape == (3, 2)
    assert torch.allclose(q[:, 0], torch.stack(want), atol=4 * 0.5 / math.sqrt(4000))


def test_what_is_no_classification_is_refused():
    pair, x, _ = made(M2)
    with pytest.raises(ValueError, match="all 6 labels are -1"):
        pv.classification_error(pair, Split({"x": x, "y": LABELS["unlabelled"]}))
    with pytest.raises(ValueError, match="the guide enumerates none"):
        pv.classify(VAE(5, 2), x)
    with pytest.raises(ValueError, match="site is 'c', the guide enumerates \\['y_unobserved'\\]"):
        pv.classify(pair, (x, LABELS["mixed"]), site="c")
    with pytest.raises(ValueError, match="no 'label' in memory"):
        pv.classification_error(pair, (x, LABELS["mixed"]), label="label")


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (torch.tensor([0, 1, 7, -1, 0, 0]), r"1 labels that are none of 0, \.\.\., 2, nor -1 .* row 2 \(7\)"),
        (torch.tensor([0, 1, -100, -1, 0, -9]), r"2 labels that are none of .* row 2 \(-100\)"),
        (torch.tensor([0.0, 1, 2, -1, 0, 0]), r"y is float32 of shape \(6,\), labels are int64"),
        (torch.zeros(6, 3, dtype=torch.long), r"y is int64 of shape \(6, 3\), labels are int64 of shape \(6,\)"),
    ],
)
@pytest.mark.parametrize("stack", [False, True])
def test_labels_that_are_none_are_named_before_training(y, said, stack):
    pair, x, _ = made(M2)
    pair = StackedM2(VAE(5, 4), M2(4, 2, num_classes=CLASSES, likelihood=DiagonalNormal)) if stack else pair
    with pytest.raises(ValueError, match=said):
        pair.check_batch(x, y)
    with pytest.raises(ValueError, match="y"):
        pv.fit(pair, (x, y), max_epochs=1, progress=False)
    for evaluate in (pv.elbo, pv.log_likelihood, pv.classify):
        with pytest.raises(ValueError, match=said):
            evaluate(pair, (x, y))


def test_an_unlabelled_set_is_refused_by_a_supervised_call():
    pair, x, y = made(M2)
    with pytest.raises(ValueError, match=r"beta is 0, .* all 6 labels of 'y' are -1"):
        pv.fit(pair, (x, LABELS["unlabelled"]), objective=SemiSupervised(beta=0.0), max_epochs=1, progress=False)
    pv.fit(pair, (x, y), objective=SemiSupervised(beta=0.0), max_epochs=1, batch_size=2, progress=False)
    with pytest.warns(UserWarning, match="all 6 labels of 'y' are -1, unknown: this is learning without labels"):
        pv.fit(pair, (x, LABELS["unlabelled"]), objective=SemiSupervised(), max_epochs=1, progress=False)


def test_a_pair_without_partly_observed_labels_is_refused():
    with pytest.raises(ValueError, match="the model observes no 'y_observed' for each datum, only \\['x'\\]"):
        SemiSupervised().loss(*(lambda v: (v.model, v.guide))(VAE(5, 2)), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="alpha is -1"):
        SemiSupervised(alpha=-1)


def test_a_stack_of_other_lengths_is_refused():
    with pytest.raises(ValueError, match=r"m2 has event shape \(3,\), 4 latents are kept"):
        StackedM2(VAE(5, 4), M2(3, 2))
    with pytest.raises(ValueError, match=r"kept is \(2, 1\)"):
        StackedM2(VAE(5, 4), M2(2, 2), kept=(2, 1))


def test_latents_left_out_have_to_be_standard_normal():
    mixture = partial(priors.GaussianMixture, num_components=2)
    whole = StackedM2(VAE(5, 4, prior=mixture), M2(4, 2, likelihood=DiagonalNormal))  # M2 stands for the prior
    pv.elbo(whole, (torch.ones(3, 5), torch.tensor([0, -1, 1])))
    with pytest.raises(TypeError, match="prior of fitted is GaussianMixture, 2 of its latents are left out"):
        StackedM2(VAE(5, 4, prior=mixture), M2(2, 2, likelihood=DiagonalNormal), kept=(0, 3))
    bits = StackedM2(VAE(5, 4), M2(2, 2), kept=(0, 3))
    with pytest.raises(TypeError, match="m2's likelihood gives Bernoulli, a Normal is wanted"):
        pv.elbo(bits, (torch.ones(3, 5), torch.tensor([0, -1, 1])))
