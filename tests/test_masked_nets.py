"""Networks of x and a mask: partial convolution against a plain one, a loop over windows and a case by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from pyrovae.nets import MLP, ConvEncoder, MaskedConvEncoder, MaskedMLP, PartialConv2d, PartialConvEncoder

ENCODERS = {
    "masked mlp": (lambda: MaskedMLP((2, 7, 6), hidden=(5, 4)), (2, 7, 6)),
    "masked mlp of a scalar": (lambda: MaskedMLP((), hidden=(5,)), ()),
    "masked conv encoder": (lambda: MaskedConvEncoder((2, 7, 6), channels=(3, 4)), (2, 7, 6)),
    "partial conv encoder": (lambda: PartialConvEncoder((2, 7, 6), channels=(3, 4)), (2, 7, 6)),
}


@pytest.fixture(autouse=True)
def _seeded_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize(
    ("stride", "padding", "kernel"),
    [(1, 0, 3), (2, 1, 3), (1, 1, (2, 3)), (2, 2, 5), (1, 2, 3), (1, (0, 2), 3), (2, (1, 2), (2, 3))],
)
def test_a_full_mask_is_the_plain_convolution(stride, padding, kernel):
    """Bit for bit, at the border too."""
    layer = PartialConv2d(3, 4, kernel, stride=stride, padding=padding)
    x = torch.randn(5, 3, 7, 6)
    out, mask = layer(x, torch.ones_like(x, dtype=torch.bool))
    plain = conv2d(x, layer.weight, None, stride, padding) + layer.bias[:, None, None]
    assert torch.equal(out, plain)
    assert mask.shape == out.shape
    assert mask.all()


def test_partial_convolution_by_hand():
    """One channel, 2 x 2 windows in a 3 x 3 image, weights 1 2 3 4 and bias 10; only x = 5, 7 at two places seen."""
    layer = PartialConv2d(1, 1, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
        layer.bias.fill_(10.0)
    x = torch.tensor([[[[5.0, math.nan, math.nan], [7.0, math.nan, math.nan], [math.nan, math.nan, math.nan]]]])
    out, mask = layer(x, ~x.isnan())
    # Top left: (1 * 5 + 3 * 7) * 4 / 2 + 10; bottom left: 1 * 7 * 4 / 1 + 10; the right windows see nothing.
    assert torch.equal(out, torch.tensor([[[[62.0, 0.0], [38.0, 0.0]]]]))
    assert torch.equal(mask, torch.tensor([[[[True, False], [True, False]]]]))


def test_partial_convolution_is_equations_1_and_2_window_by_window():
    layer = PartialConv2d(2, 3, 3, stride=2, padding=1)
    x, mask = torch.randn(2, 2, 5, 6), torch.rand(2, 2, 5, 6) < 0.2
    out, new_mask = layer(x, mask)
    for n in range(2):
        for i, top in enumerate(range(-1, 5, 2)):
            for j, left in enumerate(range(-1, 5, 2)):
                ones, seen, product = 0, 0, torch.zeros(3)
                for c in range(2):
                    for a in range(3):
                        for b in range(3):
                            row, column = top + a, left + b
                            if 0 <= row < 5 and 0 <= column < 6:
                                ones += 1
                                if mask[n, c, row, column]:
                                    seen += 1
                                    product = product + layer.weight[:, c, a, b] * x[n, c, row, column]
                want = product * ones / seen + layer.bias if seen else torch.zeros(3)
                torch.testing.assert_close(out[n, :, i, j], want)
                assert new_mask[n, :, i, j].tolist() == [seen > 0] * 3
    assert not new_mask.all(), "every window saw something, so that the test tells less"


def test_a_full_mask_gives_the_plain_encoders_features():
    partial, plain = PartialConvEncoder((2, 7, 6), channels=(3, 4)), ConvEncoder((2, 7, 6), channels=(3, 4))
    for ours, theirs in zip(partial.layers, plain.layers[::2], strict=True):
        theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 2, 7, 6)
    torch.testing.assert_close(partial(x, torch.ones_like(x)), plain(x), rtol=1e-13, atol=1e-14)
    assert partial.feature_shape == plain.feature_shape


def test_masked_encoders_are_the_plain_ones_of_zeros_and_mask():
    x, mask = torch.randn(5, 2, 7, 6), torch.rand(5, 2, 7, 6) < 0.5
    mlp, conv = MaskedMLP((2, 7, 6), hidden=(4,)), MaskedConvEncoder((2, 7, 6), channels=(3,))
    plain_mlp, plain_conv = MLP((2, 2, 7, 6), hidden=(4,)), ConvEncoder((4, 7, 6), channels=(3,))
    plain_mlp.load_state_dict(mlp.state_dict())
    plain_conv.load_state_dict(conv.state_dict())
    torch.testing.assert_close(mlp(x, mask), plain_mlp(torch.stack([x * mask, 1.0 * mask], 1)))
    torch.testing.assert_close(conv(x, mask), plain_conv(torch.cat([x * mask, 1.0 * mask], 1)))


@pytest.mark.parametrize("leading", [(), (5,), (3, 5), (3, 1, 5), (0,)])
@pytest.mark.parametrize("name", ENCODERS)
def test_any_leading_dims_equal_a_loop(name, leading):
    build, event = ENCODERS[name]
    net = build()
    x, mask = torch.randn((*leading, *event)), torch.rand((*leading, *event)) < 0.5
    out = net(x, mask)
    assert out.shape == (*leading, *net.feature_shape)
    flat = out.reshape(-1, *net.feature_shape)
    for row, (one, its) in enumerate(zip(x.reshape(-1, *event), mask.reshape(-1, *event), strict=True)):
        torch.testing.assert_close(flat[row], net(one, its))


@pytest.mark.parametrize("name", ENCODERS)
def test_what_is_missing_is_never_read(name):
    """Another value there, NaN too, changes no bit; the gradient in x is exactly zero there and not elsewhere."""
    build, event = ENCODERS[name]
    net = build()
    x, mask = torch.randn(6, *event), torch.rand(6, *event) < 0.5
    assert torch.equal(net(x, mask), net(x.masked_fill(~mask, math.nan), mask))
    x.requires_grad_()
    net(x, mask).sum().backward()
    assert not x.grad[~mask].any()
    assert x.grad[mask].any()


@pytest.mark.parametrize("name", ENCODERS)
def test_every_parameter_has_a_gradient_and_export_takes_any_batch(name):
    build, event = ENCODERS[name]
    net = build()
    x, mask = torch.randn(9, *event), torch.rand(9, *event) < 0.5
    net(x, mask).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    dims = {0: torch.export.Dim("B", min=2)}
    exported = torch.export.export(net, (x[:4], mask[:4]), dynamic_shapes=(dims, dims))
    torch.testing.assert_close(exported.module()(x, mask), net(x, mask))


def test_counts_are_exact_under_autocast():
    """100 channels of 3 x 3 make 900, which bfloat16 has not: a full mask must still change nothing."""
    layer = PartialConv2d(100, 2, 3).float()
    x = torch.randn(2, 100, 5, 5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = layer(x, torch.ones_like(x))
        plain = nn.functional.conv2d(x, layer.weight) + layer.bias[:, None, None]
    assert torch.equal(out.float(), plain.float())


@pytest.mark.parametrize("name", ENCODERS)
def test_shapes_are_refused(name):
    build, event = ENCODERS[name]
    net = build()
    x = torch.zeros(4, *event)
    with pytest.raises(ValueError, match=r"mask has shape \(3,.*\), x \(4,.*pass a mask with one element for each"):
        net(x, torch.ones(3, *event))
    if event:
        with pytest.raises(ValueError, match="x has event shape"):
            net(x[..., 1:], x[..., 1:])
