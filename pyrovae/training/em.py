r"""Expectation maximisation and its relatives: E-steps and M-steps by turns, for any pair.

    F(q, theta) = E_q(z) [log p(x, z; theta)] + H[q] <= log p(x; theta)

The E-step climbs F over q with theta held fixed, the M-step over theta with q held fixed (Neal & Hinton 1998).

| | E-step | M-step |
|---|---|---|
| EM | `Exact()` | closed form: a function |
| generalised EM | `Exact()` | `Ascent(steps)` |
| variational EM, mean field | `CoordinateAscent(sweeps)` | either |
| variational EM, a guide of any kind | `Ascent(steps)` | either |
| SVI per mini-batch | `Ascent(steps, start=pair.restart)` on a `MeanField` | `Ascent(1)` |
| guide and model by turns | `Ascent(k)` | `Ascent(j)` |
| Monte Carlo EM | `MonteCarlo(samples)` | `Ascent(steps)` |

MAP, or a posterior over a model's own parameters, is Pyro's: make them `PyroSample`s, and pass the model with
`AutoDelta` or `AutoNormal` to `pyrovae.fit`.
"""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.data import match
from pyrovae.models.base import Functions, PairLike, Structure, as_pair, isolated_random_state, structure
from pyrovae.models.batches import home, placed
from pyrovae.objectives import exact_posterior, ledger, mean_field_posterior
from pyrovae.objectives.classical import summed
from pyrovae.objectives.hmc import Chains
from pyrovae.objectives.mean_field import probabilities
from pyrovae.training.arguments import check_callbacks, check_numbers
from pyrovae.training.history import History
from pyrovae.training.loop import Callback, Run
from pyrovae.training.step import Step

__all__ = ["Ascent", "CoordinateAscent", "EStep", "Exact", "Expectation", "MonteCarlo", "fit_em"]

MStep = Callable[..., Any]


class Expectation(Protocol):
    """What an E-step leaves: q held fixed, and F as a function of the model's parameters."""

    @property
    def responsibilities(self) -> dict[str, Tensor]:
        """q of each enumerated site, (nested plates..., B, C)."""

    def mean(self) -> Tensor:
        """F, mean nats per datum."""


class EStep(ABC):
    """An E-step: `begin` makes one that is ready for a pair, which is then called with each batch."""

    pair: PairLike
    known: Structure

    def begin(self, pair: PairLike, batch: tuple[Tensor, ...], plate: str | None, objective: Any) -> EStep:
        """This E-step, ready for a pair; it is itself left as it was."""
        ready = copy.copy(self)
        ready.pair = pair
        ready.prepare(batch, plate, objective)
        return ready

    @abstractmethod
    def prepare(self, batch: tuple[Tensor, ...], plate: str | None, objective: Any) -> None:
        """Find `known`, the structure of what is run."""

    @abstractmethod
    def __call__(self, *batch: Tensor, whole: bool) -> Expectation:
        """Climb over q on a batch; `whole` says that it is all the data, so that the last q may be gone on from."""


class Exact(EStep):
    """q is the exact posterior of the model's discrete sites: `pyrovae.objectives.exact_posterior`. No guide runs."""

    def prepare(self, batch: tuple[Tensor, ...], plate: str | None, objective: Any) -> None:  # noqa: D102
        _, self.known = summed(self.pair, *batch, plate=plate)

    def __call__(self, *batch: Tensor, whole: bool) -> Expectation:  # noqa: D102
        return exact_posterior(self.pair, *batch, known=self.known)


class CoordinateAscent(Exact):
    """q is a product over the model's discrete sites: `pyrovae.objectives.mean_field_posterior`. No guide runs.

    On all the data at once each call goes on from the last q, so that F never falls; on mini-batches it starts anew.

    Args:
        sweeps: updates of each factor in a call.
    """

    def __init__(self, sweeps: int = 10):
        self.sweeps = sweeps
        self._start: dict[str, Tensor] | None = None

    def __call__(self, *batch: Tensor, whole: bool) -> Expectation:  # noqa: D102
        start = self._start if whole else None
        found = mean_field_posterior(self.pair, *batch, sweeps=self.sweeps, start=start, known=self.known)
        self._start = found.responsibilities
        return found


class Ascent(EStep):
    """K steps of a torch optimizer up F: as E-step over the guide's parameters, as M-step over the model's.

    With small enough steps of plain gradients on an exact F it never falls; nor with `torch.optim.LBFGS` and
    `line_search_fn="strong_wolfe"`, which comes near a maximum in one call.

    Args:
        steps: K.
        lr: learning rate.
        optimizer: called as `optimizer(parameters, lr=lr)`. It lives on from batch to batch, unless there is a `start`.
        start: called with each batch before an E-step to initialise q, such as `MeanField.restart`.
    """

    def __init__(
        self,
        steps: int = 1,
        *,
        lr: float = 1e-2,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        start: Callable[..., Any] | None = None,
    ):
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps is {steps!r}; pass a whole number of at least 1")
        self.steps, self.lr, self.optimizer, self.start = steps, lr, optimizer, start
        self._made: torch.optim.Optimizer | None = None

    def prepare(self, batch: tuple[Tensor, ...], plate: str | None, objective: Any) -> None:  # noqa: D102
        self.known = structure(self.pair, *batch, plate=plate)
        self._step = Step(self.pair, objective, self.known)
        self._parameters = _owned(self.pair, batch)[1]
        of_model = {id(parameter) for parameter in _owned(self.pair, batch)[0]}
        names = {id(tensor): name for name, tensor in self.known.parameters.items()}
        if shared := [names[id(p)] for p in self._parameters if id(p) in of_model]:
            raise ValueError(
                f"model and guide share the parameters {shared[:3]}, so that neither can be held fixed for the other; "
                "use fit(), which trains them jointly"
            )
        if not self._parameters:
            raise ValueError("the guide has no parameters to climb over; pass e_step=Exact(), or a guide with some")

    def __call__(self, *batch: Tensor, whole: bool) -> Expectation:  # noqa: D102
        if self.start is not None:
            self.start(*batch)
            self._made = None
        found = _Guided(self._step, batch)
        self.climb(self._parameters, found.backward)
        return found

    def climb(self, parameters: Sequence[Tensor], backward: Callable[[], Tensor]) -> None:
        """Take the steps; `backward` sets gradients of the loss -F and returns it."""
        if self._made is None:
            self._made = self.optimizer(list(parameters), lr=self.lr)
        for _ in range(self.steps):
            self._made.step(backward)  # type: ignore[arg-type]


class _Guided:
    """q is the pair's guide; F is the objective."""

    def __init__(self, step: Step, batch: tuple[Tensor, ...]):
        self.step, self.batch = step, batch

    @property
    def responsibilities(self) -> dict[str, Tensor]:
        with torch.no_grad():
            draw = ledger(self.step.pair, *self.batch, known=self.step.known).draws[0]
            return probabilities(draw, draw.shares()[1])

    def mean(self) -> Tensor:
        return -self.step(*self.batch)

    def backward(self) -> Tensor:
        for parameter in self.step.known.parameters.values():
            parameter.grad = None
        return self.step.backward(*self.batch)


class MonteCarlo(EStep):
    r"""q is a sample of the posterior of the continuous sites, drawn by Hamiltonian Monte Carlo: Monte Carlo EM.

    Each datum has chains of its own, `pyrovae.objectives.hmc.Chains`; discrete sites are summed over. The chains start
    from the prior, and on all the data at once each call goes on from where they were. What is maximised and recorded
    is E_q [log p(x, z)], without the entropy of q: no bound, and with samples it need not rise each time.

    Args:
        samples: chains of each datum, whose last states are the sample; at least 2.
        transitions: HMC moves in a call; step sizes adapt in the first half of them.
        leapfrog: steps of each move.
        step_size: to start from.

    Source: Wei & Tanner 1990; with chains that go on, Kuhn & Lavielle 2004.
    """

    def __init__(self, samples: int = 10, *, transitions: int = 10, leapfrog: int = 10, step_size: float = 0.2):
        if not isinstance(samples, int) or samples < 2:
            raise ValueError(f"samples is {samples!r}; pass a whole number of at least 2")
        self.samples, self.transitions, self.leapfrog, self.step_size = samples, transitions, leapfrog, step_size
        self._chains: Chains | None = None

    def prepare(self, batch: tuple[Tensor, ...], plate: str | None, objective: Any) -> None:  # noqa: D102
        prior = poutine.block(self.pair.model, hide_fn=lambda site: bool(site.get("is_observed")))
        self.known = structure(Functions(self.pair.model, prior), *batch, plate=plate)

    def __call__(self, *batch: Tensor, whole: bool) -> Expectation:  # noqa: D102
        if self._chains is None or not whole:
            step_size = self.step_size if self._chains is None else float(self._chains.step_size.mean())
            self._chains = Chains(self.pair.model, *batch, chains=self.samples, step_size=step_size, known=self.known)
        self._chains.move(self.transitions, leapfrog=self.leapfrog)
        return _Sampled(self._chains)


class _Sampled:
    def __init__(self, chains: Chains):
        self.mean = chains.mean
        self.responsibilities: dict[str, Tensor] = {}


def fit_em(
    pair: Any,
    data: Any,
    *,
    e_step: EStep | None = None,
    m_step: Ascent | MStep | None = None,
    objective: pyro.infer.ELBO | None = None,
    max_epochs: int = 100,
    batch_size: int | None = None,
    tolerance: float | None = None,
    plate: str | None = None,
    seed: int | None = None,
    callbacks: Sequence[Callback | Callable[[Run], None]] = (),
) -> Run:
    r"""Train a pair by E-steps and M-steps by turns: EM, generalised and variational EM, SVI, Monte Carlo EM.

    The table at the top of `pyrovae.training.em` says which steps make which. On all the data at once the recorded
    bound never falls with exact or coordinate E-steps and an M-step that never lowers F. Guide and model trained
    together are `fit`'s; this one keeps no checkpoints, runs eagerly, in one process, and does not validate.

    Args:
        pair: see `pyrovae.as_pair`; `Exact` and `CoordinateAscent` and `MonteCarlo` never run its guide.
        data: see `pyrovae.data.match`; batches go to the device of the pair's parameters, real numbers in their dtype.
        e_step: see there. Default: `Exact()`.
        m_step: an `Ascent`, or a function called with `(responsibilities, *batch)` that sets the model's parameters,
            responsibilities holding q of each enumerated site, (nested plates..., B, C). Default: `Ascent(10)`.
        objective: F where the E-step is an `Ascent`. Default: `ELBO()`.
        max_epochs: passes over the data.
        batch_size: rows of each E-step and M-step, by default all.
        tolerance: end when the loss changes by less than this, nats per datum; None never ends early.
        plate: name of the data plate, where it is not plain.
        seed: of the order of rows and of all draws. None draws one from torch's generator.
        callbacks: called after each epoch, see `Callback`.

    Returns:
        the `Run`; `train_loss` in its history is -F after the E-step and before the M-step, mean nats per datum.
        With `Exact` it is -log p(x) of the parameters before the epoch.

    Raises:
        ValueError: where an E-step does not suit the pair, naming the site or the parameters; for an objective that
            owns a critic; for numbers that are not positive.
        TypeError: for arguments of other types.
        FloatingPointError: if F stops being finite.

    Source: Dempster, Laird & Rubin 1977; Neal & Hinton 1998; Hoffman et al. 2013.

    >>> import pyro.distributions as dist
    >>> def model(x):
    ...     p = pyro.param("p", torch.tensor(0.5))
    ...     with pyro.plate("data", len(x)):
    ...         c = pyro.sample("c", dist.Bernoulli(p))
    ...         pyro.sample("x", dist.Normal(4 * c, 1.0), obs=x)
    >>> def maximize(responsibilities, x):
    ...     pyro.get_param_store()["p"] = responsibilities["c"][:, 1].mean()
    >>> run = fit_em((model, lambda x: None), torch.tensor([0.1, 3.9, 4.1, 4.2]), m_step=maximize, max_epochs=3)
    >>> loss = run.history["train_loss"]
    >>> loss[0] > loss[1] > loss[2]
    True
    """
    check_numbers(max_epochs=max_epochs, batch_size=batch_size, tolerance=tolerance)
    check_callbacks(callbacks)
    pair = as_pair(pair)
    if getattr(objective, "critic", None) is not None:
        raise ValueError(f"{type(objective).__name__} owns a critic, which fit_em does not train; use pyrovae.fit")
    rows = match(data, pair.model)
    batch_size = len(rows) if batch_size is None else batch_size
    whole = batch_size == len(rows)
    if seed is None:
        seed = int(torch.randint(2**31, ()))
    climbs = copy.copy(Ascent(10) if m_step is None else m_step)
    with isolated_random_state(seed):
        first = next(rows.sequential(batch_size))
        device, dtype = home(pair, first, plate)
        first = placed(first, device, dtype)
        ready = (Exact() if e_step is None else e_step).begin(pair, first, plate, objective)
        parameters = _owned(pair if isinstance(ready, Ascent) else Functions(pair.model, _nothing), first)[0]
        if isinstance(climbs, Ascent) and not parameters:
            raise ValueError(
                "the model has no parameters to climb over; register modules with pyro.module, use pyro.param, or pass "
                "a function as m_step"
            )
        run = Run(pair, objective, History(), {}, ready.known, seed)
        began, before = time.monotonic(), math.inf
        while run.epoch < max_epochs and not run.stopping:
            total = 0.0
            given = rows.sequential(batch_size) if whole else rows.batches(batch_size, seed=seed, epoch=run.epoch)
            for batch in (placed(batch, device, dtype) for batch in given):
                q = ready(*batch, whole=whole)
                with torch.no_grad():
                    loss = -float(q.mean())
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"-F is {loss} in step {run.step + 1}; pass a smaller lr=, or look at scales that go to 0"
                    )
                total += loss * len(batch[0])
                if isinstance(climbs, Ascent):
                    climbs.climb(parameters, partial(_backward, q, parameters))
                else:
                    climbs(q.responsibilities, *batch)
                run.step += 1
            run.epoch += 1
            loss, run.seconds = total / len(rows), time.monotonic() - began
            run.history.append(epoch=run.epoch, step=run.step, train_loss=loss, seconds=run.seconds)
            for callback in callbacks:
                callback.on_epoch(run) if isinstance(callback, Callback) else callback(run)
            run.stopping |= tolerance is not None and abs(before - loss) < tolerance
            before = loss
    return run


def _backward(q: Expectation, parameters: Sequence[Tensor]) -> Tensor:
    if isinstance(q, _Guided):
        return q.backward()
    for parameter in parameters:
        parameter.grad = None
    loss = -q.mean()
    loss.backward(inputs=list(parameters))
    return loss.detach()


def _owned(pair: PairLike, batch: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """The leaf parameters that the model reads, and those that the guide does, as SVI finds them."""
    with isolated_random_state(), torch.no_grad():
        with poutine.trace() as guide:
            pair.guide(*batch)
        with poutine.trace(param_only=True) as model:
            poutine.replay(pair.model, trace=guide.trace)(*batch)
    return _leaves(model.trace), _leaves(guide.trace)


def _leaves(trace: Any) -> list[Tensor]:
    values = (site["value"] for site in trace.nodes.values() if site["type"] == "param")
    leaves = (value.unconstrained() if hasattr(value, "unconstrained") else value for value in values)
    return list({id(leaf): leaf for leaf in leaves if leaf.requires_grad}.values())


def _nothing(*_: Any) -> None:
    """No guide."""
