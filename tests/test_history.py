"""History: rows and columns, and CSV that gives back every bit."""

import math
import struct

import pytest
import torch

from pyrovae.training.history import History


def bits(values):
    return [struct.pack("<d", value) for value in values]


def test_rows_and_columns_with_back_filled_nan():
    history = History()
    assert (len(history), history.rows, list(history)) == (0, [], [])
    history.append(epoch=1, train_loss=torch.tensor(2.5, requires_grad=True))
    history.append(train_loss=2, validation_loss=3.25)
    history.append(epoch=3)
    nan = math.nan
    assert dict(history).keys() == {"epoch", "train_loss", "validation_loss"}
    for name, want in {"epoch": [1, nan, 3], "train_loss": [2.5, 2, nan], "validation_loss": [nan, 3.25, nan]}.items():
        assert history[name] == pytest.approx(want, nan_ok=True, abs=0)
        assert all(type(value) is float for value in history[name])
    assert len(history) == 3
    assert [row["validation_loss"] for row in history.rows] == pytest.approx([nan, 3.25, nan], nan_ok=True, abs=0)
    assert history.last == pytest.approx({"epoch": 3, "train_loss": nan, "validation_loss": nan}, nan_ok=True, abs=0)
    assert "train_loss" in history
    assert history.get("kl") is None
    history["epoch"].clear()  # a copy: columns stay of equal length
    assert len(history["epoch"]) == 3
    again = History(history.rows)
    assert all(bits(again[name]) == bits(history[name]) for name in history)


def test_csv_gives_back_every_bit(tmp_path):
    odd = [0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e22, 123456789.0, -2.5e-7, math.inf, -math.inf, math.nan, 1 / 3]
    generator = torch.Generator().manual_seed(0)
    odd += torch.randn(200, generator=generator, dtype=torch.float64).mul(37).exp().tolist()
    history = History()
    for epoch, value in enumerate(odd):
        history.append(epoch=epoch, **{"train_log p(x|z)": value})
    path = history.to_csv(tmp_path / "history.csv")
    assert path.read_text().startswith("epoch,train_log p(x|z)\n0.0,0.1\n1.0,-0.0\n2.0,5e-324\n")
    again = History.from_csv(path)
    assert list(again) == list(history)
    assert all(bits(again[name]) == bits(history[name]) for name in history)
    again.append(epoch=1)
    assert len(again.rows) == len(odd) + 1


def test_csv_of_no_rows(tmp_path):
    assert History.from_csv(History().to_csv(tmp_path / "a.csv")).rows == []
    (tmp_path / "b.csv").write_bytes(b"epoch,train_loss\r\n1,2E3\r\n")  # as an editor leaves it
    assert History.from_csv(tmp_path / "b.csv").rows == [{"epoch": 1.0, "train_loss": 2000.0}]
    (tmp_path / "c.csv").write_text("epoch,train_loss\n")
    history = History.from_csv(tmp_path / "c.csv")
    assert (list(history), history.rows) == (["epoch", "train_loss"], [])
    history.append(epoch=1)
    assert math.isnan(history.last["train_loss"])


def test_to_csv_is_atomic(tmp_path, monkeypatch):
    path = History([{"epoch": 1}]).to_csv(tmp_path / "history.csv")

    def full(*names):
        raise OSError("full")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="full"):
            History([{"epoch": 2}]).to_csv(path)
    assert History.from_csv(path)["epoch"] == [1.0]
    assert [file.name for file in tmp_path.iterdir()] == ["history.csv"]
    History([{"epoch": 2}]).to_csv(path)
    assert History.from_csv(path)["epoch"] == [2.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "empty, cut off or not text"),
        (b"epoch", "empty, cut off or not text"),
        (b"\xff\xfe\n", "empty, cut off or not text"),
        (b"epoch,loss\n1,2.5", "stops inside line 2"),
        (b"epoch,loss\n1,2.5\n1\n", "line 3 .* has 1 values, the header 2 names"),
        (b"epoch,loss\n1,2.5,3\n", "line 2 .* has 3 values"),
        (b"epoch,loss\n\n", "line 2 .* has 1 values"),
        (b"epoch,epoch\n1,2\n", "the columns epoch,epoch, wanted each once"),
        (b"epoch,\n1,2\n", "column name ''"),
        (b'epoch,"loss"\n1,2\n', "column name '\"loss\"'"),
        (b"epoch,loss\n1,\n", "line 2 .* has '' for loss"),
        (b"epoch,loss\n1,two\n", "line 2 .* has 'two' for loss, wanted a number"),
        (b"epoch,loss\n1, 2\n", "' 2' for loss"),
        (b"epoch,loss\n1,1_0\n", "'1_0' for loss"),
        (b"epoch,loss\n1,infinity\n", "'infinity' for loss"),
        ("epoch,loss\n1,\u0661\n".encode(), "'\u0661' for loss"),
    ],
)
def test_damaged_csv(text, words, tmp_path):
    (tmp_path / "history.csv").write_bytes(text)
    with pytest.raises(ValueError, match=words):
        History.from_csv(tmp_path / "history.csv")


def test_bad_arguments(tmp_path):
    history = History([{"epoch": 1.0}])
    for values, error, words in [
        ({}, ValueError, "no values"),
        ({"epoch": 2, "loss": "3"}, TypeError, "loss is the str '3', wanted one number"),
        ({"epoch": 2, "loss": None}, TypeError, "loss is the NoneType"),
        ({"epoch": 2, "loss": torch.ones(2)}, TypeError, "loss is the Tensor"),
        ({"epoch": 2, "a,b": 1}, ValueError, "column name 'a,b'"),
        ({"epoch": 2, "a\nb": 1}, ValueError, r"column name 'a\\nb'"),
        ({"epoch": 2, "": 1}, ValueError, "column name ''"),
    ]:
        with pytest.raises(error, match=words):
            history.append(**values)
        assert history.rows == [{"epoch": 1.0}]  # a row is kept whole or not at all
    with pytest.raises(KeyError, match="no column 'loss'; it has epoch"):
        history["loss"]
    with pytest.raises(ValueError, match="no rows"):
        _ = History().last
    with pytest.raises(FileNotFoundError, match="in no existing folder"):
        history.to_csv(tmp_path / "absent" / "history.csv")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        History.from_csv(tmp_path)


def test_repr_and_plot():
    history = History()
    assert repr(history) == "History of 0 rows"
    history.append(epoch=1, train_loss=86.7612345)
    assert repr(history) == "History of 1 row, the last: epoch 1, train_loss 86.7612"
    history.append(epoch=2, train_loss=80.0)
    ax = history.plot()
    assert ax.lines[0].get_xydata().tolist() == [[1.0, 86.7612345], [2.0, 80.0]]
    assert history.plot(ax) is ax
