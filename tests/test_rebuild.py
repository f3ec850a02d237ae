"""Library pairs as JSON: a closed set of names, and nothing else is ever imported or called."""

import json
from functools import partial

import numpy as np
import pytest
from exact import LinearGaussian
from torch import nn

from pyrovae import conditionals, models, nets, priors
from pyrovae.models import VAE
from pyrovae.models.rebuild import build, describe, family, part
from pyrovae.priors.covariances import FullCovariance

OPTIONS = {
    "defaults": {},
    "vector": {"event_shape": 7},
    "hidden": {"hidden": (5, 3)},
    "linear": {"hidden": ()},
    "named parts": {"likelihood": conditionals.ContinuousBernoulli, "posterior": conditionals.DiagonalNormal},
    "options of parts": {
        "likelihood": partial(conditionals.FixedNormal, scale=0.1),
        "posterior": partial(conditionals.DiagonalNormal, min_scale=0.01),
        "prior": priors.StandardNormal,
    },
    "a part of a part": {
        "prior": partial(priors.GaussianMixture, num_components=3, covariance=partial(FullCovariance, min_scale=0.1))
    },
    "codes": {"likelihood": partial(conditionals.Categorical, num_classes=3)},
    "convolutions": {
        "encoder": partial(nets.ConvEncoder, channels=(3, 4)),
        "decoder": partial(nets.ConvDecoder, channels=[4, 3]),
    },
    "another width of the encoder": {"encoder": partial(nets.MLP, hidden=(9,))},
    "no network given": {"encoder": None, "decoder": None},
}


def made(name: str) -> VAE:
    return VAE(**{"event_shape": (1, 6, 5), "latent_dim": 2, **OPTIONS[name]})


@pytest.mark.parametrize("name", OPTIONS)
def test_a_description_survives_json_and_builds_the_same_pair(name):
    pair = made(name)
    description = describe(pair)
    again = build(json.loads(json.dumps(description)))
    assert type(again) is VAE
    assert describe(again) == description
    assert str(again) == str(pair)
    for one, other in zip(pair.modules(), again.modules(), strict=True):
        plain = [{k: v for k, v in vars(m).items() if isinstance(v, (int, float, tuple))} for m in (one, other)]
        assert plain[0] == plain[1]
    shapes = [{key: value.shape for key, value in p.state_dict().items()} for p in (pair, again)]
    assert shapes[0] == shapes[1]


def test_a_description_is_this():
    pair = VAE((1, 6, 5), latent_dim=2, likelihood=partial(conditionals.FixedNormal, scale=0.1))
    likelihood = {"name": "FixedNormal", "scale": 0.1}
    arguments = {"event_shape": [1, 6, 5], "latent_dim": 2, "likelihood": likelihood}
    assert describe(pair) == {"name": "VAE", "arguments": arguments}


def test_numpys_numbers_are_plain_ones():
    """A setting out of an array, of a search for example, is no reason for a pair to be nobody's."""
    scale = partial(conditionals.FixedNormal, scale=np.float32(0.25))
    pair = models.CVAE((np.int64(4),), np.int32(2), hidden=(np.int64(5), 3), num_classes=np.uint8(3), likelihood=scale)
    description = json.loads(json.dumps(describe(pair)))
    plain = partial(conditionals.FixedNormal, scale=0.25)
    assert description == describe(models.CVAE((4,), 2, hidden=(5, 3), num_classes=3, likelihood=plain))
    assert str(build(description)) == str(pair)
    layers = models.LadderVAE(4, (3, 2), batch_norm=np.bool_(True))
    assert describe(layers)["arguments"]["batch_norm"] is True
    bounds = partial(priors.VampPrior, num_components=2, bounds=(np.float64(0.0), np.float16(1.0)))
    assert describe(VAE(4, 2, prior=bounds))["arguments"]["prior"]["bounds"] == [0.0, 1.0]


class Mine(conditionals.Bernoulli):
    """A part that is not the library's."""


class FixedNormal(conditionals.Bernoulli):
    """Another one, which has the name of one of the library's."""


class MyVAE(VAE):
    """A pair that is not the library's."""


@pytest.mark.parametrize(
    "pair",
    [
        lambda: (len, len),
        LinearGaussian,
        lambda: MyVAE(4, 2),
        lambda: VAE(4, 2, likelihood=Mine),
        lambda: VAE(4, 2, likelihood=FixedNormal),
        lambda: VAE(4, 2, likelihood=lambda features, event: conditionals.Bernoulli(features, event)),
        lambda: VAE(4, 2, likelihood=conditionals.Bernoulli(200, 4)),
        lambda: VAE(4, 2, encoder=nn.Linear(4, 3)),
        lambda: VAE(4, 2, encoder=partial(nets.MLP, activation=nn.ReLU)),
    ],
)
def test_what_json_cannot_hold_has_no_description(pair):
    assert describe(pair()) is None


def test_names_are_found_in_any_case():
    assert family("vae") is family("VAE") is VAE
    assert part("likelihood", "bernoulli") is conditionals.Bernoulli
    assert part("posterior", {"name": "diagonalnormal", "MIN_SCALE": 0.1}).func is conditionals.DiagonalNormal


@pytest.mark.parametrize("name", models.__all__)
def test_every_family_is_known_by_its_name(name):
    assert family(name) is getattr(models, name)


UNKNOWN = {
    "pair": ({"name": "VEA"}, "there is no pair called 'VEA'; did you mean VAE?"),
    "no pair": ({"arguments": {}}, "there is no pair called 'None'"),
    "module path": ({"name": "os.system"}, "there is no pair called 'os.system'; .*pass one of"),
    "helper": ({"name": "filled"}, "there is no pair called 'filled'"),
    "argument": (
        {"name": "VAE", "arguments": {"event_shape": 4, "latent": 2}},
        "there is no argument of VAE called 'latent'; did you mean latent_dim",
    ),
    "part": (
        {"name": "VAE", "arguments": {"event_shape": 4, "latent_dim": 2, "likelihood": "Bernouli"}},
        "there is no likelihood called 'Bernouli'; did you mean Bernoulli",
    ),
    "part of another slot": (
        {"name": "VAE", "arguments": {"event_shape": 4, "latent_dim": 2, "prior": "Bernoulli"}},
        "there is no prior called 'Bernoulli'",
    ),
    "part by its path": (
        {"name": "VAE", "arguments": {"event_shape": 4, "latent_dim": 2, "encoder": "torch.nn.Linear"}},
        "there is no encoder called 'torch.nn.Linear'",
    ),
    "option": (
        {
            "name": "VAE",
            "arguments": {"event_shape": 4, "latent_dim": 2, "likelihood": {"name": "FixedNormal", "s": 1}},
        },
        "there is no option of FixedNormal called 's'; .*pass one of scale",
    ),
    "what the pair passes itself": (
        {"name": "VAE", "arguments": {"event_shape": 4, "latent_dim": 2, "encoder": {"name": "MLP", "event_shape": 9}}},
        "there is no option of MLP called 'event_shape'",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_names_are_refused_with_the_nearest(case):
    description, message = UNKNOWN[case]
    with pytest.raises(ValueError, match=message):
        build(description)
