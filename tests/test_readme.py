"""The README says what the repository does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.reproduce.__main__ import NAMES
from examples.reproduce.tables import BEGIN, END, summary
from pyrovae import models

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_own_pair_is_the_example():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    source = (ROOT / "examples" / "own_pair.py").read_text()
    assert any(block == source for block in blocks)


def test_the_own_pair_runs():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_pair.py"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    values = [float(value) for value in re.findall(r"(-\d+\.\d+) \+- ", done.stdout)]
    elbo, log_likelihood = values
    assert -160 < elbo < log_likelihood < -125  # nats; -145.7 and -141.6 with seed 0
    assert "posterior predictive, conservative" in done.stdout


@pytest.mark.parametrize("name", models.__all__)
def test_every_pair_has_a_row(name):
    assert re.search(rf"^\| {name} \|", README, flags=re.MULTILINE)


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_reproduced_figures_are_those_of_the_results():
    """The table is what `python -m examples.reproduce --readme` writes."""
    assert f"{BEGIN}{summary(NAMES)}{END}" in README


def test_no_placeholder_is_left():
    assert "@@" not in README
