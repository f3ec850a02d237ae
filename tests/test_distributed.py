"""Several processes that train one pair: they do what one does, agree, and notice each other's end."""

import importlib.util
import io
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed
from pyro.distributions import constraints
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn
from torch.utils.data import Dataset

import pyrovae
from pyrovae.data import Split, Stream
from pyrovae.models import VAE
from pyrovae.models.base import Pair
from pyrovae.objectives import ELBO, IWAE, Beta, DensityRatio, DReG, RatioObjective
from pyrovae.training import loop as loop_module
from pyrovae.training.checkpoint import latest, read
from pyrovae.training.fit import fit
from pyrovae.training.loop import Callback

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or "fork" not in multiprocessing.get_all_start_methods(),
    reason="needs torch.distributed and fork",
)
needs_fabric = pytest.mark.skipif(
    importlib.util.find_spec("lightning_fabric") is None, reason="lightning-fabric is not installed"
)
SECONDS = 60  # what hangs fails after so long

quietly = partial(fit, progress=False, seed=0, accelerator="cpu")


def child(function, rank, size, rendezvous, pipe):
    try:
        torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
        torch.manual_seed(1000 + rank)  # what the processes share is the library's doing
        pipe.send(("value", function(rank)))
    except BaseException as error:
        pipe.send(("error", f"{type(error).__name__}: {error}"))
    pipe.close()
    os._exit(0)  # no clean-up of pytest's


def together(function, tmp_path, size=2):
    """What `function(rank)` returns in each of some forked processes, or the text of its error; None if it was killed.

    A fork costs milliseconds, where a fresh Python imports torch for seconds. Values travel as numpy arrays.
    """
    rendezvous = tmp_path / f"rendezvous-{time.monotonic_ns()}"
    context = multiprocessing.get_context("fork")
    started = []
    for rank in range(size):
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(function, rank, size, rendezvous, there))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: forking with threads around
            process.start()
        there.close()
        started.append((process, here))
    answers, end = [], time.monotonic() + SECONDS
    try:
        for _, pipe in started:
            if not pipe.poll(max(0.0, end - time.monotonic())):
                raise AssertionError(f"a process hangs after {SECONDS} s; answers so far: {answers}")
            try:
                answers.append(pipe.recv())
            except EOFError:
                answers.append(("killed", None))
    finally:
        for process, _ in started:
            process.kill()
            process.join()
    return answers


def values(answers):
    assert [kind for kind, _ in answers] == ["value"] * len(answers), answers
    return [value for _, value in answers]


def errors(answers):
    assert [kind for kind, _ in answers] == ["error"] * len(answers), answers
    return [text for _, text in answers]


def arrays(tensors):
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def exactly(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


class Recorder(Callback):
    """Gradients and losses of every step, parameters and buffers at the end."""

    def __init__(self):
        self.gradients, self.missing = [], []

    def on_step(self, run):
        given = {name: p.grad for name, p in run.known.parameters.items() if p.grad is not None}
        self.gradients.append(arrays(given))
        self.missing.append(sorted(run.known.parameters.keys() - given.keys()))


def trained(pair, data, **options):
    """All that one process sees of a run."""
    recorder = Recorder()
    run = quietly(pair, data, **{"callbacks": [recorder], "max_epochs": 2, "batch_size": 4, **options})
    return {
        "gradients": recorder.gradients,
        "missing": recorder.missing,
        "parameters": arrays(run.known.parameters),
        "buffers": arrays(run.known.buffers),
        "history": [{k: v for k, v in row.items() if k != "seconds"} for row in run.history.rows],
        "steps": (run.step, run.epoch, run.best_epoch, run.interrupted),
        "rank": run.rank,
    }


def check_equal(one, other, tolerance):
    """Gradients of every step within a tolerance of the largest."""
    assert one["steps"] == other["steps"]
    assert one["missing"] == other["missing"]
    worst = 0.0
    for a, b in zip(one["gradients"], other["gradients"], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            worst = max(worst, float(np.abs(a[name] - b[name]).max() / max(1.0, np.abs(a[name]).max())))
    losses = [abs(a["train_loss"] - b["train_loss"]) for a, b in zip(one["history"], other["history"], strict=True)]
    print(f"gradients differ by {worst:.1e}, losses by {max(losses):.1e}")
    assert worst < tolerance
    assert max(losses) < 10 * tolerance


# Pairs ------------------------------------------------------------------------------------------------------------


class Given(dist.Normal):
    """A normal distribution whose noise is data, (B, K): a draw for each particle."""

    def __init__(self, loc, scale, noise):
        self.noise = noise
        super().__init__(loc, scale)

    def expand(self, batch_shape, _instance=None):
        return Given(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.noise)

    def rsample(self, sample_shape=()):
        noise = self.noise[:, 0] if self.loc.dim() == 1 else self.noise.T[: len(self.loc)]
        return self.loc + self.scale * noise


class NoiseIsData(Pair):
    """z ~ N(0, 1), x | z normal with mean and scale from a small network; q(z | x) from another."""

    def __init__(self):
        super().__init__()
        self.decode, self.encode = nn.Linear(1, 6), nn.Linear(3, 2)

    def model(self, x, noise):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x[:, 0]), 1.0))
            loc, log_scale = self.decode(z[..., None]).tanh().chunk(2, -1)
            pyro.sample("x", dist.Normal(loc, log_scale.exp()).to_event(1), obs=x)

    def guide(self, x, noise):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encode(x).unbind(-1)
            pyro.sample("z", Given(loc, log_scale.exp(), noise))


def pair_and_data(rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(rows, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.manual_seed(0)
    return NoiseIsData().to(dtype), {"x": x.to(dtype), "noise": noise.to(dtype)}


class Sometimes(Pair):
    """`rare` is needed only for rows with y = 1, `never` for none."""

    def __init__(self):
        super().__init__()
        self.loc, self.rare, self.never = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.1, 0.2, 0.3))

    def model(self, x, y):
        loc = self.loc + self.rare * y if y.any() else self.loc
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(self, x, y):
        pass


class RunningMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * x.mean())
                self.calls.add_(1)
        return x


class Normed(Pair):
    """A pair with some module before its encoder."""

    def __init__(self, norm):
        super().__init__()
        self.norm, self.loc = norm, nn.Parameter(torch.tensor(0.5).double())

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(self.loc, 1.0).expand([3]).to_event(1), obs=x)
            self.norm(x)

    def guide(self, x):
        pass


def lazy_pair(start):
    """Two plain functions, whose parameters Pyro makes when they first run."""

    def model(x):
        scale = pyro.param("scale", torch.tensor(1.3 + start).double(), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(start).double()), scale), obs=x)

    def guide(x):
        pass

    return model, guide


class Compared(RatioObjective):
    """A critic that tells the guide's z, whose noise is data, from the noise: two updates before each of the pair."""

    def __init__(self):
        super().__init__(DensityRatio(1, hidden=(4,)), 2, critic_steps=2)

    def samples(self, pair, *batch, known):
        z = pyro.poutine.trace(pair.guide).get_trace(*batch).nodes["z"]["value"]
        return (z[:, None],), (batch[1][:, :1],)

    def per_datum(self, drawn):
        return (drawn.elbo() - self.logit(drawn.values["z"][..., None])).mean(0)


REALS = torch.randn(11, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
BITS = torch.rand(24, 4, generator=torch.Generator().manual_seed(0)).round()


def vae():
    return VAE(4, 2, hidden=(8,))


# The same as one process ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("objective", [ELBO(2), IWAE(3), DReG(3), Beta(0.3, rate=0.1), Compared(), Trace_ELBO()])
def test_gradients_are_those_of_the_whole_batch(objective, dtype, tolerance, tmp_path):
    """Batches of 4, 4 and 3 rows of 11: the last one splits unevenly, and its mean is not the mean of two means."""
    pair, data = pair_and_data(11, dtype)
    each = values(together(lambda _: trained(pair, data, objective=objective), tmp_path))
    alone = trained(pair, data, objective=objective)
    assert len(alone["gradients"]) == 6
    for name, value in alone["buffers"].items():  # a learned beta, a critic
        np.testing.assert_allclose(each[0]["buffers"][name], value, atol=tolerance)
    for rank, process in enumerate(each):
        check_equal(alone, process, tolerance)
        assert process["rank"] == rank
    assert exactly(each[0]["parameters"], each[1]["parameters"])
    assert each[0]["history"] == each[1]["history"]


@pytest.mark.parametrize(("rows", "size"), [(9, 2), (5, 3)])
def test_a_process_without_rows_takes_part(rows, size, tmp_path):
    pair, data = pair_and_data(rows, torch.float64)
    each = values(together(lambda _: trained(pair, data, clip_norm=0.5), tmp_path, size))
    alone = trained(pair, data, clip_norm=0.5)
    for process in each:
        check_equal(alone, process, 1e-12)
        assert exactly(process["parameters"], each[0]["parameters"])


def test_parameters_that_are_not_used(tmp_path):
    """Weight decay would move a parameter whose gradient is zero and not missing."""
    data = {"x": REALS, "y": (torch.arange(11) == 4).long()}
    options = {"optimizer": partial(torch.optim.AdamW, weight_decay=0.5), "lr": 0.1}
    each = values(together(lambda _: trained(Sometimes(), data, **options), tmp_path))
    alone = trained(Sometimes(), data, **options)
    assert {len(missing) for missing in alone["missing"]} == {1, 2}
    for process in each:
        check_equal(alone, process, 1e-12)
        for name, value in alone["parameters"].items():
            np.testing.assert_allclose(process["parameters"][name], value, atol=1e-12)
        assert process["parameters"]["never"] == 0.3


def test_functions_whose_parameters_are_made_by_the_first_run(tmp_path):
    """The processes start from different values, as from different seeds: those of process 0 count."""
    each = values(together(lambda rank: trained(lazy_pair(0.5 + rank), REALS, lr=0.1), tmp_path))
    alone = trained(lazy_pair(0.5), REALS, lr=0.1)
    for process in each:
        check_equal(alone, process, 1e-12)
    assert exactly(each[0]["parameters"], each[1]["parameters"])


def test_running_means_are_of_the_whole_batch(tmp_path):
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    each = values(together(lambda _: trained(Normed(RunningMean()), x), tmp_path))
    alone = trained(Normed(RunningMean()), x)
    assert alone["buffers"]["norm.calls"] == 6
    for process in each:
        np.testing.assert_allclose(process["buffers"]["norm.mean"], alone["buffers"]["norm.mean"], atol=1e-12)
        assert process["buffers"]["norm.calls"] == 6


def test_validation_is_the_mean_over_all_rows(tmp_path):
    """In closed form but for x, whose noise is data: the validation loss has no noise of its own."""
    pair, data = pair_and_data(11, torch.float64)
    _, held_out = pair_and_data(7, torch.float64)
    options = {"validation": held_out, "max_epochs": 3, "objective": ELBO(2)}
    each = values(together(lambda _: trained(pair, data, **options), tmp_path))
    alone = trained(pair, data, **options)
    for process in each:
        for a, b in zip(process["history"], alone["history"], strict=True):
            assert a["validation_loss"] == pytest.approx(b["validation_loss"], abs=1e-11)
    assert each[0]["history"] == each[1]["history"]


@pytest.mark.parametrize(("rows", "batch_size", "count"), [(10, 4, 2), (9, 4, 2), (11, 5, 3), (3, 3, 4)])
def test_every_row_is_drawn_once(rows, batch_size, count):
    numbers = torch.arange(rows)

    class Items(Dataset):
        def __len__(self):
            return rows

        def __getitem__(self, index):
            return {"x": numbers[index].float()}

    for data in (Split({"x": numbers.float()}), Stream(Items())):
        whole = [batch[0] for batch in data.batches(batch_size, seed=1, epoch=2)]
        parts = [list(data.batches(batch_size, seed=1, epoch=2, part=(k, count))) for k in range(count)]
        for batch, split in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat([part[0] for part in split if part]), batch)
            sizes = [len(part[0]) if part else 0 for part in split]
            assert max(sizes) - min(sizes) <= 1
        in_order = [part[0] for k in range(count) for part in data.sequential(batch_size, part=(k, count)) if part]
        assert sorted(torch.cat(in_order).tolist()) == numbers.tolist()


def test_each_process_draws_its_own_numbers(tmp_path):
    def first_draw(_):
        drawn = []
        quietly(vae(), BITS, max_epochs=1, batch_size=24, callbacks=[lambda run: drawn.append(torch.rand(3).tolist())])
        return drawn[0]

    def alone():
        torch.manual_seed(0)
        return first_draw(0)

    drawn = values(together(first_draw, tmp_path))
    assert drawn[0] != drawn[1]
    seeds = values(together(lambda rank: quietly(vae(), BITS, max_epochs=1, seed=None).seed, tmp_path))
    assert seeds[0] == seeds[1]
    streams = values(together(lambda rank: [torch.distributed.get_rank(), own_stream()], tmp_path))
    assert streams[0][1] == own_stream() != streams[1][1]


def own_stream():
    """The numbers that follow the preparation of a run, before any particle."""
    seen = []

    class Peek(Pair):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.loc, 1.0).expand([4]).to_event(1), obs=x)
            seen.append(torch.rand(()).item())

        def guide(self, x):
            pass

    quietly(Peek(), BITS, max_epochs=1, batch_size=24)
    return seen[-1]


def test_devices_1_is_one_process_under_a_launcher_too(tmp_path):
    pair, data = pair_and_data(11, torch.float64)
    alone = trained(pair, data)
    pair, data = pair_and_data(11, torch.float64)
    for process in values(together(lambda _: trained(pair, data, devices=1), tmp_path)):
        assert exactly(process["parameters"], alone["parameters"])
        assert process["rank"] == 0


# Agreement --------------------------------------------------------------------------------------------------------


def test_early_stopping_agrees(tmp_path):
    """With a learning rate at which the noisy validation loss soon rises."""
    options = {"validation": 0.3, "patience": 2, "max_epochs": 40, "lr": 0.3, "batch_size": 8}
    first, second = values(together(lambda _: trained(vae(), BITS, **options), tmp_path))
    assert first["steps"] == second["steps"]
    assert first["steps"][1] < 40
    assert first["history"] == second["history"]
    assert exactly(first["parameters"], second["parameters"])


def at_step(step, what):
    class At(Callback):
        def on_step(self, run):
            if run.step == step:
                what(run)

    return At()


def test_one_process_stops_all(tmp_path):
    def stop(run):
        run.stopping = True

    def one_says(rank):
        return trained(vae(), BITS, max_epochs=9, callbacks=[at_step(7, stop)] if rank == 1 else [])["steps"]

    assert values(together(one_says, tmp_path)) == [(12, 2, None, False)] * 2

    def one_is_interrupted(rank):
        press = at_step(8, lambda run: signal.raise_signal(signal.SIGINT))
        return trained(vae(), BITS, max_epochs=9, callbacks=[press] if rank == 1 else [])["steps"]

    assert values(together(one_is_interrupted, tmp_path)) == [(8, 1, None, True)] * 2


def test_a_loss_that_is_not_finite_stops_all_and_names_the_process(tmp_path):
    x = REALS.float().clone()
    x[2] = 1e30

    def run(rank):
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

        pyro.clear_param_store()
        quietly((model, lambda x: None), x, batch_size=11, max_epochs=2)

    first, second = errors(together(run, tmp_path))
    assert first == second
    assert re.match(r"FloatingPointError: the loss is (inf|nan) at step 1, .* of process [01]\. The pair has", first)


def test_parameters_that_drift_apart_are_noticed(tmp_path):
    def meddle(run):
        with torch.no_grad():
            next(iter(run.known.parameters.values())).add_(torch.rand(()))

    def run(rank):
        trained(vae(), BITS, max_epochs=2, callbacks=[at_step(2, meddle)])

    for text in errors(together(run, tmp_path)):
        assert text.startswith("RuntimeError: the parameters and buffers of the 2 processes are no longer the same")


class Coupled(ELBO):
    couples_rows = True


def subsampling_model(x):
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0).double()), 1.0), obs=x[rows])


def global_model(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def global_guide(x):
    pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))


def nothing(x):
    pass


ROWS = torch.randn(24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
REFUSED = {
    "BatchNorm": (lambda: (Normed(nn.BatchNorm1d(3).double()), ROWS), {}, r"norm is a BatchNorm1d, .*; use nn.LayerN"),
    "uneven SyncBatchNorm": (
        lambda: (Normed(nn.SyncBatchNorm(3).double()), ROWS),
        {"batch_size": 7},
        "norm is a SyncBatchNorm, which needs parts of equal size",
    ),
    "couples_rows": (lambda: (vae(), BITS), {"objective": Coupled()}, r"Coupled couples the rows .* devices=1"),
    "RenyiELBO": (
        lambda: (vae(), BITS),
        {"objective": RenyiELBO(alpha=0.5, num_particles=2)},
        r"RenyiELBO couples the rows",
    ),
    "subsamples": (
        lambda: ((subsampling_model, nothing), REALS),
        {},
        r"'data' draws 4 rows by itself, .*; write pyro.plate\('data', 11, subsample=",
    ),
    "global latents in a plate of the part": (
        lambda: ((global_model, global_guide), REALS.float()),
        {"batch_size": 11},
        r"lie outside the plate 'data', which has size 6 for 11 data; write pyro.plate",
    ),
    "batch_size": (lambda: (vae(), BITS), {"batch_size": 1}, r"batch_size is 1 for 2 processes; pass batch_size=2"),
    "devices": (lambda: (vae(), BITS), {"devices": 3}, r"devices is 3, but 2 processes were started here"),
    "devices=0": (lambda: (vae(), BITS), {"devices": 0}, r"devices is 0, it must be at least 1"),
    "devices='all'": (lambda: (vae(), BITS), {"devices": "all"}, r"devices is 'all', a whole number"),
    "fsdp": (lambda: (vae(), BITS), {"strategy": "fsdp"}, r"strategy is 'fsdp', .*; pass strategy='ddp'"),
    "deepspeed": (lambda: (vae(), BITS), {"strategy": "deepspeed_stage_2"}, r"strategy is 'deepspeed_stage_2'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    make, options, message = REFUSED[name]

    def run(_):
        pair, data = make()
        quietly(pair, data, **{"max_epochs": 1, "batch_size": 6, **options})

    for text in errors(together(run, tmp_path)):
        assert re.search(f"^(Value|Type)Error: .*{message}", text), text


def test_a_frozen_batchnorm_is_no_statistic_of_the_batch(tmp_path):
    pair = Normed(nn.BatchNorm1d(3).double().eval())
    assert values(together(lambda _: trained(pair, ROWS)["steps"], tmp_path)) == [(12, 2, None, False)] * 2


@pytest.mark.parametrize("what", ["data", "pair", "lr"])
def test_processes_that_were_called_with_different_things(what, tmp_path):
    def run(rank):
        data = BITS.flip(0) if what == "data" and rank else BITS
        pair = VAE(4, 2 + rank * (what == "pair"), hidden=(8,))
        quietly(pair, data, lr=0.1 + rank * (what == "lr"))

    first, second = errors(together(run, tmp_path))
    assert first == second
    named = {"data": "the hash of the first rows of data", "pair": "pair", "lr": "lr"}[what]
    assert re.match(f"ValueError: {named} is .* on process 0 and .* on process 1; give all the same data", first)


def test_process_0_alone_writes(tmp_path):
    def run(rank):
        def refuse(*_, **__):
            raise AssertionError("process 1 writes")

        if rank == 1:
            loop_module.checkpoint.save = refuse
        sys.stderr = io.StringIO()  # whatever this process prints, in a fork that ends after it
        fit(vae(), BITS, max_epochs=2, batch_size=4, out=tmp_path / "run", seed=0, accelerator="cpu")
        return sys.stderr.getvalue(), (tmp_path / "run" / "history.csv").read_text().count("\n")

    first, second = values(together(run, tmp_path))
    assert "epoch 2/2" in first[0]
    assert second == ("", 3)


# Checkpoints ------------------------------------------------------------------------------------------------------


def test_resume_is_exact(tmp_path):
    """Broken off within the second epoch by Ctrl-C on one process; the particles are noise."""
    options = {"objective": IWAE(3), "validation": 0.25, "patience": 9, "lr": 0.1}

    def whole(_):
        return trained(vae(), BITS, max_epochs=3, out=tmp_path / "whole", **options)

    def broken_off(rank):
        press = at_step(8, lambda run: signal.raise_signal(signal.SIGINT))
        callbacks = [press] if rank == 1 else []
        run = trained(vae(), BITS, max_epochs=3, out=tmp_path / "broken", callbacks=callbacks, **options)
        return run["steps"][0]

    def resumed(rank):
        torch.manual_seed(99 + rank)
        return trained(vae(), BITS, max_epochs=3, out=tmp_path / "broken", resume=True, **options)

    straight = values(together(whole, tmp_path))
    assert values(together(broken_off, tmp_path)) == [8, 8]
    kept = read(latest(tmp_path / "broken" / "checkpoints"))
    assert {"cpu", "numpy", "python", "1/cpu", "1/numpy", "1/python"} == set(kept.random)
    assert not torch.equal(kept.random["cpu"], kept.random["1/cpu"])
    for process in values(together(resumed, tmp_path)):
        assert exactly(process["parameters"], straight[0]["parameters"])
        assert process["history"] == straight[0]["history"]
    ends = [read(latest(tmp_path / name / "checkpoints")) for name in ("whole", "broken")]
    assert all(torch.equal(ends[0].random[name], ends[1].random[name]) for name in kept.random)


def test_another_number_of_processes_is_refused(tmp_path):
    def run(_, out="two", **options):
        return trained(vae(), BITS, out=tmp_path / out, **options)["steps"]

    assert values(together(run, tmp_path)) == [(12, 2, None, False)] * 2
    with pytest.raises(ValueError, match=r"was trained by 2 processes, here are 1; pass devices=2 or start it with to"):
        run(0, resume=True)
    run(0, "one")
    for text in errors(together(partial(run, out="one", resume=True), tmp_path)):
        assert re.search(r"was trained by 1 process, here are 2; pass devices=1", text)


# The end of a process ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(victim, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "SAVE_EVERY", 0.0)
    began = time.monotonic()

    def run(rank):
        die = at_step(9, lambda run: os.kill(os.getpid(), signal.SIGKILL))
        callbacks = [die] if rank == victim else []
        quietly(vae(), BITS, batch_size=4, max_epochs=500, out=tmp_path / "run", callbacks=callbacks)

    answers = together(run, tmp_path)
    (killed, _), (kind, text) = answers[victim], answers[1 - victim]
    assert (kind, killed) == ("error", "killed")
    assert text.startswith("ConnectionError: another of the 2 processes has died or failed")
    assert f"pass resume=True to go on from {tmp_path / 'run' / 'checkpoints' / 'step-000000006'}" in text
    print(f"after {time.monotonic() - began:.1f} s: {text}")
    assert time.monotonic() - began < 30


def test_a_process_that_fails_but_lives_on_ends_the_others(tmp_path):
    """As in a notebook, or where a script catches the error: its connections end with `fit`."""

    def fail(run):
        raise KeyError("mine")

    def run(rank):
        try:
            quietly(vae(), BITS, batch_size=4, max_epochs=500, callbacks=[at_step(5, fail)] if rank else [])
        except KeyError:
            end = time.monotonic() + 30
            while time.monotonic() < end and not (tmp_path / "noticed").exists():
                time.sleep(0.05)
            raise
        except ConnectionError:
            (tmp_path / "noticed").touch()
            raise

    began = time.monotonic()
    first, second = errors(together(run, tmp_path))
    assert first.startswith("ConnectionError: another of the 2 processes has died or failed")
    assert "pass out= to keep checkpoints" in first
    assert second == "KeyError: 'mine'"
    assert (tmp_path / "noticed").exists()
    assert time.monotonic() - began < 30


def test_a_second_fit_works(tmp_path):
    def twice(_):
        return [trained(vae(), BITS, max_epochs=1)["steps"] for _ in range(3)]

    assert values(together(twice, tmp_path)) == [[(6, 1, None, False)] * 3] * 2


# Launchers --------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, torch, pyrovae, os
from pyrovae.models import VAE
if __name__ == "__main__":
    torch.set_num_threads(1)
    x = torch.rand(24, 4, generator=torch.Generator().manual_seed(0)).round()
    run = pyrovae.fit(VAE(4, 2, hidden=(8,)), x, max_epochs=2, batch_size=4, progress=False, out=sys.argv[1],
                      accelerator="cpu", seed=0 {options})
    total = sum(p.double().sum().item() for p in run.pair.parameters())
    open(f"{{sys.argv[1]}}/{{run.rank}}.txt", "w").write(f"{{run.step}} {{total!r}} {{run.config['processes']}}")
"""


def environment():
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    path = os.pathsep.join([str(Path(pyrovae.__file__).parents[1]), kept.get("PYTHONPATH", "")])
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def started(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done


def check_two(out):
    first, second = ((out / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    assert first.startswith("12 ")
    assert first.endswith(" 2")
    assert latest(out / "checkpoints").name == "step-000000012"


def test_torchrun(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(options=""))
    started(
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py", tmp_path / "run"], tmp_path
    )
    check_two(tmp_path / "run")


@needs_fabric
def test_fabric_starts_the_script_again(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT.format(options=", devices=2"))
    started(["script.py", tmp_path / "run"], tmp_path)
    check_two(tmp_path / "run")


@needs_fabric
def test_fabric_forks(tmp_path, monkeypatch):
    """The pair of this process comes back trained, as by processes that a launcher started."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # Fabric leaves them behind; taken away again afterwards
        monkeypatch.delenv(name)
    expected = values(together(lambda _: trained(lazy_pair(0.5), REALS), tmp_path))[0]
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        run = quietly(
            lazy_pair(0.5), REALS, max_epochs=2, batch_size=4, devices=2, strategy="ddp_fork", callbacks=[seen.append]
        )
    assert exactly(arrays(run.known.parameters), expected["parameters"])
    assert exactly(arrays({"loc": pyro.param("loc")}), {"loc": expected["parameters"]["loc"]})
    assert (run.step, run.epoch, run.out, run.rank, run.config["processes"]) == (6, 2, None, 0, 2)
    assert seen == []


@needs_fabric
def test_the_command_line(tmp_path):
    np.savez(tmp_path / "bits.npz", x=BITS.numpy())
    flags = "--max_epochs 2 --batch_size 4 --latent_dim 2 --hidden [8] --num_samples 2 --accelerator cpu --devices 2"
    done = started(["-m", "pyrovae", "fit", "vae", "--data", "bits.npz", "--out", "run", *flags.split()], tmp_path)
    assert done.stdout.count("fitted in") == 1
    assert read(latest(tmp_path / "run" / "checkpoints")).config["processes"] == 2


def test_fabric_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(
        ImportError, match=r"pip install 'pyrovae\[distributed\]', or start .* torchrun --nproc_per_node=2"
    ):
        quietly(vae(), BITS, devices=2)
