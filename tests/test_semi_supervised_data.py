"""Labels hidden, and spread evenly over the batches."""

import pytest
import torch

import pyrovae as pv
from pyrovae.data import Data, PartlyLabelled, Split, hide_labels, masked, pixels
from pyrovae.training.preparation import splits


def data(rows=120, classes=4):
    y = torch.arange(rows) % classes
    return Data(
        Split({"x": torch.arange(rows)[:, None] + torch.zeros(rows, 2), "y": y}),
        test=Split({"x": torch.ones(4, 2), "y": y[:4]}),
    )


def test_as_many_labels_of_each_class_stay():
    whole = data()
    few = hide_labels(whole, 14, seed=3)
    y, rows = few.train["y"], few.train["x"][:, 0].long()
    assert y[y >= 0].bincount().tolist() == [4, 4, 3, 3]
    assert torch.equal(y[y >= 0], whole.train["y"][rows[y >= 0]])
    assert set(y[y < 0].tolist()) == {-1}
    assert torch.equal(few.test["y"], whole.test["y"])
    assert torch.equal(whole.train["y"], data().train["y"]), "the data that were passed have changed"


def test_the_seed_decides_which():
    chosen = [
        frozenset((hide_labels(data(), 8, seed=seed).train["y"] >= 0).nonzero()[:, 0].tolist()) for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    counts = sum((hide_labels(data(), 40, seed=s).train["y"] >= 0).long() for s in range(300))
    error = (300 * (1 / 3) * (2 / 3)) ** 0.5  # each row's chance is 1/3
    assert (counts - 100).abs().max() < 4.5 * error


def test_rows_whose_labels_are_unknown_already_stay_so():
    split = Split({"x": torch.zeros(6, 1), "y": torch.tensor([0, 1, -1, 1, 0, -1])})
    y = hide_labels(Data(split), 4).train["y"]
    assert torch.equal(y, split["y"])


@pytest.mark.parametrize("times", [1, 3])
def test_each_batch_has_its_share_and_each_row_comes_as_often_as_it_should(times):
    few = hide_labels(data(), 12, times=times).train
    batches = list(few.batches(20, seed=0, epoch=0))
    counts = {int((y >= 0).sum()) for _, y in batches[:-1]}
    share = 20 * 12 * times / (108 + 12 * times)
    assert max(abs(count - share) for count in counts) < 1
    rows = torch.cat([x for x, _ in batches])[:, 0].long().bincount()
    y = few["y"][:120]
    assert set(rows[y >= 0].tolist()) == {times}
    assert set(rows[y < 0].tolist()) == {1}


def test_an_epoch_is_a_permutation_of_its_own():
    few = hide_labels(data(), 12).train
    first, again, other = (torch.cat([x for x, _ in few.batches(20, seed=0, epoch=e)])[:, 0] for e in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    labelled = [x[y >= 0, 0] for e in (0, 1) for x, y in [next(few.batches(20, seed=0, epoch=e))]]
    assert not torch.equal(*labelled)
    rest = torch.cat([x for x, _ in few.batches(20, seed=0, epoch=0, skip=2)])[:, 0]
    assert torch.equal(first[40:], rest)


def test_rows_keep_their_kind_when_they_move_or_are_selected():
    few = hide_labels(data(), 12).train.to("cpu", torch.float64).select("x")
    assert isinstance(few, PartlyLabelled)
    (x,) = next(few.batches(20, seed=0, epoch=0))
    known = few["y"][x[:, 0].long()] >= 0
    assert int(known.sum()) == 2


@pytest.mark.parametrize("index", [slice(0, 60), range(60), torch.arange(120) < 60, list(range(60))])
def test_some_of_the_rows_have_their_share_of_labels_too(index):
    few = hide_labels(data(), 12, times=2).train
    part = few.subset(index).select("y", "x")
    known = int((part["y"] >= 0).sum())
    counts = [int((y >= 0).sum()) for y, _ in part.batches(10, seed=0, epoch=0)]
    assert max(abs(count - known / 6) for count in counts) < 1
    assert (part.names, part.label) == (("y", "x"), "y")
    unknown = few.subset(few["y"] < 0)
    assert sorted(x[:, 0].tolist() for x, _ in unknown.batches(108, seed=0, epoch=0)) == [unknown["x"][:, 0].tolist()]


def test_masks_and_fixed_transforms_leave_the_share_of_labels():
    def noisy(tensors):
        return {**tensors, "x": tensors["x"] + torch.rand_like(tensors["x"])}

    whole = data()
    whole = Data(Split(whole.train.tensors, transform=noisy), vocabulary=["a", "b"])
    few = masked(hide_labels(whole, 12), pixels())
    assert few.vocabulary == ["a", "b"]
    for train in (few.train, few.train.fixed(0)):
        assert [int((y >= 0).sum()) for _, y, _ in train.batches(20, seed=0, epoch=0)] == [2] * 6


class Both(pv.Pair):
    def model(self, x, y):
        raise NotImplementedError

    guide = model


@pytest.mark.parametrize("prepare", [lambda few: few, lambda few: masked(few, pixels()), "subset", "to"])
def test_no_row_is_on_both_sides_of_a_split(prepare):
    few = hide_labels(data(), 40, times=5)
    if prepare == "subset":
        order = torch.randperm(280, generator=torch.Generator().manual_seed(3))
        few = Data(few.train.subset(order[:200]))
    elif prepare == "to":
        few = Data(few.train.to("cpu", torch.float64))
    else:
        few = prepare(few)
    train, held_out = splits(few, Both(), 0.2)
    left, held = (split["x"][:, 0].long().bincount(minlength=120) for split in (train, held_out))
    whole = few.train["x"][:, 0].long().bincount(minlength=120)
    assert torch.equal(held, held.clamp(max=1)), "a row that is held out comes once"
    assert int(held.sum()) == round(0.2 * int((whole > 0).sum()))
    assert torch.equal(left, torch.where(held > 0, 0, whole)), "the others come as often as they did"
    assert (held_out["y"] >= 0).any()
    known = int((train["y"] >= 0).sum())
    counts = [int((batch[1] >= 0).sum()) for batch in train.batches(10, seed=0, epoch=0)][:-1]
    assert max(abs(count - 10 * known / len(train)) for count in counts) < 1


def test_rows_that_come_once_are_held_out_as_those_of_any_split():
    few = hide_labels(data(), 40)
    for part, plain in zip(splits(few, Both(), 0.2), splits(data(), Both(), 0.2), strict=True):
        assert torch.equal(part["x"], plain["x"])


@pytest.mark.parametrize("times", [1, 3])
def test_no_class_loses_its_last_label_to_validation(times):
    few = hide_labels(data(), 4, times=times)
    for seed in range(40):
        left, held = few.train.divided(0.5, torch.Generator().manual_seed(seed))
        rows, others = (set(split["x"][:, 0].long().tolist()) for split in (left, held))
        assert left["y"][left["y"] >= 0].bincount().tolist() == [times] * 4
        assert len(held) == len(others) == 60
        assert sorted(rows | others) == [*range(120)]
    assert len(few.train.divided(116 / 120)[1]) == 116
    with pytest.raises(ValueError, match=r"117 of 120 rows are to be held out, but 4 are the last labelled ones of"):
        few.train.divided(117 / 120)


def test_of_two_labels_of_a_class_one_is_held_out_as_often_as_either_would_be():
    """In 3 of 4 orders one of the two at least is in the half that is held out."""
    few = hide_labels(data(), 8).train
    held = [few.divided(0.5, torch.Generator().manual_seed(seed))[1]["y"] for seed in range(200)]
    numbers = [int((y >= 0).sum()) for y in held]
    assert max(numbers) == 4
    assert sum(numbers) / 200 == pytest.approx(4 * 0.75, abs=4 * (4 * 0.75 * 0.25 / 200) ** 0.5)


def test_a_run_goes_on_as_if_it_had_not_been_cut_off(tmp_path):
    few = hide_labels(Data(Split({"x": torch.rand(90, 5).round(), "y": torch.arange(90) % 3})), 9, times=2)

    def train(out, epochs, resume=False):
        torch.manual_seed(0)
        pair = pv.M2(5, 2, num_classes=3, hidden=(8,))
        options = {"validation": False, "progress": False, "compile": False, "batch_size": 32}
        return pv.fit(
            pair, few, objective=pv.SemiSupervised(), max_epochs=epochs, seed=1, out=out, resume=resume, **options
        )

    whole = train(tmp_path / "whole", 2)
    train(tmp_path / "parts", 1)
    parts = train(tmp_path / "parts", 2, resume=True)
    pairs = zip(whole.pair.parameters(), parts.pair.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_labels": 3}, "num_labels is 3 for 4 classes, each needs one at least"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"num_labels": 121}, "class 0 has 30 labelled; pass num_labels=120 at most"),
        ({"num_labels": 8, "label": "class"}, "the data have x, y and no 'class'"),
        ({"num_labels": 8, "times": 0}, "times is 0"),
    ],
)
def test_what_cannot_be_hidden_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        hide_labels(data(), **arguments)


def test_labels_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"y has label -100 in row 1; .* -1 is for unknown"):
        PartlyLabelled({"x": torch.zeros(3, 1), "y": torch.tensor([0, -100, 1])})
    with pytest.raises(ValueError, match="y has no label but -1"):
        PartlyLabelled({"x": torch.zeros(3, 1), "y": torch.full((3,), -1)})
    with pytest.raises(ValueError, match="y is float32 of shape"):
        PartlyLabelled({"x": torch.zeros(3, 1), "y": torch.zeros(3)})
    with pytest.raises(TypeError, match="data is Split, Data with rows in memory"):
        hide_labels(data().train, 8)
