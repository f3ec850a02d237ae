"""What goes wrong in training is told before it starts, or costs no epoch that was done."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyrovae.data import Data, Split
from pyrovae.models import VAE
from pyrovae.models.base import Pair
from pyrovae.nets import MLP
from pyrovae.objectives import ELBO, DensityRatio, FactorVAE
from pyrovae.training import checkpoint
from pyrovae.training.alone import alone_in
from pyrovae.training.fit import fit
from pyrovae.training.loop import Callback
from pyrovae.training.runs import load

BITS = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)).round()
quietly = partial(fit, progress=False, seed=0, compile=False)


def vae(**options) -> VAE:
    torch.manual_seed(0)
    return VAE(4, 2, **{"hidden": (8,), **options})


class Never(Callback):
    def on_step(self, run):
        pytest.fail("training began")


class NaNGradient(Pair):
    """x ~ Bernoulli(b), whose loss is finite and whose gradient is NaN from the step `bad` on, counted from 1."""

    def __init__(self, bad: int):
        super().__init__()
        self.logits, self.bad, self.steps = nn.Parameter(torch.zeros(4)), bad, 0

    def model(self, x):
        self.steps += torch.is_grad_enabled()
        zero = (self.logits - self.logits.detach()).square().sum()
        zero = zero.sqrt() if self.steps >= self.bad else zero
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=self.logits + zero).to_event(1), obs=x)

    def guide(self, x):
        pass


@pytest.mark.parametrize(("bad", "batch_size"), [(8, 10), (12, 10), (2, 40), (3, 40)])
def test_a_gradient_that_is_not_finite_behind_a_finite_loss(tmp_path, bad, batch_size, monkeypatch):
    """At the last step of an epoch no later loss tells of it, and no checkpoint may take the parameters in."""
    monkeypatch.setattr("pyrovae.training.loop.SAVE_EVERY", 0.0)
    pair, epoch = NaNGradient(bad), -(-bad // (40 // batch_size))
    kept = []
    options = {"max_epochs": 3, "batch_size": batch_size, "out": tmp_path}
    message = rf"finite at step {bad}, .* in epoch {epoch}: parameters \['logits'\]"
    with pytest.raises(FloatingPointError, match=message):
        quietly(pair, BITS, callbacks=[lambda run: kept.append(pair.logits.detach().clone())], **options)
    assert len(kept) == epoch - 1
    torch.testing.assert_close(pair.logits.detach(), kept[-1], rtol=0, atol=0)
    found = checkpoint.read(checkpoint.latest(tmp_path / "checkpoints"))
    torch.testing.assert_close(found.parameters["logits"], kept[-1], rtol=0, atol=0)


class Odd(LRScheduler):
    """A schedule with something in its state that no file holds."""

    def __init__(self, optimizer):
        self.thing = object()
        super().__init__(optimizer)

    def get_lr(self):
        return list(self.base_lrs)


def test_a_schedule_that_no_checkpoint_can_hold(tmp_path):
    with pytest.raises(TypeError, match=r"schedule\.thing is a builtins\.object"):
        quietly(vae(), BITS, max_epochs=2, out=tmp_path, schedule=Odd, callbacks=[Never()])
    assert quietly(vae(), BITS, max_epochs=2, schedule=Odd).epoch == 2


def test_a_folder_has_one_run_at_a_time(tmp_path):
    with alone_in(tmp_path), pytest.raises(ValueError, match="is that of a run in progress; pass another folder"):
        quietly(vae(), BITS, max_epochs=1, out=tmp_path, callbacks=[Never()])
    assert list(tmp_path.iterdir()) == []
    quietly(vae(), BITS, max_epochs=1, out=tmp_path)
    with pytest.raises(ValueError, match="already holds a run"):
        quietly(vae(), BITS, max_epochs=1, out=tmp_path, callbacks=[Never()])
    again = quietly(vae(), BITS, max_epochs=2, out=tmp_path, resume=True)
    assert again.epoch == 2


def test_a_run_that_ended_while_another_was_prepared(tmp_path, monkeypatch):
    """Its folder was empty when the other one looked first."""
    from pyrovae.training import fit as module

    ended = quietly(vae(), BITS, max_epochs=1, out=tmp_path / "ended").out

    def alone(folder):
        (ended / "checkpoints").rename(folder / "checkpoints")
        return alone_in(folder)

    monkeypatch.setattr(module, "alone_in", alone)
    with pytest.raises(ValueError, match="already holds a run"):
        quietly(vae(), BITS, max_epochs=1, out=tmp_path / "late", callbacks=[Never()])


def test_a_file_in_the_place_of_checkpoints(tmp_path):
    (tmp_path / "checkpoints").write_text("notes")
    with pytest.raises(ValueError, match="has a file called checkpoints; pass another folder"):
        quietly(vae(), BITS, max_epochs=1, out=tmp_path, callbacks=[Never()])


# Optimizers and schedules ---------------------------------------------------------------------------------------------


def test_a_plateau_looks_at_the_validation_loss(tmp_path):
    seen = []

    class Plateau(ReduceLROnPlateau):
        def step(self, metrics):
            seen.append(metrics)
            super().step(metrics)

    flat = partial(Plateau, patience=0, threshold=1e6, threshold_mode="abs", factor=0.5)
    options = {"validation": BITS[:8], "schedule": flat, "lr": 1e-2, "batch_size": 10}
    whole = quietly(vae(), BITS, max_epochs=6, **options)
    assert whole.history["lr"] == pytest.approx([1e-2, 1e-2, 5e-3, 2.5e-3, 1.25e-3, 6.25e-4])
    assert seen == whole.history["validation_loss"]
    quietly(vae(), BITS, max_epochs=3, out=tmp_path, **options)
    resumed = quietly(vae(), BITS, max_epochs=6, out=tmp_path, resume=True, **options)
    assert resumed.history["validation_loss"] == whole.history["validation_loss"]
    with pytest.raises(ValueError, match="needs a validation loss, but there are no validation data; pass validation="):
        quietly(vae(), BITS, max_epochs=1, schedule=ReduceLROnPlateau, callbacks=[Never()])


def test_optimizers_that_fit_could_not_use():
    other = vae()
    refused = {
        "LBFGS, whose steps compute the loss several times": torch.optim.LBFGS,
        "is an optimizer already.*pass torch.optim.Adam, the class": torch.optim.Adam(other.parameters(), lr=0.1),
        "makes no torch optimizer;": lambda parameters, lr: None,
        r"makes no torch optimizer \(.*unexpected keyword argument 'lr'\); pass torch": pyro.optim.ClippedAdam,
    }
    for message, optimizer in refused.items():
        with pytest.raises(TypeError, match=message):
            quietly(vae(), BITS, max_epochs=1, optimizer=optimizer, callbacks=[Never()])
    fast = partial(torch.optim.SGD, lr=0.5)
    with pytest.raises(ValueError, match=r"with lr=0.5, which fit's lr=0.001 would replace; pass the rate as fit"):
        quietly(vae(), BITS, max_epochs=1, optimizer=fast, callbacks=[Never()])
    assert quietly(vae(), BITS, max_epochs=1, optimizer=fast, lr=0.5).history["lr"] == [0.5]


# Batches that come later ----------------------------------------------------------------------------------------------


def by_row(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("held_out", [0.25, torch.zeros(7)])
def test_validation_on_rows_that_the_guide_does_not_know(held_out):
    """Parameters of a row for each of 30 training rows."""
    x = torch.randn(40) if isinstance(held_out, float) else torch.randn(30)
    guide = AutoNormal(by_row)
    with pytest.raises(ValueError, match=r"validated, in batches of (10|7) rows.*it fails \(.*pass validation=False"):
        quietly((by_row, guide), x, max_epochs=1, batch_size=30, validation=held_out, callbacks=[Never()])


def test_a_last_batch_of_one_row():
    """Batches of 5 would leave one row of 31 too."""
    with_norm = partial(MLP, hidden=(8,), batch_norm=True)
    with pytest.raises(ValueError, match=r"one row, of 31 rows in batches of 6, at which it fails .* such as 4$"):
        quietly(vae(encoder=with_norm), BITS[:31], max_epochs=1, batch_size=6, callbacks=[Never()])
    assert quietly(vae(encoder=with_norm), BITS[:31], max_epochs=1, batch_size=4).step == 8


def test_a_last_batch_of_one_row_of_an_objective_with_a_critic():
    run = quietly(vae(), BITS[:33], objective=FactorVAE(DensityRatio(2)), max_epochs=1, batch_size=16)
    assert run.step == 3


class Counted(nn.Module):
    """Counts its calls in training mode, in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += self.training
        return x


def test_the_trials_leave_no_trace():
    """9 rows in batches of 4, the last of one row, make as many calls as 10; validated or not, all draws agree."""
    calls, losses = [], []
    for rows, validation in ((9, False), (10, False), (9, BITS[:3])):
        pair = vae(encoder=Counted())
        run = quietly(pair, BITS[:rows], max_epochs=2, batch_size=4, validation=validation)
        calls.append(pair.encoder.calls.item())
        losses.append(run.history["train_loss"])
    assert calls == [6, 6, 6]
    assert losses[0] == losses[2]


# Interruptions of other kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("no space for a picture"), KeyboardInterrupt()], ids=repr)
def test_what_a_callback_raises_costs_no_epoch(tmp_path, error):
    def breaks(run):
        if run.epoch == 3:
            raise error

    whole = quietly(vae(), BITS, max_epochs=5, batch_size=10)
    with pytest.raises(type(error)):
        quietly(vae(), BITS, max_epochs=5, batch_size=10, out=tmp_path, callbacks=[breaks])
    assert load(tmp_path).epoch == 3
    resumed = quietly(vae(), BITS, max_epochs=5, batch_size=10, out=tmp_path, resume=True)
    assert resumed.history["train_loss"] == whole.history["train_loss"]


class Breaks(Callback):
    """Raises after step 14 of a run, the second of epoch 4."""

    def __init__(self, error):
        self.error = error

    def on_step(self, run):
        if run.step == 14:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt(), FloatingPointError("mine")], ids=repr)
@pytest.mark.parametrize("objective", [ELBO, lambda: FactorVAE(DensityRatio(2))], ids=["ELBO", "with a critic"])
def test_what_is_raised_within_an_epoch_costs_that_epoch_only(tmp_path, error, objective):
    decay = partial(torch.optim.lr_scheduler.StepLR, step_size=2)

    def go(epochs, pair=None, **more):
        torch.manual_seed(1)
        options = {"objective": objective(), "max_epochs": epochs, "batch_size": 10, "schedule": decay}
        return quietly(pair or vae(), BITS, **options, **more)

    whole, pair = go(5), vae()
    with pytest.raises(type(error)):
        go(5, pair, out=tmp_path, callbacks=[Breaks(error)])
    kept, three = load(tmp_path), go(3)
    assert (kept.epoch, kept.step) == (3, 12)
    assert (tmp_path / "history.csv").exists()
    for name, value in three.pair.state_dict().items():
        assert torch.equal(kept.pair.state_dict()[name], value)
        went_on = not torch.equal(pair.state_dict()[name], value)
        assert went_on != isinstance(error, FloatingPointError), "Ctrl-C leaves the pair as it is"
    resumed = go(5, out=tmp_path, resume=True)
    assert resumed.history["train_loss"] == whole.history["train_loss"]
    for name, value in whole.pair.state_dict().items():
        assert torch.equal(resumed.pair.state_dict()[name], value)


def test_what_validation_raises_costs_that_epoch_only(tmp_path):
    epochs = []

    class Fails(VAE):
        def model(self, x):
            if not self.training and len(epochs) == 3:
                raise OSError("a disk")
            return super().model(x)

    torch.manual_seed(1)
    with pytest.raises(OSError, match="a disk"):
        quietly(Fails(4, 2, hidden=(5,)), BITS, max_epochs=5, out=tmp_path, validation=BITS, callbacks=[epochs.append])
    torch.manual_seed(1)
    kept = load(tmp_path, VAE(4, 2, hidden=(5,)))
    assert kept.epoch == len(kept.history["validation_loss"]) == 3


def test_what_is_raised_in_the_first_epoch_leaves_no_run(tmp_path):
    for _ in range(2):  # the second time the folder is still free
        with pytest.raises(KeyboardInterrupt):
            quietly(vae(), BITS, max_epochs=5, out=tmp_path, batch_size=2, callbacks=[Breaks(KeyboardInterrupt())])


def test_resumed_with_other_data(tmp_path):
    data = Data(Split({"x": BITS}), validation=Split({"x": BITS[:8]}))
    quietly(vae(), data, max_epochs=1, out=tmp_path)
    with pytest.raises(ValueError, match="the first rows of data are not those of the run in"):
        quietly(vae(), 1 - BITS, max_epochs=2, validation=BITS[:8], out=tmp_path, resume=True, callbacks=[Never()])
    assert quietly(vae(), BITS, max_epochs=2, validation=BITS[:8], out=tmp_path, resume=True).epoch == 2


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="accelerator is 'mps', which torch can't use here"):
        quietly(vae(), BITS, max_epochs=1, accelerator="mps", callbacks=[Never()])
