"""Greedy layer-wise pretraining: which modules are trained on what, what it is good for, and features of it."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import pyrovae as pv
from pyrovae import evaluation, nets
from pyrovae.conditionals import CrossEntropy, FixedNormal
from pyrovae.evaluation.features import Features
from pyrovae.models import VAE, Autoencoder, VaDE
from pyrovae.training import pretraining
from pyrovae.training.pretraining import layers, pretrain_clusters, pretrain_stacked

QUIET = {"progress": False, "compile": False, "seed": 0}
HIDDEN = (16, 12)


def stack(cls=VAE, hidden=HIDDEN, mirror=None, likelihood=CrossEntropy, **options):
    torch.manual_seed(0)
    relu = partial(nets.MLP, activation=nn.ReLU)
    decoder = relu(2, hidden[::-1] if mirror is None else mirror)
    return cls((2, 3), 2, encoder=relu((2, 3), hidden), decoder=decoder, likelihood=likelihood, **options)


def rows(count: int = 64) -> torch.Tensor:
    return torch.rand(count, 2, 3, generator=torch.Generator().manual_seed(1))


def digits(hidden=(60, 60, 60)):
    torch.manual_seed(0)
    relu = partial(nets.MLP, activation=nn.ReLU)
    return Autoencoder(64, 8, encoder=relu(64, hidden), decoder=relu(8, hidden[::-1]), likelihood=CrossEntropy)


def test_layers_are_the_pairs_own_modules_by_hand():
    """What each layer reconstructs, and how: equal to formulas in the pair's weights."""
    pair, x = stack(), rows(7)
    first, second, third = layers(pair)
    (w1, _, w2, _), (v1, _, v2, _) = pair.encoder.layers, pair.decoder.layers
    head, out = pair.posterior.head, pair.likelihood.head
    h1 = torch.relu(w1(x.flatten(1)))
    h2 = torch.relu(w2(h1))
    assert torch.equal(evaluation.encode(first, x), h1)
    assert torch.equal(evaluation.encode(second, h1), h2)
    assert torch.equal(evaluation.encode(third, h2), head(h2)[0])
    assert torch.equal(evaluation.encode(third, h2), evaluation.encode(pair, x))
    want = -nn.functional.binary_cross_entropy_with_logits(out(h1)[0], x, reduction="none").flatten(1).sum(1)
    assert torch.allclose(pv.log_weights(first, x)[0], want, atol=1e-6)
    constant = 0.5 * np.log(2 * np.pi)
    want = (-0.5 * (torch.relu(v2(h2)) - h1) ** 2 - constant).sum(1)
    assert torch.allclose(pv.log_weights(second, h1)[0], want, atol=1e-6)
    want = (-0.5 * (torch.relu(v1(head(h2)[0])) - h2) ** 2 - constant).sum(1)
    assert torch.allclose(pv.log_weights(third, h2)[0], want, atol=1e-6)


def test_each_layer_is_trained_on_the_codes_of_the_trained_ones_before(monkeypatch):
    """Only its own weights move, its data are the clean codes, and the pair ends with the weights of these fits."""
    pair, x = stack(), rows()
    seen = []

    def watched(layer, data, **options):
        before = {id(p): p.detach().clone() for p in pair.parameters()}
        run = pv.fit(layer, data, **options)
        moved = {name for name, p in pair.named_parameters() if not torch.equal(p, before[id(p)])}
        x_of_layer = (data.train if isinstance(data, pv.data.Data) else data)["x"]
        seen.append((moved, x_of_layer.clone(), {n: p.detach().clone() for n, p in pair.named_parameters()}))
        return run

    monkeypatch.setattr(pretraining, "fit", watched)
    runs = pretrain_stacked(pair, x, max_epochs=3, finetune_epochs=2, lr=1e-2, **QUIET)
    assert [run.epoch for run in runs] == [3, 3, 3, 2]
    both = ("weight", "bias")
    own = [
        {f"{m}.{p}" for m in ("encoder.layers.0", "likelihood.head.layer") for p in both},
        {f"{m}.{p}" for m in ("encoder.layers.2", "decoder.layers.2") for p in both},
        {f"{m}.{p}" for m in ("posterior.head.layer", "decoder.layers.0") for p in both},
    ]
    assert [moved for moved, _, _ in seen[:3]] == own
    assert seen[3][0] == set().union(*own)
    h1 = torch.relu(nn.functional.linear(x.flatten(1), *(seen[0][2][f"encoder.layers.0.{p}"] for p in both)))
    h2 = torch.relu(nn.functional.linear(h1, *(seen[1][2][f"encoder.layers.2.{p}"] for p in both)))
    for (_, data, _), want in zip(seen, (x, h1, h2, x), strict=True):
        assert torch.allclose(data, want, atol=1e-6)


def test_pretraining_reaches_a_smaller_error_than_none_with_the_same_fine_tuning():
    """On digits, with the same steps of fine-tuning from the same start: 24 nats against 28 at the time of writing."""
    data = pv.data.load("digits", binarize=None)
    x, test = data.train["x"].flatten(1)[:1000], data.test["x"].flatten(1)
    pretrained, plain = digits(), digits()
    pretrain_stacked(pretrained, x, max_epochs=8, finetune_epochs=5, batch_size=64, **QUIET)
    pv.fit(plain, x, max_epochs=5, batch_size=64, **QUIET)
    ours, without = (pv.elbo(pair, test).elbo.value for pair in (pretrained, plain))
    print(ours, without)
    assert ours > without + 1.0


def test_corruptions_go_where_they_are_said_to():
    """Of a layer's input and code in training mode; the data of the next layer are clean."""
    corruption, of_codes = nets.Masking(0.5), nets.GaussianNoise(0.1)
    for layer in layers(stack(), corruption=corruption, code_corruption=of_codes):
        assert layer.corruption is corruption
        assert layer.decoder[0] is of_codes
    torch.manual_seed(0)
    runs = pretrain_stacked(stack(), rows(), corruption=nets.Masking, max_epochs=1, finetune_epochs=0, **QUIET)
    assert len(runs) == 3


def test_validation_rows_are_encoded_too_and_runs_are_kept(tmp_path):
    runs = pretrain_stacked(stack(), rows(), max_epochs=2, finetune_epochs=1, validation=0.25, out=tmp_path, **QUIET)
    assert all(len(run.history["validation_loss"]) == run.epoch for run in runs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finetune", "layer_1", "layer_2", "layer_3"]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_resumed_is_as_if_never_cut_off(tmp_path, at):
    """Interrupted in the first layer, the second, or the fine-tuning, after an epoch of each."""
    options = {**QUIET, "max_epochs": 2, "finetune_epochs": 2, "lr": 1e-2}
    whole, cut, again = stack(), stack(), stack()
    pretrain_stacked(whole, rows(), **options)
    epochs = []

    def stop(run):
        epochs.append(run.epoch)
        run.interrupted = len(epochs) == 2 * at + 1

    runs = pretrain_stacked(cut, rows(), out=tmp_path, callbacks=[stop], **options)
    assert [run.epoch for run in runs] == [2] * at + [1]
    before = whole.state_dict()
    assert not all(torch.equal(cut.state_dict()[name], value) for name, value in before.items())
    runs = pretrain_stacked(again, rows(), out=tmp_path, resume=True, **options)
    assert [run.epoch for run in runs] == [2, 2, 2, 2]
    assert all(torch.equal(again.state_dict()[name], value) for name, value in before.items())
    assert [len(run.history["train_loss"]) for run in runs] == [2, 2, 2, 2]


def test_a_later_layer_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path):
    options = {**QUIET, "max_epochs": 1, "finetune_epochs": 1, "lr": 1e-2}
    whole, again = stack(), stack()
    pretrain_stacked(whole, rows(), **options)
    stop = [lambda run: setattr(run, "interrupted", True)]
    assert len(pretrain_stacked(stack(), rows(), out=tmp_path, callbacks=stop, **options)) == 1
    (tmp_path / "layer_2" / "checkpoints").mkdir(parents=True)
    assert len(pretrain_stacked(again, rows(), out=tmp_path, resume=True, **options)) == 4
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_linear_pair_is_one_layer():
    pair = VAE(6, 2, hidden=(), likelihood=FixedNormal)
    assert len(pretrain_stacked(pair, rows().flatten(1), max_epochs=1, finetune_epochs=1, **QUIET)) == 2


@pytest.mark.parametrize("options", [{"precision": "float64"}, {"precision": "bfloat16"}])
def test_options_of_fit_hold_for_each_layer(options):
    runs = pretrain_stacked(stack(), rows(), max_epochs=2, finetune_epochs=1, **{**QUIET, **options})
    assert all(np.isfinite(run.history["train_loss"]).all() for run in runs)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (partial(stack, mirror=(16, 12)), {}, r"hidden sizes are \[16, 12\], the decoder's \[16, 12\]"),
        (partial(stack, mirror=(4,)), {}, r"the decoder's \[4\]"),
        (partial(VAE, (1, 8, 8), 2, encoder=nets.ConvEncoder), {}, "encoder is a ConvEncoder"),
        (lambda: nn.Linear(2, 2), {}, "Linear without encoder"),
        (stack, {"objective": pv.ELBO()}, "objective is no argument"),
        (stack, {"resume": True}, "resume is True, but out is None"),
        (stack, {"max_epochs": 0}, "max_epochs is 0"),
        (stack, {"corruption": 0.2}, "corruption is 0.2"),
    ],
)
def test_bad_arguments_are_named(make, options, message):
    pair = make()
    before = [p.detach().clone() for p in pair.parameters()]
    with pytest.raises((TypeError, ValueError), match=message):
        pretrain_stacked(pair, rows(), **{**QUIET, "max_epochs": 1, **options})
    assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))


# Clusters -------------------------------------------------------------------------------------------------------------


def test_pretrained_clusters_are_a_fit_of_the_vae_and_a_mixture_on_its_codes():
    """By hand: the same weights, the same mixture; q(z | x) keeps the scale it has learned."""
    options = {**QUIET, "max_epochs": 3, "lr": 1e-2}
    pairs = []
    for _ in range(2):
        torch.manual_seed(0)
        pairs.append(VaDE((2, 3), 2, 3, hidden=(8,), likelihood=CrossEntropy))
    pair, by_hand = pairs
    run = pretrain_clusters(pair, rows(), beta=0.01, num_restarts=2, **options)
    vae = by_hand.vae()
    assert type(vae) is VAE
    assert type(vae.prior) is pv.priors.StandardNormal
    for slot in ("encoder", "decoder", "posterior", "likelihood"):
        assert getattr(vae, slot) is getattr(by_hand, slot)
    pv.fit(vae, rows(), objective=pv.ELBO(beta=0.01), **options)
    by_hand.initialise_(rows(), seed=0, num_restarts=2, posterior_scale=False)
    assert run.epoch == 3
    assert all(torch.equal(one, other) for one, other in zip(pair.parameters(), by_hand.parameters(), strict=True))


def test_pretrained_clusters_may_be_balanced_and_resumed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(VaDE, "initialise_", lambda self, x, **options: asked.append(options))
    torch.manual_seed(0)
    pair, options = VaDE((2, 3), 2, 3, hidden=(8,), likelihood=CrossEntropy), {**QUIET, "max_epochs": 2}
    stop = [lambda run: setattr(run, "interrupted", True)]
    assert pretrain_clusters(pair, rows(), out=tmp_path, callbacks=stop, **options).interrupted
    assert asked == []
    assert pretrain_clusters(pair, rows(), out=tmp_path, resume=True, balanced=True, **options).epoch == 2
    assert asked == [{"seed": 0, "num_restarts": 10, "balanced": True, "posterior_scale": False}]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (stack, {}, "pair is a VAE, a VaDE is wanted"),
        (lambda: VaDE((2, 3), 2, 65, likelihood=CrossEntropy), {}, "64 rows for 65 components"),
        (lambda: VaDE((2, 3), 2, 3, likelihood=CrossEntropy), {"objective": pv.ELBO()}, "pass beta="),
    ],
)
def test_pretrained_clusters_refuse_what_they_cannot_have(make, options, message):
    pair = make()
    before = [parameter.detach().clone() for parameter in pair.parameters()]
    with pytest.raises((TypeError, ValueError), match=message):
        pretrain_clusters(pair, rows(), **{**QUIET, "max_epochs": 1, **options})
    assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))


# Features -------------------------------------------------------------------------------------------------------------


def test_features_are_the_guides_means_in_scikit_learn():
    pair, x = stack(), rows(40)
    y = (x.flatten(1).sum(1) > 3).long().numpy()
    features = Features(pair)
    codes = features.fit_transform(x.flatten(1).numpy())  # flat rows, as scikit-learn has them
    assert isinstance(codes, np.ndarray)
    assert np.array_equal(codes, evaluation.encode(pair, x).numpy())
    assert np.array_equal(features.transform(x.numpy()), codes)
    assert list(features.get_feature_names_out()) == ["features0", "features1"]
    classifier = make_pipeline(Features(pair), StandardScaler(), LogisticRegression())
    assert cross_val_score(classifier, x.flatten(1).numpy(), y, cv=3, error_score="raise").shape == (3,)
    assert clone(classifier).get_params()["features__seed"] == 0


def test_features_train_a_copy_on_the_rows_of_fit_only():
    pair, x = stack(), rows(40)
    before = [p.detach().clone() for p in pair.parameters()]
    seen = []

    def train(copy, x):
        seen.append(len(x))
        pv.fit(Autoencoder.of(copy), x, max_epochs=2, **QUIET)

    features = Features(pair, train=train)
    y = np.arange(40) % 2
    cross_val_score(make_pipeline(features, LogisticRegression()), x.numpy().reshape(40, 6), y, cv=4)
    assert seen == [30] * 4
    assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))
    fitted = features.fit(x)
    assert not np.array_equal(fitted.transform(x), evaluation.encode(pair, x).numpy())


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (scipy.sparse.csr_matrix(np.ones((3, 6))), r"X is sparse, a dense array is wanted; pass X.toarray\(\)"),
        (torch.ones(3, 6).to_sparse(), r"X is sparse, a dense array is wanted; pass X.toarray\(\) or X.to_dense\(\)"),
        ([["a"] * 6], "X is of <U1, real numbers are wanted; pass X.astype"),
        (np.ones((3, 6), dtype=object), "X is of object, real numbers are wanted"),
        (np.ones((3, 6), dtype=complex), "X is of complex128, real numbers are wanted"),
        (torch.ones(3, 6, dtype=torch.complex64), "X is of torch.complex64, real numbers are wanted"),
    ],
)
def test_features_of_what_are_no_dense_numbers_are_refused(X, message):
    features = Features(stack()).fit(np.zeros((3, 6)))
    for call in (features.transform, Features(stack()).fit):
        with pytest.raises(ValueError, match=message):
            call(X)


def test_features_refuse_what_does_not_fit():
    features = Features(stack())
    with pytest.raises(NotFittedError):
        features.transform(np.zeros((3, 6)))
    with pytest.raises(ValueError, match=r"rows of shape \(5,\)"):
        features.fit(np.zeros((3, 5)))
    features.fit(np.zeros((3, 6)))
    with pytest.raises(ValueError, match=r"rows of shape \(7,\)"):
        features.transform(np.zeros((3, 7)))
    with pytest.raises(ValueError, match="one row at least"):
        features.transform(np.zeros(6))


def of_parameters(x):
    w = pyro.param("w", lambda: 0.1 * torch.randn(2, 4))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ w, 1.0).to_event(1), obs=x)


def by_parameters(x):
    v = pyro.param("v", lambda: 0.1 * torch.randn(4, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ v, 0.5).to_event(1))


@pytest.mark.parametrize("has_run", [False, True])
def test_parameters_of_functions_are_each_transformers_own(has_run):
    """Codes are x @ v, of v as the same training alone leaves it; no fit goes on from another, or from the caller's."""
    pair, train = (of_parameters, by_parameters), partial(pv.fit, max_epochs=2, lr=0.05, **QUIET)
    x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    store, folds = pyro.get_param_store(), [x[:30], 5 * x[30:]]
    with store.scope():
        if has_run:
            pv.elbo(pair, x)
        before = {name: value.detach().clone() for name, value in store.items()}
        want = []
        for fold in folds:
            with store.scope(copy.deepcopy(store.get_state())):
                train(pair, fold)
                want.append(x @ store["v"].detach().numpy())
        found = [Features(pair, train=train).fit(fold) for fold in folds]
        for features, codes in zip(found, want, strict=True):
            np.testing.assert_allclose(features.transform(x), codes, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(pickle.loads(pickle.dumps(features)).transform(x), codes, rtol=1e-5, atol=1e-6)
        assert store.keys() == before.keys()
        assert all(torch.equal(store[name], value) for name, value in before.items())


def test_networks_that_functions_refer_to_can_not_be_copied():
    encoder = nn.Linear(4, 2)
    weight = encoder.weight.detach().clone()

    def guide(x):
        net = pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 0.5).to_event(1))

    x = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    train = partial(pv.fit, max_epochs=1, **QUIET)
    with pyro.get_param_store().scope(), pytest.raises(ValueError, match=r"pair runs a Linear that .* hold it"):
        Features((of_parameters, guide), train=train).fit(x)
    assert torch.equal(encoder.weight, weight)
    with pyro.get_param_store().scope():
        codes = Features((of_parameters, guide)).fit(x).transform(x)
    np.testing.assert_allclose(codes, encoder(torch.from_numpy(x)).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_pair_of_functions_bound_to_a_module_is_copied():
    vae, x = VAE(4, latent_dim=2, hidden=(5,)), np.eye(4, dtype=np.float32)
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    features = Features((vae.model, vae.guide), train=partial(pv.fit, max_epochs=2, **QUIET)).fit(x)
    assert all(torch.equal(*both) for both in zip(before, vae.parameters(), strict=True))
    assert np.abs(features.transform(x) - Features(vae).fit(x).transform(x)).max() > 1e-4
