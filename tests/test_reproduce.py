"""The shared runner of reproduced tables, on a small one."""

import json

import pytest
import torch

import pyrovae as pv
from examples.reproduce import runner, vade
from examples.reproduce.__main__ import NAMES
from examples.reproduce.runner import Cell, Result, Schedule, reproduce, table


def small(data):
    return pv.VAE(data.event_shape, latent_dim=2, hidden=(8,))


RESULT = Result(
    source="Nobody, table 1",
    load=lambda root: pv.data.load("digits"),
    cells={"VAE 1": Cell(small, paper=21.0), "IWAE 5": Cell(small, lambda data, schedule: pv.IWAE(5))},
    paper=Schedule(epochs=50, batch_size=128, num_samples=10),
    reduced=Schedule(epochs=6, batch_size=128, num_samples=10, decay=0.1),
)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "results")


def run(**options):
    arguments = {"cells": list(RESULT.cells), "seeds": [0], "schedule": RESULT.reduced, "budget": 10.0, **options}
    with torch.random.fork_rng():
        reproduce("small", RESULT, device="cpu", **arguments)


def records(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.rglob("*.json")}


def test_cut_off_and_gone_on_with_is_as_if_never_cut_off(tmp_path, monkeypatch):
    run(cells=["VAE 1"])
    whole = records(tmp_path / "results")["vae_1_seed_0"]
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "again")
    monkeypatch.chdir(tmp_path / "results")  # other run folders
    run(cells=["VAE 1"], budget=0.0)
    assert records(tmp_path / "again") == {}
    run(cells=["VAE 1"])
    assert records(tmp_path / "again")["vae_1_seed_0"]["nll"] == whole["nll"]
    assert (whole["epochs"], whole["paper"]) == (6, 21.0)
    assert whole["versions"]["torch"]


def test_a_cells_figure_is_that_of_its_run(tmp_path):
    run(cells=["VAE 1"], seeds=[7])
    kept = pv.load(tmp_path / "runs" / "reproduce" / "small" / str(RESULT.reduced) / "vae_1_seed_7")
    estimate = pv.log_likelihood(kept.pair, pv.data.load("digits").test, num_samples=10, seed=7)
    assert kept.seed == 7
    assert records(tmp_path / "results")["vae_1_seed_7"]["nll"] == -estimate.value > 0


def test_finished_cells_are_not_run_again(tmp_path, capsys):
    run(cells=["VAE 1"])
    before = records(tmp_path / "results")
    run()
    assert capsys.readouterr().out.count("VAE 1, seed 0") == 1
    assert records(tmp_path / "results")["vae_1_seed_0"] == before["vae_1_seed_0"]


def test_table_has_mean_and_spread_and_says_what_has_not_run(tmp_path):
    folder = tmp_path / "results" / "small" / str(RESULT.reduced)
    folder.mkdir(parents=True)
    for seed, nll in enumerate([20.0, 22.0]):
        record = {"nll": nll, "epochs": 6, "batch_size": 128, "num_samples": 10, "device": "cpu"}
        (folder / f"vae_1_seed_{seed}.json").write_text(json.dumps(record))
    lines = table("small", RESULT).splitlines()
    assert "| VAE 1 | 21.00 | 21.00 ± 1.41 | 2 | 6 | 128 | 10 | cpu |" in lines
    assert "| IWAE 5 |  | not run yet | | | | | |" in lines


def clusters(tmp_path, *cells, budget=10.0):
    """The digits' cells of a few epochs, and their figures."""
    result = NAMES["vade_digits"]
    schedule = Schedule(epochs=2, batch_size=500, num_samples=1, pretraining=2)
    with torch.random.fork_rng():
        reproduce("v", result, cells=cells, seeds=[1], schedule=schedule, budget=budget, device="cpu")
    return records(tmp_path / "results" / "v")


def test_a_start_that_is_cut_off_goes_on_and_is_part_of_the_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(vade, "RESTARTS", 1)
    found = clusters(tmp_path, "VaDE plain start")["vade_plain_start_seed_1"]
    assert 10 < found["start"]["acc"] <= 100
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "again")
    monkeypatch.chdir(tmp_path / "results")
    reproduce_cut = clusters(tmp_path / "again", "VaDE plain start", budget=0.0)
    assert reproduce_cut == {}
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "again" / "results")
    again = clusters(tmp_path / "again", "VaDE plain start")["vade_plain_start_seed_1"]
    assert {key: again[key] for key in ("acc", "start", "weights")} == {
        key: found[key] for key in ("acc", "start", "weights")
    }


def test_cells_of_codes_and_without_a_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(vade, "RESTARTS", 1)
    found = clusters(tmp_path, "GMM", "AE+GMM", "AAE+GMM", "VaDE")
    assert len(found) == 4
    for record in found.values():
        assert sum(record["clusters"]) == 1797
        assert 10 < record["acc"] <= 100
    assert (found["gmm_seed_1"]["epochs"], found["vade_seed_1"]["epochs"]) == (0, 2)


def test_rows_of_clusterings_list_every_seed():
    few = [{"acc": acc, "nmi": 50.0, "ari": 40.0} for acc in (70.0, 90.0, 74.0)]
    assert vade.row(few) == ["78.00 ± 10.58", "74.00", "90.00", "70.00, 90.00, 74.00", "50.00 ± 0.00", "40.00 ± 0.00"]


@pytest.mark.parametrize("name", NAMES)
def test_every_table_is_printed_from_the_repository(name, monkeypatch):
    monkeypatch.undo()
    assert NAMES[name].source in table(name, NAMES[name])
    for cell in NAMES[name].cells.values():
        assert cell.paper is None or cell.paper > 0
