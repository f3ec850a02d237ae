"""Sites that are drawn and not scored: how a pair without some density runs in a trace that scores every site."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyrovae.distributions.implicit import has_density
from pyrovae.models.base import Functions, as_pair

__all__ = ["check_density", "lacks_density", "unscored"]

Hides = Callable[[dict[str, Any]], bool]


def lacks_density(site: dict[str, Any]) -> bool:
    """Whether a site's distribution has no density."""
    return not has_density(site["fn"])


def check_density(site: dict[str, Any], *, in_guide: bool) -> None:
    """That a site of guide or model can be scored.

    Raises:
        ValueError: by its name, where its distribution has no density.
    """
    if lacks_density(site):
        fix = (
            "there is no log q; train the pair with pyrovae.AdversarialVB(critic), and evaluate it with pyrovae.ais"
            if in_guide
            else "there is no log p; train the pair with pyrovae.JointRatio(critic); nothing estimates its log p(x), "
            "pyrovae.ais neither"
        )
        of = "guide" if in_guide else "model"
        raise ValueError(f"{of} site {site['name']!r} is implicit and has no density, so that {fix}")


def unscored(pair: Any, *, model: Hides = lacks_density, guide: Hides = lacks_density) -> Functions:
    """A pair with the same draws, of which some sites have log_prob zero: Pyro's `.mask(False)`, which asks for none.

    Args:
        pair: see `pyrovae.as_pair`.
        model, guide: which sites of each. Default: those without a density.
    """
    pair = as_pair(pair)
    return Functions(_Unscored(model)(pair.model), _Unscored(guide)(pair.guide))


class _Unscored(Messenger):
    def __init__(self, hides: Hides):
        super().__init__()
        self.hides = hides

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg) and self.hides(msg):
            msg["fn"] = msg["fn"].mask(False)
