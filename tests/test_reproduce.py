"""The shared runner of reproduced tables, on a small one."""

import dataclasses
import json
import math

import pytest
import torch

import pyrovae as pv
from examples.reproduce import clustering, disentanglement, runner, tables
from examples.reproduce.__main__ import NAMES
from examples.reproduce.runner import Cell, Result, Schedule, draw, reproduce
from examples.reproduce.tables import summary, table
from pyrovae import reports

TABLE = disentanglement.RESULT.cells
SETTING = {"seed": 0, "epochs": 6, "batch_size": 128, "num_samples": 10, "device": "cpu"}


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
    assert (whole["epochs"], whole["schedule"]["decay"]) == (6, 0.1)
    assert {"torch", "pyrovae", "scikit-learn"} <= set(whole["versions"])
    assert whole["commit"] == runner.commit()
    assert whole["fit_seconds"] > 0
    assert whole["evaluate_seconds"] > 0


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
        record = {"seed": seed, "nll": nll, "epochs": 6, "batch_size": 128, "num_samples": 10, "device": "cpu"}
        (folder / f"vae_1_seed_{seed}.json").write_text(json.dumps(record))
    lines = table("small", RESULT).splitlines()
    assert (
        "| VAE 1 | 21.00 | 21.00 ± 1.41 (20.00, 21.00, 22.00) | 0: 20.00, 1: 22.00 | 2 | 6 | 128 | 10 | cpu |" in lines
    )
    assert "| IWAE 5 |  | not run yet |  |  |  |  |  |  |" in lines


def test_a_table_of_several_figures_has_columns_of_each(tmp_path):
    folder = tmp_path / "results" / "several" / "one"
    folder.mkdir(parents=True)
    for seed, (mig, score) in enumerate([(0.1, 0.5), (0.2, 0.9), (0.6, 0.7)]):
        record = {"mig": mig, "score": score, **dict(SETTING, seed=seed)}
        (folder / f"ran_seed_{seed}.json").write_text(json.dumps(record))
    cells = {"ran": Cell(small, paper={"score": 0.82}), "quoted": Cell(None, paper={"mig": 0.4}), "new": Cell(small)}
    several = dataclasses.replace(RESULT, figure=("mig", "score"), cells=cells)
    lines = table("several", several).splitlines()
    ours = "ours, mean ± sd (min, median, max)"
    assert lines[2].startswith(
        f"| cell | mig, paper | mig, {ours} | score, paper | score, {ours} | each seed | seeds |"
    )
    figures = "| ran |  | 0.30 ± 0.26 (0.10, 0.20, 0.60) | 0.82 | 0.70 ± 0.20 (0.50, 0.70, 0.90) |"
    assert lines[4] == f"{figures} 0: 0.10, 1: 0.20, 2: 0.60 | 3 | 6 | 128 | 10 | cpu |"
    assert lines[5] == "| quoted | 0.40 | quoted |  | quoted |  |  |  |  |  |  |"
    assert lines[6] == "| new |  | not run yet |  | not run yet |  |  |  |  |  |  |"
    assert {line.count("|") for line in lines[2:]} == {12}


def test_a_table_says_how_long_a_start_was(tmp_path):
    folder = tmp_path / "results" / "begun" / "pretraining_4_epochs_6_batch_128_samples_10"
    folder.mkdir(parents=True)
    for cell, start in (("begun", {"start": {"epochs": 4}}), ("whole", {})):
        (folder / f"{cell}_seed_0.json").write_text(json.dumps({"nll": 1.0, **SETTING, **start}))
    cells = {"begun": Cell(small), "whole": Cell(small)}
    lines = table("begun", dataclasses.replace(RESULT, cells=cells)).splitlines()
    assert "| begun | 1.00 | 0: 1.00 | 1 | 4 + 6 | 128 | 10 | cpu |" in lines
    assert "| whole | 1.00 | 0: 1.00 | 1 | 6 | 128 | 10 | cpu |" in lines


def test_seeds_that_ended_early_or_ran_elsewhere_are_all_told(tmp_path):
    """In the order of their numbers, and never those of another training, which was longer than some of them."""
    for schedule, ran in {"long": {10: (20, "cuda"), 2: (9, "cpu"), 0: (16, "cpu")}, "short": {0: (18, "cpu")}}.items():
        (tmp_path / "results" / "several" / schedule).mkdir(parents=True)
        for seed, (epochs, device) in ran.items():
            record = {**SETTING, "seed": seed, "nll": float(epochs), "epochs": epochs, "device": device}
            (tmp_path / "results" / "several" / schedule / f"vae_seed_{seed}.json").write_text(json.dumps(record))
    result = dataclasses.replace(RESULT, cells={"VAE": Cell(small)})
    setting = "| 3 | 9 to 20 | 128 | 10 | cpu to cuda |"
    assert summary({"several": result}).splitlines()[-1] == f"| VAE |  | 15.00 ± 5.57 (9.00, 16.00, 20.00) {setting}"
    assert f"| 0: 16.00, 2: 9.00, 10: 20.00 {setting}" in table("several", result)


def test_a_table_without_papers_has_no_column_of_them():
    nobodys = dataclasses.replace(RESULT, figure=("mig", "score"), cells={"ran": Cell(small, paper={"score": 1.0})})
    titles = table("several", nobodys).splitlines()[2]
    assert "mig, ours" in titles
    assert "mig, paper" not in titles
    assert "score, paper" in titles


def test_the_summary_has_each_cells_longest_training(tmp_path):
    """The start's epochs count, the figure does not; what has not run is named."""
    found = {
        "pretraining_4_epochs_6": {"long_seed_0": 3.0, "long_seed_1": 5.0, "without_a_start_seed_0": 9.0},
        "epochs_8": {"long_seed_0": 1.0, "short_seed_0": 7.0},
        "epochs_2": {"short_seed_0": 6.0},
    }
    for schedule, figures in found.items():
        (tmp_path / "results" / "small" / schedule).mkdir(parents=True)
        for stem, nll in figures.items():
            record = {**SETTING, "nll": nll, "mig": 0.5, "epochs": int(schedule[-1])}
            if stem.startswith("long") and "pretraining" in schedule:
                record["start"] = {"epochs": 4}
            (tmp_path / "results" / "small" / schedule / f"{stem}.json").write_text(json.dumps(record))
    cells = {
        "long": Cell(small, paper={"mig": 0.4}),
        "short": Cell(small),
        "without a start": Cell(small),
        "elsewhere": Cell(None, paper={"nll": 2.0}),
        "one": Cell(small),
        "two": Cell(small),
    }
    lines = summary({"small": dataclasses.replace(RESULT, cells=cells, figure=("nll", "mig"))}).splitlines()
    assert lines[2:] == [
        "| **`small`** Nobody, table 1: nll, mig |  |  |  |  |  |  |  |",
        "| long | –; 0.40 | 4.00 ± 1.41 (3.00, 4.00, 5.00); 0.50 ± 0.00 | 2 | 4 + 6 | 128 | 10 | cpu |",
        "| short |  | 7.00; 0.50 | 1 | 8 | 128 | 10 | cpu |",
        "| without a start |  | 9.00; 0.50 | 1 | 6 | 128 | 10 | cpu |",
        "| elsewhere | 2.00; – | quoted |  |  |  |  |  |",
        "| not run yet: one; two |  |  |  |  |  |  |  |",
    ]
    assert {line.count("|") for line in lines} == {9}


def test_the_summary_has_the_setting_that_most_cells_share_too(tmp_path):
    """Longer training of one cell alone would be compared with others' shorter one."""
    for epochs, names in {6: ["vae_1", "iwae_5"], 9: ["vae_1"], 3: ["iwae_5"]}.items():
        folder = tmp_path / "results" / "small" / f"epochs_{epochs}"
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}_seed_0.json").write_text(json.dumps({**SETTING, "nll": 30.0 - epochs, "epochs": epochs}))
    assert summary({"small": RESULT}).splitlines()[3:] == [
        "| VAE 1 | 21.00 | 24.00 | 1 | 6 | 128 | 10 | cpu |",
        "| VAE 1 | 21.00 | 21.00 | 1 | 9 | 128 | 10 | cpu |",
        "| IWAE 5 |  | 24.00 | 1 | 6 | 128 | 10 | cpu |",
    ]


def test_the_readme_takes_the_summary_between_its_marks(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text(f"above\n{tables.BEGIN}| old |\n{tables.END}below\n")
    monkeypatch.setattr(tables, "README", path)
    for _ in range(2):
        tables.write_readme({"small": RESULT})
        assert path.read_text() == f"above\n{tables.BEGIN}{summary({'small': RESULT})}{tables.END}below\n"
    for text in ("no marks\n", f"{tables.BEGIN}and no end\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="has no table to put the new one in"):
            tables.write_readme({"small": RESULT})
        assert path.read_text() == text


def test_a_record_says_with_what_a_cell_ran(tmp_path):
    """Options go before the schedule, and what an evaluation says of itself too."""
    cell = Cell(small, options={"batch_size": 200}, evaluate=lambda *_: {"nll": 1.0, "num_samples": 3})
    with torch.random.fork_rng():
        result = dataclasses.replace(RESULT, cells={"own": cell})
        schedule = dataclasses.replace(RESULT.reduced, epochs=1)
        reproduce("own", result, cells=["own"], seeds=[0], schedule=schedule, budget=10.0, device="cpu")
    record = records(tmp_path / "results")["own_seed_0"]
    assert (record["batch_size"], record["num_samples"], record["nll"]) == (200, 3, 1.0)
    steps = pv.load(tmp_path / "runs" / "reproduce" / "own" / str(schedule) / "own_seed_0").step
    assert steps == 8  # 1437 rows


def test_pictures_are_of_the_finished_cells(tmp_path):
    def pictures(finished):
        (cell,) = finished.values()
        trained, data = cell.trained()
        assert cell.record["cell"] == "VAE 1"
        found = -pv.log_likelihood(trained, data.test, num_samples=10, seed=3).value
        assert found == cell.record["nll"]
        return {"histogram": pv.plots.rows(data.test["x"][None, :2], ["image"])}

    drawn = dataclasses.replace(RESULT, pictures=pictures)
    run(cells=["VAE 1"], seeds=[3])
    (path,) = draw("small", drawn, schedule=RESULT.reduced, seed=3)
    assert path == tmp_path / "results" / "small" / "histogram.png"
    assert path.stat().st_size > 1000
    assert draw("small", RESULT, schedule=RESULT.reduced, seed=3) == []
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="vae_1_seed_3 is no run on this machine; delete the cell's JSON"):
        draw("small", drawn, schedule=RESULT.reduced, seed=3)


def test_fine_tuning_goes_on_from_the_ladder(tmp_path):
    """From one that is there, or that it trains itself."""
    result, schedule = NAMES["ladder_digits"], Schedule(epochs=1, batch_size=500, num_samples=1)
    with torch.random.fork_rng():
        reproduce("l", result, cells=["ladder"], seeds=[1], schedule=schedule, budget=10.0, device="cpu")
    cell, options = result.cells["ladder, fine-tuned"], {"accelerator": "cpu", "validation": False, "progress": False}
    for seed in (1, 2):
        pair, data = runner.made(result, cell, seed=seed, root=None)
        new = {name: tensor.clone() for name, tensor in pair.state_dict().items()}
        out = runner.run_folder("l", schedule, "ladder, fine-tuned", seed)
        found = cell.start(pair, data, schedule, seed=seed, out=out, **options)
        assert found["epochs"] == 1
        assert found["seconds"] > 0
        trained = pv.load(runner.run_folder("l", schedule, "ladder", seed), pair=runner.new_pair(cell, data, seed=3))
        torch.testing.assert_close(pair.state_dict(), trained.pair.state_dict(), rtol=0, atol=0)
        assert not torch.equal(pair.state_dict()["likelihood.head.layer.bias"], new["likelihood.head.layer.bias"])


def test_time_that_is_up_ends_between_cells_and_before_an_evaluation(tmp_path, capsys, monkeypatch):
    calls = []

    def evaluate(pair, run, data, num_samples):
        calls.append(run.epoch)
        return {"nll": 1.0}

    cells = {name: Cell(small, evaluate=evaluate) for name in ("one", "two", "three")}
    result = dataclasses.replace(RESULT, cells=cells)
    short = dataclasses.replace(RESULT.reduced, epochs=1)  # 12 steps, before the first look at the clock
    options = {"cells": list(cells), "seeds": [0], "schedule": short, "device": "cpu"}
    with torch.random.fork_rng():
        reproduce("t", result, budget=0.0, **options)
        assert calls == []  # trained, and no time to evaluate
        assert "out of time in one, seed 0" in capsys.readouterr().out
        reproduce("t", result, budget=10.0, **{**options, "cells": ["one", "two"]})
        assert calls == [1, 1]

        def slow(pair, run, data, num_samples):
            monkeypatch.setattr(runner.time, "monotonic", lambda: 1e9)
            return evaluate(pair, run, data, num_samples)

        cells |= {name: Cell(small, evaluate=slow) for name in ("three", "four")}
        reproduce("t", dataclasses.replace(RESULT, cells=cells), budget=10.0, **{**options, "cells": list(cells)})
    assert calls == [1, 1, 1]
    assert "out of time, 1 to go" in capsys.readouterr().out


def test_a_cell_that_ran_otherwise_is_not_taken_for_done(tmp_path):
    run(cells=["VAE 1"])
    other = dataclasses.replace(RESULT.reduced, lr=3e-4, decay=1.0)
    with pytest.raises(ValueError, match=r"vae_1_seed_0.json ran with {'lr': 0.001, 'decay': 0.1}, here that is {'lr'"):
        run(cells=["VAE 1"], schedule=other)


def test_a_cell_has_its_own_data_or_only_a_papers_figure(tmp_path):
    few = pv.data.load("digits").test
    cells = {
        "half": Cell(small, load=lambda root: pv.data.Data(few, test=few.subset(range(20)))),
        "quoted": Cell(None, paper=1.0),
    }
    reproduced = dataclasses.replace(RESULT, cells=cells, load=lambda root: pytest.fail("that is not its data"))
    with torch.random.fork_rng():
        reproduce("own", reproduced, cells=list(cells), seeds=[0], schedule=RESULT.reduced, budget=10.0, device="cpu")
    estimate = pv.log_likelihood(
        pv.load(tmp_path / "runs" / "reproduce" / "own" / str(RESULT.reduced) / "half_seed_0").pair,
        few.subset(range(20)),
        num_samples=10,
        seed=0,
    )
    assert records(tmp_path / "results")["half_seed_0"]["nll"] == -estimate.value
    assert list(records(tmp_path / "results")) == ["half_seed_0"]


def clusters(tmp_path, *cells, budget=10.0):
    """The digits' cells of a few epochs, and their figures."""
    result = NAMES["vade_digits"]
    schedule = Schedule(epochs=2, batch_size=500, num_samples=1, pretraining=2)
    with torch.random.fork_rng():
        reproduce("v", result, cells=cells, seeds=[1], schedule=schedule, budget=budget, device="cpu")
    return records(tmp_path / "results" / "v")


def test_a_start_that_is_cut_off_goes_on_and_is_part_of_the_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(clustering, "RESTARTS", 1)
    found = clusters(tmp_path, "VaDE plain start")["vade_plain_start_seed_1"]
    assert 10 < found["start"]["acc"] <= 100
    assert found["start"]["epochs"] == 2
    assert found["start"]["seconds"] > 0
    assert [sum(row) for row in found["labels_of_clusters"]] == found["clusters"]
    assert sorted(found["clusters"], reverse=True) == found["clusters"]
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "again")
    monkeypatch.chdir(tmp_path / "results")
    reproduce_cut = clusters(tmp_path / "again", "VaDE plain start", budget=0.0)
    assert reproduce_cut == {}
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "again" / "results")
    again = clusters(tmp_path / "again", "VaDE plain start")["vade_plain_start_seed_1"]
    for record in (found, again):
        del record["start"]["seconds"]
    assert {key: again[key] for key in ("acc", "start", "weights")} == {
        key: found[key] for key in ("acc", "start", "weights")
    }


def test_a_cell_that_was_cut_off_after_its_start_does_not_start_again(tmp_path):
    calls = []

    def start(pair, data, schedule, *, seed, out, **options):
        calls.append(seed)
        with torch.no_grad():
            pair.likelihood.head.layer.bias.fill_(7.0)
        return {"epochs": 3, "seconds": 2.0}

    result = dataclasses.replace(RESULT, cells={"started": Cell(small, start=start)})
    for budget in (0.0, 10.0):
        with torch.random.fork_rng():
            reproduce("s", result, cells=["started"], seeds=[0], schedule=RESULT.reduced, budget=budget, device="cpu")
        assert len(records(tmp_path / "results")) == (budget > 0)
    assert calls == [0]
    assert records(tmp_path / "results")["started_seed_0"]["start"] == {"epochs": 3, "seconds": 2.0}
    kept = pv.load(tmp_path / "runs" / "reproduce" / "s" / str(RESULT.reduced) / "started_seed_0").pair
    assert (kept.likelihood.head.layer.bias > 6).all()


def test_cells_of_codes_and_without_a_pair(tmp_path, monkeypatch):
    monkeypatch.setattr(clustering, "RESTARTS", 1)
    found = clusters(tmp_path, "GMM", "AE+GMM", "AAE+GMM", "VaDE")
    assert len(found) == 4
    for record in found.values():
        assert sum(record["clusters"]) == 1797
        assert 10 < record["acc"] <= 100
    epochs = [found[f"{name}_seed_1"]["epochs"] for name in ("gmm", "ae+gmm", "vade")]
    assert epochs == [0, 4, 2]  # nothing, all at once, and after a start of two


@pytest.mark.parametrize("name", NAMES)
def test_every_table_is_printed_from_the_repository(name, monkeypatch):
    monkeypatch.undo()
    assert NAMES[name].source in table(name, NAMES[name])
    schedule = NAMES[name].reduced
    assert len({runner.record_path(name, schedule, cell, 0) for cell in NAMES[name].cells}) == len(NAMES[name].cells)
    for cell in NAMES[name].cells.values():
        papers = cell.paper if isinstance(cell.paper, dict) else {NAMES[name].figures[0]: cell.paper}
        assert set(papers) <= set(NAMES[name].figures)
        assert all(paper is None or paper > 0 for paper in papers.values())


def test_disentanglement_weighs_as_the_papers_do():
    small = pv.data.Sprites(16, num_scales=2, num_orientations=4, num_positions=4)
    data = pv.data.Data(pv.data.Split(small.tensors()))
    made = {name: cell.objective(data, disentanglement.RESULT.reduced) for name, cell in TABLE.items()}
    assert {name: made[name].beta for name in made if name.startswith("beta-")} == {
        "beta-VAE 2": 2.0,
        "beta-VAE 4": 4.0,
        "beta-VAE 8": 8.0,
        "beta-TCVAE 6": 6.0,
    }
    assert (made["VAE"].beta, made["FactorVAE 35"].gamma, made["capacity"].gamma) == (1.0, 35.0, 1000.0)
    assert made["beta-TCVAE 6"].data_size == len(small) == 384
    capacity = made["capacity"].C
    for epoch, share in [(0, 0.0), (5, 0.5), (10, 1.0), (30, 1.0)]:  # of 30 epochs
        capacity.update(epoch)
        assert float(capacity.value) == pytest.approx(share * 25.0 * math.log(384) / math.log(737_280))


def test_disentanglement_scores_codes_of_all_images(monkeypatch):
    """Codes that are the factors, and a pair that can't tell images apart."""
    small = pv.data.Sprites(16, num_scales=2, num_orientations=4, num_positions=4)
    data = pv.data.Data(pv.data.Split(small.tensors()))
    pair = disentanglement.vae(data)
    run = pv.fit(pair, data, max_epochs=1, batch_size=384, lr=1e-9, seed=0, compile=False, progress=False)
    nothing = disentanglement.scores(pair, run, data, 1)
    assert nothing["elbo"] == pytest.approx(nothing["reconstruction"] - nothing["kl"], abs=1e-3)
    monkeypatch.setattr(disentanglement, "encode", lambda pair, rows: rows["factors"] + 0.0)
    found = disentanglement.scores(pair, run, data, 1)
    for name in ("mig", "mig_without_shape", "factor_vae_score", "beta_vae_score", "sap", "modularity"):
        assert nothing[name] < 0.999 < found[name] < 1.001
    for name in ("disentanglement", "completeness", "informativeness"):
        assert found[name] > 0.999
    monkeypatch.setattr(disentanglement, "encode", lambda pair, rows: rows["factors"][:, 1:] + 0.0)
    without = disentanglement.scores(pair, run, data, 1)
    assert without["mig_without_shape"] == pytest.approx(1.0)
    assert without["mig"] == pytest.approx(0.8)


def test_json_is_what_every_reader_of_it_takes(tmp_path):
    values = {"error": math.nan, "bounds": [1.0, -math.inf], "seeds": (0, 1), "name": "nan"}
    path = reports.write_json(values, tmp_path / "figures.json")
    found = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert found == {"error": None, "bounds": [1.0, None], "seeds": [0, 1], "name": "nan"}
