"""The command line, as a user runs it."""

import inspect
import json
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.sparse
import torch
import yaml

import pyrovae as pv
from pyrovae import plots, reports
from pyrovae.cli import main
from pyrovae.evaluation import ais, gaps
from pyrovae.flags import (
    Parser,
    add_objective_arguments,
    add_pair_arguments,
    objective,
    objective_names,
    slot,
    written_out,
)
from pyrovae.models import VaDE
from pyrovae.models.rebuild import build, describe, parts
from pyrovae.training import checkpoint, pretraining
from pyrovae.training.runs import load

QUICK = ["--max_epochs", "2", "--num_samples", "20", "--seed", "1", "--progress", "false", "--hidden", "[8]"]
OWN_QUICK = QUICK[:-2]  # of a pair of one's own, which has no flag for networks


@pytest.fixture
def run_folder(tmp_path):
    out = tmp_path / "vae"
    main(["fit", "vae", "--data", "digits", "--out", str(out), "--latent_dim", "2", *QUICK])
    return out


def test_fit_leaves_everything_that_later_commands_need(run_folder, capsys):
    assert {path.name for path in run_folder.iterdir()} == {
        "checkpoints",
        "config.yaml",
        "history.csv",
        "metrics.json",
        "pictures",
    }
    pictures = {path.stem for path in (run_folder / "pictures").iterdir()}
    assert {"training_curves", "reconstructions", "samples", "interpolation", "latents", "manifold"} <= pictures
    assert {"manifold_step_0001", "latents_step_0001", "predictive_checks", "traversals", "latent_kl"} <= pictures
    figures = json.loads((run_folder / "metrics.json").read_text())
    parts = sum(figures["reconstruction"].values()) - sum(figures["kl"].values())
    assert figures["elbo"] == pytest.approx(parts, abs=1e-4)
    assert figures["elbo"] <= figures["log_likelihood"] + 4 * figures["standard_error"]
    assert (figures["seed"], figures["epochs"], figures["split"], figures["rows"]) == (1, 2, "test", 180)
    main(["evaluate", str(run_folder), "--num_samples", "20", "--num_replicates", "20"])
    again = json.loads((run_folder / "metrics.json").read_text())
    assert again["log_likelihood"] == figures["log_likelihood"]  # the same pair, data and seed
    table = capsys.readouterr().out
    assert "log-likelihood" in table
    assert "active units" in table


def test_a_run_in_double_precision_is_evaluated_and_drawn_in_it(tmp_path):
    out = tmp_path / "run"
    flags = ["--precision", "float64", "--compile", "false", "--latent_dim", "2"]
    main(["fit", "vae", "--data", "digits", "--out", str(out), *flags, *QUICK])
    figures = json.loads((out / "metrics.json").read_text())
    assert next(load(out).pair.parameters()).dtype == torch.float64
    main(["evaluate", str(out), "--num_samples", "20", "--num_replicates", "5"])
    assert json.loads((out / "metrics.json").read_text())["log_likelihood"] == figures["log_likelihood"]
    (out / "pictures" / "reconstructions.png").unlink()
    main(["plot", str(out)])
    main(["check", str(out), "--num_replicates", "5"])
    main(["sample", str(out), "--num_samples", "3"])
    assert np.load(out / "samples.npy").dtype == np.float64
    pictures = {path.stem for path in (out / "pictures").iterdir()}
    assert {"reconstructions", "manifold", "latents", "traversals", "manifold_step_0001"} <= pictures


def test_a_run_that_does_not_say_its_data_asks_for_them(run_folder, capsys):
    (run_folder / "config.yaml").unlink()
    (run_folder / "metrics.json").unlink()
    for command in ("evaluate", "check", "sample", "plot"):
        with pytest.raises(SystemExit):
            main([command, str(run_folder)])
        error = capsys.readouterr().err
        assert "does not say which data its run is of, its config.yaml is missing; pass --data with the data" in error
    assert not (run_folder / "metrics.json").exists()
    main(["evaluate", str(run_folder), "--data", "digits", "--num_samples", "20", "--num_replicates", "5"])
    assert (run_folder / "metrics.json").exists()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("data: [unclosed\n  : {", "config.yaml is not YAML (while parsing a flow"),
        ("data: 5", "config.yaml has data: 5, a text is wanted; restore it, or delete it and pass --data"),
        ("data: digits\nmask: 5", "config.yaml has mask: 5, a text is wanted"),
        ("just words", "config.yaml is not a run's configuration; restore it"),
        ("seed: 1", "does not say which data its run is of, its config.yaml is without data; pass --data"),
    ],
)
def test_a_broken_configuration_is_named(run_folder, written, message, capsys):
    (run_folder / "config.yaml").write_text(written)
    with pytest.raises(SystemExit):
        main(["evaluate", str(run_folder)])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("data: [unclosed\n  : {", "in {path}: Problems parsing config: while parsing a flow"),
        ("lr: fast", "in {path}: Parser key \"lr\": Expected a <class 'float'>. Got value: fast"),
        ("latent_dims: 3", "there is no option latent_dims; did you mean latent_dim? see --help"),
    ],
)
def test_a_broken_file_of_flags_is_named(tmp_path, written, message, capsys):
    path = tmp_path / "flags.yaml"
    path.write_text(written)
    with pytest.raises(SystemExit):
        main(["fit", "vae", "--config", str(path)])
    error = capsys.readouterr().err
    assert error.startswith(f"pyrovae: error: {message.format(path=path)}")
    assert error.count("\n") == 1


def test_a_run_that_is_killed_knows_its_data(tmp_path, monkeypatch):
    """As a kill does, an exception that nothing handles leaves the folder as it is then."""

    def killed(self, run):
        raise KeyError(run.step)

    monkeypatch.setattr(reports.LatentSpace, "on_step", killed)
    flags = ["--data", "digits", "--latent_dim", "2", "--compile", "false", *QUICK]
    with pytest.raises(KeyError):
        main(["fit", "vae", "--out", str(tmp_path / "cut"), *flags])
    monkeypatch.undo()
    main(["fit", "vae", "--out", str(tmp_path / "whole"), *flags])
    cut, whole = (yaml.safe_load((tmp_path / run / "config.yaml").read_text()) for run in ("cut", "whole"))
    assert cut == whole | {"out": str(tmp_path / "cut")}
    assert cut["data"] == "digits"


def test_evaluate_says_more_when_asked(run_folder, capsys, monkeypatch):
    short = partial(ais, num_temperatures=5, num_leapfrog=2)
    monkeypatch.setattr(reports, "ais", short)
    monkeypatch.setattr(reports, "gaps", partial(gaps, steps=20, num_samples=50))
    main(["evaluate", str(run_folder), "--bound", "iwae:30", "--num_replicates", "5", "--ais", "--surgery", "--gaps"])
    table = capsys.readouterr().out
    figures = json.loads((run_folder / "metrics.json").read_text())
    assert figures["num_samples"] == 30
    assert figures["ais"]["standard_error"] > 0
    parts, gap = figures["surgery"], figures["gaps"]
    assert parts["kl"] == pytest.approx(parts["information"] + parts["marginal_kl"], abs=1e-6)
    assert parts["marginal_kl"] == pytest.approx(parts["total_correlation"] + sum(parts["dimension_kl"]), abs=1e-6)
    assert gap["log_likelihood"] - gap["amortised_elbo"] == pytest.approx(gap["approximation"] + gap["amortisation"])
    for label in ("by AIS", "index-code information", "total correlation", "approximation gap", "amortisation gap"):
        assert label in table
    with pytest.raises(SystemExit):
        main(["evaluate", str(run_folder), "--bound", "elbo:5"])
    assert "--bound is 'elbo:5'; pass iwae:5000" in capsys.readouterr().err


def test_check_sample_and_plot(run_folder, capsys):
    main(["check", str(run_folder), "--num_replicates", "20", "--statistics", "[mean]"])
    assert "mean" in capsys.readouterr().out
    main(["sample", str(run_folder), "--num_samples", "5"])
    assert np.load(run_folder / "samples.npy").shape == (5, 1, 8, 8)
    (run_folder / "pictures" / "reconstructions.png").unlink()
    main(["plot", str(run_folder)])
    assert (run_folder / "pictures" / "reconstructions.png").exists()


def test_a_pair_that_takes_a_mask_is_given_one(tmp_path, capsys):
    out = tmp_path / "partial"
    main(["fit", "partialvae", "--data", "digits", "--mask", "half", "--out", str(out), "--latent_dim", "2", *QUICK])
    figures = json.loads((out / "metrics.json").read_text())
    assert (out / "pictures" / "completions.png").exists()
    main(["evaluate", str(out), "--num_samples", "20", "--num_replicates", "20"])  # the same masks again
    assert json.loads((out / "metrics.json").read_text())["log_likelihood"] == figures["log_likelihood"]
    assert figures["log_likelihood"] > -30  # of half of the 64 pixels: 64 log 2 is 44


def test_a_corpus_has_its_words_on_the_command_line(tmp_path):
    counts = np.random.default_rng(0).poisson(1.0, (60, 12)) + 1
    folder = tmp_path / "corpus"
    folder.mkdir()
    scipy.sparse.save_npz(folder / "train.npz", scipy.sparse.csr_matrix(counts))
    (folder / "vocab.txt").write_text("\n".join(f"word{k}" for k in range(12)) + "\n")
    out = tmp_path / "run"
    main(["fit", "nvdm", "--data", str(folder), "--out", str(out), "--latent_dim", "2", *QUICK])
    assert (out / "pictures" / "topics.png").exists()
    assert 8 < json.loads((out / "metrics.json").read_text())["topics"]["perplexity"] < 16
    main(["plot", str(out)])


def test_resume_and_config_give_the_same_run(run_folder, tmp_path):
    other = tmp_path / "again"
    main(["fit", "vae", "--config", str(run_folder / "config.yaml"), "--out", str(other), "--max_epochs", "1"])
    main(["fit", "vae", "--config", str(run_folder / "config.yaml"), "--out", str(other), "--resume", "true"])
    straight, resumed = load(run_folder), load(other)
    assert resumed.epoch == 2
    for name, value in straight.pair.state_dict().items():
        assert torch.equal(value, resumed.pair.state_dict()[name]), name


@pytest.mark.parametrize("turned", [False, True])
def test_options_of_a_part_of_a_part_reach_it(tmp_path, turned):
    flags = [["--prior.covariance", "fullcovariance"], ["--prior.covariance.min_scale", "0.05"]]
    given = [word for flag in (flags[::-1] if turned else flags) for word in flag]
    out = tmp_path / "run"
    main(["fit", "vae", "--out", str(out), "--prior", "GaussianMixture", "--prior.num_components=2", *given, *QUICK])
    covariance = load(out).pair.prior.covariance
    assert type(covariance).__name__ == "FullCovariance"
    assert covariance.min_scale == 0.05


def test_options_of_a_part_of_a_part_without_its_name_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "vae", "--prior", "GaussianMixture", "--prior.covariance.min_scale", "0.05", *QUICK])
    assert "--covariance has options and no name" in capsys.readouterr().err


CLUSTERS = ["--num_components", "3", "--latent_dim", "2", "--pretraining", "3"]


def test_a_pair_that_has_a_start_gets_it(tmp_path, monkeypatch):
    """After it, before any step: prior and posterior are where `pretrain_clusters` left them."""
    found = []

    def watched(pair, data, **options):
        run = pretrain_clusters(pair, data, **options)
        found.append((options, pair.prior.loc.detach().clone(), run))
        return run

    pretrain_clusters = pretraining.pretrain_clusters
    monkeypatch.setattr(pretraining, "pretrain_clusters", watched)
    out = tmp_path / "run"
    main(["fit", "vade", "--out", str(out), *CLUSTERS, *QUICK, "--batch_size", "500", "--lr", "1e-6"])
    ((options, loc, start),) = found
    assert (options["max_epochs"], options["batch_size"], options["seed"], options["lr"]) == (3, 500, 1, 1e-6)
    assert (type(start.pair).__name__, start.epoch, start.out) == ("VAE", 3, out / "pretraining")
    run = load(out)
    torch.testing.assert_close(run.pair.prior.loc, loc, rtol=0, atol=1e-4)
    assert not torch.allclose(loc, VaDE((1, 8, 8), 2, 3, hidden=(8,)).prior.loc, atol=0.1)


def test_a_start_that_was_cut_off_goes_on(tmp_path, monkeypatch, capsys):
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    main(["fit", "vade", "--out", str(straight), *CLUSTERS, *QUICK])
    plain = pretraining.pretrain_clusters

    def stopped(*arguments, **options):
        stop = [*options.pop("callbacks"), lambda run: setattr(run, "interrupted", True)]
        return plain(*arguments, **options, callbacks=stop)

    monkeypatch.setattr(pretraining, "pretrain_clusters", stopped)
    main(["fit", "vade", "--out", str(cut), *CLUSTERS, *QUICK])
    assert "interrupted after step" in capsys.readouterr().out
    assert not (cut / "checkpoints").exists()
    monkeypatch.undo()
    main(["fit", "vade", "--config", str(cut / "config.yaml"), "--resume", "true"])
    one, other = (load(folder).pair.state_dict() for folder in (straight, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)
    main(["fit", "vade", "--config", str(cut / "config.yaml"), "--resume", "true", "--max_epochs", "3"])
    assert load(cut).epoch == 3


def test_a_pair_without_a_start_has_no_flag_for_one(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "vae", "--pretraining", "3", *QUICK])
    assert "there is no flag --pretraining" in capsys.readouterr().err


def test_options_reach_the_pair(tmp_path):
    out = tmp_path / "run"
    main(
        [
            "fit", "vae", "--out", str(out), "--binarize", "null",
            "--encoder", "ConvEncoder", "--decoder", "ConvDecoder",
            "--likelihood", "{name: FixedNormal, scale: 0.5}", "--objective", "iwae", "--objective.num_particles", "3",
            *QUICK,
        ]
    )  # fmt: skip
    run = load(out)
    assert type(run.pair.encoder).__name__ == "ConvEncoder"
    assert run.pair.likelihood.scale == 0.5
    assert run.config["objective"].startswith("IWAE(num_particles=3")
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["likelihood"] == {"name": "FixedNormal", "scale": 0.5}


def objective_of(tmp_path, *flags):
    out = tmp_path / "run"
    main(["fit", "vae", "--out", str(out), "--latent_dim", "2", *flags, *QUICK])
    return load(out).config["objective"]


@pytest.mark.parametrize(
    ("flags", "spelled"),
    [
        (["ELBO", "beta", "4"], "ELBO(num_particles=1, beta=4.0,"),
        (
            ["ELBO", "beta", "{z: {name: Sigmoid, start: 0, end: 1, midpoint: 3, width: 1}}"],
            "ELBO(num_particles=1, beta={'z': Sigmoid(0.0, 1.0, midpoint=3.0, width=1.0)},",
        ),
        (["Renyi", "alpha", "-0.5", "num_particles", "3"], "Renyi(alpha=-0.5, num_particles=3,"),
        (["MIWAE", "num_groups", "2", "num_particles", "4"], "MIWAE(num_particles=4, num_groups=2,"),
        (["freebits", "nats", "0.5", "group_size", "1"], "FreeBits(nats=0.5, group_size=1,"),
        (["FreeBits", "nats", "0.5", "group_size", "null"], "FreeBits(nats=0.5, group_size=None,"),
        (["Beta", "constraint", "3"], "Beta(constraint=3.0, rate=0.01,"),
        (["ReweightedWakeSleep", "insomnia", "0.5"], "ReweightedWakeSleep(num_particles=5, insomnia=0.5,"),
        (["MMD", "scale", "3"], "MMD(num_particles=1, scale=3.0,"),
    ],
)
def test_objectives_take_their_arguments(flags, spelled):
    name, *options = flags
    words = ["--objective", name]
    for option, value in zip(options[::2], options[1::2], strict=True):
        words += [f"--objective.{option}", value]
    parser = Parser()
    chosen = parser.parse_args(add_objective_arguments(parser, words)).objective.as_dict()
    assert repr(objective(chosen, data_size=5)).startswith(spelled)


def test_a_pair_names_the_objective_that_trains_it():
    from pyrovae.models import M2

    for words, name in ([], M2.trained_by), (["--objective", "ELBO"], "ELBO"):
        parser = Parser()
        chosen = parser.parse_args(add_objective_arguments(parser, words, M2.trained_by)).objective.as_dict()
        assert chosen["name"] == name
    assert objective({"name": M2.trained_by}, data_size=5).alpha == 1.0
    x, y = torch.rand(20, 4).round(), torch.arange(20) % 3 - 1
    run = pv.fit(M2(4, 2, num_classes=2, hidden=(3,)), (x, y), max_epochs=1, progress=False, seed=0)
    assert run.config["objective"].startswith("SemiSupervised(num_particles=1, alpha=1.0")


def test_codes_on_a_grid_of_two_are_no_plane(tmp_path):
    out = tmp_path / "run"
    flags = ["--num_codes", "4", "--channels", "[4, 4]"]
    main(["fit", "vqvae", "--out", str(out), *flags, *QUICK])
    assert load(out).config["objective"].startswith("Commitment(")
    assert "manifold.png" not in {path.name for path in (out / "pictures").iterdir()}


def test_every_objective_has_flags_for_what_it_needs():
    """Whatever an objective requires can be given: the flags know all required arguments."""
    for name in objective_names():
        parser = Parser()
        add_objective_arguments(parser, ["--objective", name])
        flags = {flag for action in parser._actions for flag in action.option_strings}
        signature = inspect.signature(getattr(pv.objectives, name)).parameters
        required = {f"--objective.{n}" for n, p in signature.items() if p.default is p.empty and n != "critic"}
        assert required <= flags, name


def test_a_rising_capacity_from_the_command_line_and_from_its_file(tmp_path):
    rising = "{name: Linear, start: 0, end: 5, epochs: 3}"
    out, again = tmp_path / "run", tmp_path / "again"
    flags = ["--objective", "Capacity", "--objective.gamma", "100", "--objective.C", rising]
    main(["fit", "vae", "--out", str(out), "--latent_dim", "2", *flags, *QUICK])
    run = load(out)
    assert run.config["objective"].startswith("Capacity(gamma=100.0, C=Linear(0.0, 5.0, epochs=3.0, delay=0.0)")
    assert run.history["C"] == pytest.approx([5 / 3 * 11 / 12, 5 / 3 * 23 / 12])  # as of the epoch's 12th step
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["objective"]["C"] == {"name": "Linear", "start": 0, "end": 5, "epochs": 3}
    main(["fit", "vae", "--config", str(out / "config.yaml"), "--out", str(again), "--max_epochs", "1"])
    main(["fit", "vae", f"--config={out / 'config.yaml'}", "--out", str(again), "--resume", "true"])
    resumed = load(again)
    assert resumed.config["objective"] == run.config["objective"]
    for name, value in run.pair.state_dict().items():
        assert torch.equal(value, resumed.pair.state_dict()[name]), name


def test_the_size_of_the_data_is_known(tmp_path):
    assert "data_size=1437" in objective_of(tmp_path, "--objective", "TotalCorrelation", "--objective.beta", "2")


def test_a_file_names_the_objective_in_one_form(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("objective: IWAE")
    with pytest.raises(SystemExit):
        main(["fit", "vae", "--config", str(tmp_path / "config.yaml")])
    assert "config.yaml has objective: IWAE; write objective: {name: IWAE} there" in capsys.readouterr().err


def test_help_lists_the_arguments_of_the_objective(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "vae", "--objective", "FreeBits", "--help"])
    text = capsys.readouterr().out
    assert "--objective.nats NATS" in text
    assert "--objective.group_size" in text
    assert "--objective.beta" not in text


SLOT_FLAGS = {  # options of a part, as words of a shell, and what the part is then
    "prior": {
        "StandardNormal": ([], {}),
        "GaussianMixture": (["num_components", "3", "spread", "0.9"], {"num_components": 3}),
        "VampPrior": (["num_components", "50", "bounds", "null"], {"num_components": 50, "bounds": None}),
        "RealNVP": (["num_layers", "2", "hidden", "[8]"], {}),
        "SplineFlow": (["num_layers", "2", "num_bins", "4", "bound", "4"], {}),
        "LaplaceDirichlet": (["concentration", "0.5"], {}),
    },
    "posterior": {
        "DiagonalNormal": (["min_scale", "1e-3"], {"min_scale": 0.001}),
        "SoftplusNormal": ([], {}),
        "NormalisedNormal": ([], {}),
        "LowRankNormal": (["rank", "2"], {"rank": 2}),
        "FullNormal": ([], {}),
        "NormalMixture": (["num_components", "3"], {"num_components": 3}),
        "PlanarFlow": (["num_steps", "3"], {"num_steps": 3}),
        "RadialFlow": (["num_steps", "3"], {"num_steps": 3}),
        "IAF": (["num_steps", "3", "hidden", "[9, 8]"], {"num_steps": 3}),
        "SplineFlow": (["num_bins", "4"], {}),
    },
}


@pytest.mark.parametrize(("where", "name"), [(where, name) for where, names in SLOT_FLAGS.items() for name in names])
def test_parts_take_their_options(where, name):
    words, attributes = SLOT_FLAGS[where][name]
    flags = [f"--{where}.{word}" if i % 2 == 0 else word for i, word in enumerate(words)]
    parser = Parser()
    add_pair_arguments(parser, pv.VAE)
    given = parser.parse_args(written_out([f"--{where}", name, *flags])).as_dict()
    pair = build({"name": "VAE", "arguments": {"event_shape": 4, "latent_dim": 2, where: slot(where, given[where])}})
    made = getattr(pair, where)
    assert type(made).__name__ == name
    assert {attribute: getattr(made, attribute) for attribute in attributes} == attributes
    again = build(json.loads(json.dumps(describe(pair))))
    assert describe(again) == describe(pair)
    assert {n: v.shape for n, v in again.state_dict().items()} == {n: v.shape for n, v in pair.state_dict().items()}
    options = describe(pair)["arguments"][where]
    assert words[::2] == ([] if isinstance(options, str) else [option for option in options if option != "name"])


def test_the_table_of_flags_holds_every_part_that_flags_can_make():
    needs_more = {
        "AggregatedPosterior",
        "ClassConditional",
        "ConditionalNormal",
        "Flow",
        "FactorisedBernoulli",
        "UniformCodes",
        "PixelCNN",
    }  # points, a class, y, a function; bits or codes, which no VAE has
    assert set(SLOT_FLAGS["prior"]) == set(parts("prior")) - needs_more
    assert set(SLOT_FLAGS["posterior"]) <= set(parts("posterior"))


def test_a_vamp_prior_and_an_iaf_are_fitted_loaded_and_evaluated(tmp_path, capsys):
    out, again = tmp_path / "run", tmp_path / "again"
    flags = [
        "--prior.name",
        "VampPrior",
        "--prior.num_components",
        "7",
        "--posterior",
        "IAF",
        "--posterior.num_steps=2",
    ]
    main(["fit", "vae", "--out", str(out), "--latent_dim", "2", *flags, *QUICK])
    run = load(out)
    assert run.pair.prior.inputs().shape == (7, 1, 8, 8)
    assert len(run.pair.posterior.networks) == 2
    figures = json.loads((out / "metrics.json").read_text())
    main(["evaluate", str(out), "--num_samples", "20", "--num_replicates", "5"])
    assert json.loads((out / "metrics.json").read_text())["log_likelihood"] == figures["log_likelihood"]
    main(["fit", "vae", "--config", str(out / "config.yaml"), "--out", str(again)])
    for name, value in run.pair.state_dict().items():
        assert torch.equal(value, load(again).pair.state_dict()[name]), name


@pytest.mark.parametrize(
    "name", [n for n in objective_names() if issubclass(getattr(pv.objectives, n), pv.RatioObjective)]
)
def test_a_critic_that_is_made_for_a_pair_is_what_the_objective_calls(name):
    vae, x = pv.VAE((2, 3), 2, hidden=(8,)), torch.rand(5, 2, 3).round()
    chosen = objective({"name": name, "critic": {"hidden": [4]}}, pair=vae, data_size=5)
    assert chosen.critic.network.feature_shape == (4,)
    assert np.isfinite(chosen.critic_loss(vae, x).item())
    assert np.isfinite(chosen.loss(vae.model, vae.guide, x))


@pytest.mark.parametrize("name", ["FactorVAE", "ImplicitPrior"])
def test_an_objective_has_its_critic_made(name, tmp_path):
    out, again = tmp_path / "run", tmp_path / "again"
    flags = ["--objective", name, "--objective.critic.hidden", "[6, 5]", "--objective.critic_steps", "2"]
    main(["fit", "vae", "--out", str(out), "--latent_dim", "3", *flags, *QUICK])
    critic = pv.DensityRatio(3, hidden=(6, 5))
    start = {n: value.clone() for n, value in critic.state_dict().items()}
    run = load(out, critic=critic)
    assert run.config["objective"].startswith(f"{name}(critic=DensityRatio(")
    assert not any(torch.equal(value, start[n]) for n, value in critic.state_dict().items())
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["objective"]["critic"] == {"hidden": [6, 5]}
    main(["fit", "vae", "--config", str(out / "config.yaml"), "--out", str(again), "--max_epochs", "1"])
    main(["fit", "vae", "--config", str(out / "config.yaml"), "--out", str(again), "--resume", "true"])
    other = pv.DensityRatio(3, hidden=(6, 5))
    resumed = load(again, critic=other)  # the same seed makes the same critic, and it goes on where it was
    for a, b in ((critic, other), (run.pair, resumed.pair)):
        assert all(torch.equal(value, b.state_dict()[n]) for n, value in a.state_dict().items())


OWN = '''
import pyro
import pyro.distributions as dist
import torch
from torch import nn

import pyrovae as pv


class Mine(pv.Pair):
    """A linear pair."""

    def __init__(self, event_shape, width: int = 3):
        super().__init__()
        self.width = width
        self.down, self.up = nn.Linear(64, width), nn.Linear(width, 64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.width), 1.0).to_event(1))
            logits = self.up(z).unflatten(-1, (1, 8, 8))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.down(x.flatten(1)), 0.5).to_event(1))


def model(x):
    loc = pyro.param("loc", torch.zeros(1, 8, 8))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(logits=loc).to_event(3), obs=x)


functions = (model, lambda x: None)


class Slots(pv.VAE):
    """Somebody's VAE."""
'''


def test_somebodys_own_pair(tmp_path, capsys):
    source = tmp_path / "own_pairs.py"
    source.write_text(OWN)
    out = tmp_path / "own"
    main(["fit", f"{source}:Mine", "--width", "4", "--out", str(out), *OWN_QUICK])
    with pytest.raises(SystemExit):
        main(["evaluate", str(out)])
    assert "pass it as pair= (--pair file.py:Name)" in capsys.readouterr().err
    main(["evaluate", str(out), "--pair", f"{source}:Mine", "--num_samples", "10", "--num_replicates", "10"])
    assert "log-likelihood" in capsys.readouterr().out
    main(["fit", f"{source}:functions", "--out", str(tmp_path / "functions"), *OWN_QUICK])
    assert "no picture of latents" in capsys.readouterr().out
    out = tmp_path / "slots"
    main(["fit", f"{source}:Slots", "--prior", "RealNVP", "--prior.num_layers", "2", "--out", str(out), *QUICK])
    main(["evaluate", str(out), "--pair", f"{source}:Slots", "--num_samples", "10", "--num_replicates", "10"])
    assert "RealNVP" in str(
        load(out, pv.VAE((1, 8, 8), 16, hidden=(8,), prior=partial(pv.priors.RealNVP, num_layers=2))).pair
    )


TWO_CHANNELS = OWN.replace("(1, 8, 8)", "(2, 8, 8)").replace("64", "128")


def test_what_can_not_be_drawn_ends_no_training_and_loses_no_numbers(tmp_path, capsys):
    """A picture has one channel or three, these data two."""
    (tmp_path / "own_pairs.py").write_text(TWO_CHANNELS)
    x = torch.rand(40, 2, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    np.save(tmp_path / "pixels.npy", x.numpy())
    pair, out = f"{tmp_path}/own_pairs.py:Mine", tmp_path / "run"
    flags = ["--data", str(tmp_path / "pixels.npy"), "--out", str(out), *OWN_QUICK, "--width", "2"]
    main(["fit", pair, *flags, "--max_epochs", "13", "--batch_size", "16", "--compile", "false"])
    said = capsys.readouterr().out.splitlines()
    (line,) = [line for line in said if line.startswith("no picture of manifold while it is trained: ")]
    assert "wanted 1 or 3 channels" in line
    drawn = {path.name for path in (out / "pictures").iterdir()}
    assert {"latents_step_0001.png", "latents_step_0025.png"} <= drawn
    assert any(line.startswith("no picture of reconstructions") for line in said)
    assert json.loads((out / "metrics.json").read_text())["latent_dim"] == 2
    main(["sample", str(out), "--pair", pair, "--num_samples", "5"])
    assert np.load(out / "samples.npy").shape == (5, 2, 8, 8)
    said = capsys.readouterr().out
    assert re.search(r"no picture of samples: images has shape \(5, 2, 8, 8\), wanted 1 or 3 channels", said)


TWO_VIEWS = '''
import pyro
import pyro.distributions as dist
import torch

import pyrovae as pv


class Views(pv.Pair):
    """Two views of one z, and constants in a plate of their own."""

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(2))

    def model(self, x, second):
        with pyro.plate("constants", 3):
            pyro.sample("c", dist.Normal(0.0, 1.0), obs=torch.zeros(3))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("left", dist.Normal(z.repeat_interleave(2, -1), 1.0).to_event(1), obs=x)
            right = z.sum(-1, keepdim=True).repeat_interleave(3, -1)
            pyro.sample("right", dist.Normal(right, 1.0).to_event(1), obs=second)

    def guide(self, x, second):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(self.loc + x[:, ::2] / 2, 0.5).to_event(1))


class Seeded(Views):
    def __init__(self, seed: int = 0):
        super().__init__()
'''


@pytest.fixture
def views(tmp_path):
    """A pair that observes several sites, in one of two plates, and the flags to fit it."""
    (tmp_path / "views.py").write_text(TWO_VIEWS)
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    np.savez(tmp_path / "views.npz", x=x.numpy(), second=x[:, 1:].numpy())
    out = tmp_path / "run"
    flags = ["--data", str(tmp_path / "views.npz"), "--out", str(out), "--compile", "false", *OWN_QUICK]
    return f"{tmp_path / 'views.py'}:Views", flags, out


def test_several_observed_sites_and_no_flag_cost_the_check_alone(views, capsys):
    pair, flags, out = views
    with pytest.raises(SystemExit):
        main(["fit", pair, *flags])
    assert "several plates at dim -1, ['constants', 'rows']; pass plate= (--plate)" in capsys.readouterr().err
    main(["fit", pair, *flags, "--plate", "rows"])
    said = capsys.readouterr().out
    for row in ("ELBO", "reconstruction left", "reconstruction right", "log-likelihood", "active units"):
        assert row in said
    (line,) = [line for line in said.splitlines() if line.startswith("no predictive checks")]
    assert line.startswith("no predictive checks and no picture of reconstructions, samples, interpolation, traversals")
    assert line.endswith("the model observes several sites; pass site= with one of ['c', 'left', 'right'] (--site)")
    figures = json.loads((out / "metrics.json").read_text())
    assert figures["checks"]["rows"] == []
    assert {"latents.png", "training_curves.png"} <= {path.name for path in (out / "pictures").iterdir()}
    main(["evaluate", str(out), "--pair", pair, "--num_samples", "20"])  # in the run's own plate
    assert "\nno predictive checks: the model observes several sites; pass site=" in capsys.readouterr().out
    assert json.loads((out / "metrics.json").read_text())["elbo"] == figures["elbo"]
    on = [str(out), "--pair", pair, "--site", "right"]
    main(["sample", *on, "--num_samples", "5"])
    assert np.load(out / "samples.npy").shape == (5, 3)
    main(["check", *on, "--num_replicates", "5"])
    main(["evaluate", *on, "--plate", "rows", "--num_samples", "20", "--num_replicates", "5"])
    assert json.loads((out / "metrics.json").read_text())["checks"]["rows"]
    main(["plot", *on])
    assert (out / "pictures" / "reconstructions.png").exists()
    assert "no p" not in capsys.readouterr().out
    for command in ("sample", "check"):
        with pytest.raises(SystemExit):
            main([command, str(out), "--pair", pair])
        assert "with one of ['c', 'left', 'right'] (--site)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", str(out), "--pair", pair, "--plate", "columns"])
    assert "plate='columns' is no plate of the model" in capsys.readouterr().err


def test_the_site_of_a_run_is_that_of_later_commands(views, monkeypatch, capsys):
    pair, flags, out = views
    with pytest.raises(SystemExit):
        main(["fit", pair, *flags, "--plate", "rows", "--site", "centre"])
    assert "site='centre' is no observed site; pass site= with one of" in capsys.readouterr().err
    assert not (out / "config.yaml").exists()
    seen = []
    monkeypatch.setattr(plots, "reconstructions", watched(plots.reconstructions, seen))
    main(["fit", pair, *flags, "--plate", "rows", "--site", "right"])
    assert "no p" not in capsys.readouterr().out
    assert "manifold_step_0001.png" in {path.name for path in (out / "pictures").iterdir()}
    main(["plot", str(out), "--pair", pair])
    main(["sample", str(out), "--pair", pair, "--num_samples", "5"])
    assert np.load(out / "samples.npy").shape == (5, 3)
    main(["plot", str(out), "--pair", pair, "--site", "left"])
    shapes = [(data.shape, means.shape) for data, means in seen]
    assert shapes == [((4, 3), (4, 3)), ((4, 3), (4, 3)), ((4, 4), (4, 4))]


def watched(draw, seen):
    """A plot that notes what it is called with."""
    return lambda *values, **options: (seen.append(values), draw(*values, **options))[1]


def test_an_argument_with_the_name_of_a_flag_is_named(views, capsys):
    pair, flags, _ = views
    with pytest.raises(SystemExit):
        main(["fit", pair.replace("Views", "Seeded"), *flags])
    assert (
        "Seeded takes seed, but --seed is a flag of pyrovae fit itself; rename the argument" in capsys.readouterr().err
    )


def test_reports_take_a_plate_that_is_not_plain(tmp_path):
    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
        with pyro.plate("constants", 3):
            pyro.sample("c", dist.Normal(0.0, 1.0), obs=torch.zeros(3))

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5).to_event(1))

    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    figures, _ = reports.evaluate((model, guide), x, num_samples=5, num_replicates=5, plate="rows")
    assert (figures["active_units"], figures["latent_dim"]) == (2, 2)
    drawn, skipped = reports.pictures((model, guide), x, tmp_path, plate="rows")
    assert not skipped
    assert {"latents", "latent_kl", "manifold", "samples", "traversals"} <= {path.stem for path in drawn}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fti"], "there is no command called 'fti'; did you mean fit?"),
        (["fit", "vea"], "there is no pair called 'vea'; did you mean VAE"),
        (["fit", "vae", "--latnt_dim", "3"], "there is no flag --latnt_dim; did you mean --latent_dim"),
        (["fit", "vae", "--data", "digitz"], "there are no data called 'digitz'; did you mean digits"),
        (
            ["fit", "vae", "--likelihood", "Bernouli"],
            "there is no likelihood called 'Bernouli'; did you mean Bernoulli",
        ),
        (["fit", "vae", "--prior", "AggregatedPosterior"], "AggregatedPosterior needs points, which no text can give"),
        (["fit", "vae", "--prior", "GaussianMixture"], "GaussianMixture has no num_components; pass --prior.num_compo"),
        (["fit", "vae", "--prior.num_components", "3"], "--prior has options and no name; pass --prior NAME beside"),
        (
            ["fit", "vae", "--prior", "VampPrior", "--prior.components", "3"],
            "no option of VampPrior called 'components'",
        ),
        (
            ["fit", "vae", "--prior", "VampPrior", "--prior.num_components", "x"],
            "num_components is 'x', expected an int",
        ),
        (["fit", "vae", "--prior", "ConditionalNormal", "--prior.context_shape", "3"], "was called without y"),
        (
            ["fit", "cvae", "--prior", "VampPrior", "--num_classes", "10"],
            "VampPrior is a mixture of posteriors q(z | x)",
        ),
        (["fit", "vae", "--objective", "RatioObjective"], "there is no objective called 'RatioObjective'"),
        (
            ["fit", "hierarchicalvae", "--latent_dims", "[3, 2]", "--objective", "FactorVAE"],
            "has no latent_dim to make",
        ),
        (["fit", "vae", "--objective", "IWEA"], "there is no objective called 'IWEA'; did you mean IWAE or PIWAE?"),
        (["fit", "vae", "--beta", "2"], "there is no flag --beta; did you mean --objective.beta? see --help"),
        (
            ["fit", "vae", "--objective=Capacity", "--objective.gama", "2"],
            "there is no flag --objective.gama; did you mean --objective.gamma",
        ),
        (["fit", "vae", "--objective", "IWAE", "--objective.beta", "2"], "there is no flag --objective.beta;"),
        (["fit", "vae", "--objective", "Capacity"], "are required: --objective.gamma, --objective.C"),
        (["fit", "vae", "--objective"], "--objective.name: expected one argument"),
        (["fit", "vae", "--objective.beta", "-1"], "beta is -1.0"),
        (["fit", "vae", "--objective.beta", "two"], 'Parser key "objective.beta"'),
        (
            ["fit", "vae", "--objective.beta", "{name: Liner, start: 0}"],
            "there is no schedule called 'Liner'; did you mean Linear?",
        ),
        (
            ["fit", "vae", "--objective.beta", "{name: Linear, begin: 0}"],
            "there is no option of Linear called 'begin'",
        ),
        (["fit", "vae", "--objective.beta", "{name: Linear, start: 0, end: 1}"], "schedule Linear has no epochs; pass"),
        (["fit", "vae", "--max_epochs", "x"], 'Parser key "max_epochs"'),
        (["fit", "vae", "--latent_dim", "0"], "latent_dim is 0"),
        (["fit", "vae", "--validation", "x"], 'Parser key "validation"'),
        (["fit", "vae", "--validation", "1.5"], "validation is 1.5, a fraction between 0 and 1"),
        (["fit", "posteriormatching"], "PosteriorMatching takes fitted, which no flag can give; make the pair in"),
        (["fit", "partialvae", "--mask", "half,pixls"], "there is no mask called 'pixls'; did you mean pixels?"),
        (["fit", "vae", "--mask", "half"], "--mask is 'half', but VAE takes no mask; leave it out"),
        (["fit", "cvae", "--num_classes", "7"], "labels that are none of 0, ..., 6, the first in row"),
        (["fit", "nothing.py:Pair"], "there is no file 'nothing.py'"),
        (["evaluate", "nowhere"], "'nowhere' has no complete checkpoint"),
        (["fit", "vae", "--binarize", "null"], "has values that site 'x' cannot give: row 0 lies in [0, 1]"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert error.startswith("pyrovae: error: ")


def test_flags_take_no_class_path(tmp_path, capsys):
    """A class path would import whatever it names."""
    for flag in ("--likelihood", "--prior", "--encoder", "--objective.beta"):
        with pytest.raises(SystemExit):
            main(["fit", "vae", flag, "{class_path: os.system, init_args: {command: 'touch hacked'}}"])
        assert not (tmp_path / "hacked").exists()
        assert re.search("there is no|has options and no name|a number of at least 0", capsys.readouterr().err)


def test_a_second_run_into_the_same_folder_is_refused(run_folder, capsys):
    before = [(run_folder / name).read_bytes() for name in ("history.csv", "config.yaml")]
    with pytest.raises(SystemExit):
        main(["fit", "vae", "--out", str(run_folder), *QUICK, "--lr", "0.1"])
    assert "already holds a run; pass resume=True" in capsys.readouterr().err
    assert [(run_folder / name).read_bytes() for name in ("history.csv", "config.yaml")] == before


def test_list_and_help_and_python_m():
    listed = subprocess.run(
        [sys.executable, "-m", "pyrovae", "list"], capture_output=True, text=True, check=True
    ).stdout
    assert "VAE" in listed
    assert "IWAE" in listed
    assert "digits" in listed


# Flags of a run that is gone on with, or cut short -------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """The flags of a small run in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", np.random.default_rng(0).integers(0, 2, (200, 6)).astype(np.float32))
    return [
        "--data",
        "rows.npy",
        "--compile",
        "false",
        "--progress",
        "false",
        "--max_epochs",
        "1",
        "--num_samples",
        "5",
    ]


@pytest.fixture
def small(rows):
    return [*rows, "--hidden", "[4]", "--latent_dim", "2"]


@pytest.fixture
def no_report(monkeypatch):
    """Training alone, without what is drawn and estimated of it."""
    monkeypatch.setattr(reports.LatentSpace, "on_step", lambda self, run: None)
    monkeypatch.setattr(reports, "evaluate", lambda *rows, **options: ({"checks": {}}, None))
    monkeypatch.setattr(reports, "pictures", lambda *rows, **options: ([], {}))
    monkeypatch.setattr(reports, "table", lambda figures: "")


def recorded(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.mark.parametrize("spelled", [["--config", "base/config.yaml"], ["--config=base/config.yaml"]])
@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_flags_overrule_the_file_wherever_it_stands(place, spelled, small, no_report, tmp_path):
    main(["fit", "vae", "--out", "base", *small])
    one, two = ["--latent_dim", "3"], ["--lr", "0.5", "--out", "other"]
    flags = {"before": [*one, *two, *spelled], "between": [*one, *spelled, *two], "after": [*spelled, *one, *two]}
    main(["fit", "vae", *flags[place]])
    run = load(tmp_path / "other")
    assert (run.pair.latent_dim, run.config["lr"], run.config["max_epochs"]) == (3, 0.5, 1)


def test_a_part_of_the_command_line_overrules_the_files(small, no_report, tmp_path):
    main(["fit", "vae", "--out", "base", *small, "--prior", "VampPrior", "--prior.num_components", "3"])
    prior = ["--prior.num_components", "4"]
    main(["fit", "vae", *prior, "--conf", "base/config.yaml", "--out", "other"])
    assert load(tmp_path / "other").pair.prior.inputs().shape == (4, 6)


CAPACITY = ["--objective", "Capacity", "--objective.gamma", "10", "--objective.C", "5"]
VAMP = ["--prior", "VampPrior", "--prior.num_components", "3"]


@pytest.mark.parametrize(
    ("flags", "objective", "prior"),
    [
        (["--objective", "ELBO"], {"name": "ELBO"}, {"name": "VampPrior", "num_components": 3}),
        (["--objective=ELBO", "--objective.beta=4"], {"name": "ELBO", "beta": 4}, {"name": "VampPrior"}),
        (["--prior", "RealNVP"], {"name": "Capacity", "gamma": 10, "C": 5}, "RealNVP"),
        (["--prior.num_layers", "2", "--prior=RealNVP"], {}, {"name": "RealNVP", "num_layers": 2}),
        (["--prior", "{name: RealNVP}", "--objective", "ELBO"], {"name": "ELBO"}, "RealNVP"),
        (["--prior", "vampprior", "--objective", "capacity"], {"gamma": 10, "C": 5}, {"num_components": 3}),
    ],
)
def test_another_name_on_the_command_line_replaces_the_files_options_too(
    flags, objective, prior, small, no_report, tmp_path
):
    main(["fit", "vae", "--out", "base", *small, *CAPACITY, *VAMP])
    main(["fit", "vae", *flags, "--config", "base/config.yaml", "--out", "other"])
    found = recorded(tmp_path / "other")
    assert objective.items() <= found["objective"].items()
    assert ("gamma" in found["objective"]) == (found["objective"]["name"].lower() == "capacity")
    assert found["prior"] == prior if isinstance(prior, str) else prior.items() <= found["prior"].items()
    named = found["prior"] if isinstance(found["prior"], str) else found["prior"]["name"]
    assert type(load(tmp_path / "other").pair.prior).__name__ == named
    assert recorded(tmp_path / "base")["objective"]["C"] == 5


def test_what_is_wrong_in_the_rest_of_a_file_is_named_with_it(small, tmp_path, capsys):
    (tmp_path / "odd.yaml").write_text("objective: {name: Capacity, gamma: 10, C: 5}\nlr: fast")
    with pytest.raises(SystemExit):
        main(["fit", "vae", *small, "--config", "odd.yaml", "--objective", "ELBO"])
    assert capsys.readouterr().err.startswith('pyrovae: error: in odd.yaml: Parser key "lr": Expected a')


def test_the_same_flags_without_a_seed_go_on(small, no_report, tmp_path):
    main(["fit", "vae", "--out", "base", *small])
    seed = load(tmp_path / "base").seed
    main(["fit", "vae", "--out", "base", *small, "--resume", "true", "--max_epochs", "2"])
    again = load(tmp_path / "base")
    assert (again.epoch, again.seed, recorded(tmp_path / "base")["seed"]) == (2, seed, seed)
    (tmp_path / "base" / "config.yaml").unlink()
    main(["fit", "vae", "--out", "base", *small, "--resume", "true", "--max_epochs", "3"])
    assert load(tmp_path / "base").epoch == 3
    assert recorded(tmp_path / "base")["seed"] == seed


def test_a_run_that_was_gone_on_with_is_a_template_for_another(small, no_report, tmp_path):
    main(["fit", "vae", "--out", "base", *small])
    main(["fit", "vae", "--config", "base/config.yaml", "--resume", "true", "--max_epochs", "2"])
    assert "resume" not in recorded(tmp_path / "base")
    main(["fit", "vae", "--config", "base/config.yaml", "--out", "other", "--latent_dim", "3"])
    assert load(tmp_path / "other").pair.latent_dim == 3


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        (["fit", "vae"], "the run is saved; go on with: pyrovae evaluate base"),
        (["fit", "own_pairs.py:Mine"], "the run is saved; go on with: pyrovae evaluate base --pair own_pairs.py:Mine"),
    ],
)
def test_an_interrupted_evaluation_ends_with_what_goes_on(
    command, goes_on, rows, no_report, tmp_path, monkeypatch, capsys
):
    def interrupted(*rows, **options):
        raise KeyboardInterrupt

    (tmp_path / "own_pairs.py").write_text(
        OWN.replace("(1, 8, 8)", "(6,)").replace("64", "6").replace("event(3)", "event(1)")
    )
    for name in ("evaluate", "pictures"):
        resume = str((tmp_path / "base").exists()).lower()
        with monkeypatch.context() as patch:
            patch.setattr(reports, name, interrupted)
            with pytest.raises(SystemExit) as ended:
                main([*command, "--out", "base", *rows, "--resume", resume])
        assert ended.value.code == 130
        assert capsys.readouterr().err.splitlines()[-1] == f"pyrovae: interrupted; {goes_on}"
    words = [*goes_on.split()[-4:]] if ":Mine" in goes_on else ["evaluate", "base"]
    with monkeypatch.context() as patch:
        patch.setattr(reports, "evaluate", interrupted)
        with pytest.raises(SystemExit) as ended:
            main(words)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "pyrovae: interrupted\n"
    main(words)


@pytest.mark.parametrize("number", ["0", "-3"])
def test_a_number_of_samples_is_checked_before_training(number, small, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "vae", "--out", "base", *small, "--num_samples", number])
    error = capsys.readouterr().err
    assert f"num_samples is {number}, at least 1 is wanted; pass --num_samples 1000" in error
    assert not (tmp_path / "base").exists()


def test_whole_numbers_that_a_network_does_not_take_are_told_how(small, capsys):
    np.save("rows.npy", np.load("rows.npy").astype(np.int64))
    with pytest.raises(SystemExit):
        main(["fit", "vae", *small])
    error = capsys.readouterr().err
    assert "does not run on tensors of shape and type (128, 6) int64" in error
    assert "save the array with .astype('float32'), or pass x.float()" in error
    assert "PyroSample" not in error


@pytest.mark.parametrize(
    ("flag", "validated"), [([], 20), (["--validation", "true"], 20), (["--validation", "0.25"], 40), ("false", None)]
)
def test_what_to_validate_on_has_a_flag(flag, validated, small, no_report, tmp_path):
    main(["fit", "vae", "--out", "base", *small, *(flag if validated else ["--validation", flag])])
    run = load(tmp_path / "base")
    assert run.config["validation_rows"] == validated
    assert ("validation_loss" in run.history) == (validated is not None)
    main(["fit", "vae", "--config", "base/config.yaml", "--resume", "true", "--max_epochs", "2"])
    assert load(tmp_path / "base").config["validation_rows"] == validated


PER_ROW = """
import pyro
import pyro.distributions as dist
import torch


def model(x):
    weight = pyro.param("weight", lambda: torch.full((2, 6), 0.1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=z @ weight).to_event(1), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.zeros(160, 2))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


pair = (model, guide)
"""


def test_a_pair_with_parameters_of_each_row_is_fitted_without_validation(rows, tmp_path, capsys):
    (tmp_path / "per_row.py").write_text(PER_ROW)
    flags = ["per_row.py:pair", "--out", "base", *rows, "--batch_size", "160"]
    main(["fit", *flags, "--validation", "false"])
    assert re.search(
        r"^fitted in .* s; no figures of held-out data: Shape mismatch.*20 vs 160", capsys.readouterr().out
    )
    assert checkpoint.read(checkpoint.latest(tmp_path / "base" / "checkpoints")).parameters["loc"].any()
