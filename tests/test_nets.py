import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, relu
from torch.utils.flop_counter import FlopCounterMode

from pyrovae.nets import MLP, BatchNorm, ConvDecoder, ConvEncoder, Head, MultiLinear, MultiMLP, as_shape

NETS = {  # name: (network, shape of one input, shape of one output)
    "mlp": (lambda: MLP((1, 4, 6), hidden=(7, 5)), (1, 4, 6), (5,)),
    "mlp of a scalar": (lambda: MLP((), hidden=(5,), activation=nn.Softplus), (), (5,)),
    "mlp without hidden layers": (lambda: MLP(6, hidden=()), (6,), (6,)),
    "conv encoder": (lambda: ConvEncoder((2, 7, 12), channels=(3, 4)), (2, 7, 12), (4 * 2 * 3,)),
    "conv decoder": (lambda: ConvDecoder(3, (2, 7, 12), channels=(4, 5)), (3,), (5, 7, 12)),
}
HEADS = {
    "flat": (lambda: Head(6, (2, 3), num_parameters=2), (6,), (2, 3)),
    "pointwise": (lambda: Head((4, 3, 5), (2, 3, 5), num_parameters=3), (4, 3, 5), (2, 3, 5)),
    "other sizes": (lambda: Head((4, 3, 5), (2, 5, 3)), (4, 3, 5), (2, 5, 3)),
    "scalar event": (lambda: Head(6, ()), (6,), ()),
}


@pytest.fixture(autouse=True)
def _seeded_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("leading", [(), (5,), (3, 5), (3, 1, 5), (0,)])
@pytest.mark.parametrize("name", NETS)
def test_any_leading_dims(name, leading):
    build, event_shape, feature_shape = NETS[name]
    net = build()
    assert net.feature_shape == feature_shape
    assert net(torch.randn((*leading, *event_shape))).shape == (*leading, *feature_shape)


@pytest.mark.parametrize("name", [*NETS, *HEADS])
def test_particles_equal_a_loop_over_data(name):
    build, event_shape, _ = (NETS | HEADS)[name]
    net = build()
    x = torch.randn(3, 2, *event_shape)
    out = net(x)
    for k in range(3):
        for b in range(2):
            one = net(x[k, b])
            pairs = zip(out, one, strict=True) if isinstance(net, Head) else [(out, one)]
            for together, alone in pairs:
                torch.testing.assert_close(together[k, b], alone)


@pytest.mark.parametrize("name", [name for name in (NETS | HEADS) if name != "mlp without hidden layers"])
def test_every_parameter_has_a_gradient(name):
    build, event_shape, _ = (NETS | HEADS)[name]
    net = build()
    out = net(torch.randn(4, *event_shape))
    (torch.stack(out) if isinstance(net, Head) else out).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("name", [*NETS, *HEADS])
def test_export_with_any_batch_size(name):
    build, event_shape, _ = (NETS | HEADS)[name]
    net = build()
    exported = torch.export.export(
        net, (torch.randn(4, *event_shape),), dynamic_shapes=({0: torch.export.Dim("B", min=2)},)
    )
    x = torch.randn(9, *event_shape)
    torch.testing.assert_close(exported.module()(x), net(x))


def test_mlp_is_affine_maps_and_activations():
    net = MLP((2, 3), hidden=(4, 5))
    x = torch.randn(7, 2, 3)
    h = x.flatten(1)
    for layer in (net.layers[0], net.layers[2]):
        h = torch.tanh(h @ layer.weight.T + layer.bias)
    torch.testing.assert_close(net(x), h)
    x = torch.randn(7, 6)
    assert torch.equal(MLP(6, hidden=())(x), x)


def test_batch_norm_takes_statistics_over_all_leading_dims():
    norm, plain = BatchNorm(3), nn.BatchNorm1d(3)
    x = 2 * torch.randn(4, 5, 3) + 5
    out = norm(x)
    torch.testing.assert_close(out, plain(x.flatten(0, 1)).unflatten(0, (4, 5)))
    torch.testing.assert_close(out.mean((0, 1)), torch.zeros(3))
    norm.eval(), plain.eval()
    torch.testing.assert_close(norm(x[0]), plain(x[0]))
    assert norm.running_mean.abs().min() > 0.1


def test_batch_norm_of_one_row_is_refused_in_training():
    net = MLP(2, hidden=(3,), batch_norm=True)
    with pytest.raises(ValueError, match="x has one row, which batch norm can't train on"):
        net(torch.randn(1, 2))
    assert net.eval()(torch.randn(1, 2)).shape == (1, 3)


def test_mlp_with_batch_norm_is_affine_maps_norms_and_activations():
    net = MLP((2, 3), hidden=(4, 5), batch_norm=True)
    assert [type(layer) for layer in net.layers] == 2 * [nn.Linear, BatchNorm, nn.Tanh]
    x = torch.randn(7, 2, 3)
    h = x.flatten(1)
    for layer in (net.layers[0], net.layers[3]):
        h = h @ layer.weight.T
        h = torch.tanh((h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt())
    torch.testing.assert_close(net(x), h)


# Several inputs: of each, its leading dims; and of all, those of the sum.
BROADCASTS = {
    "rows": ([(5,), (5,)], (5,)),
    "one datum": ([(), ()], ()),
    "labels enumerated": ([(5,), (3, 1)], (3, 5)),
    "labels enumerated beside particles": ([(5,), (3, 1, 1), (2, 5)], (3, 2, 5)),
    "the widest first": ([(3, 5), (5,), ()], (3, 5)),
    "one input": ([(3, 5)], (3, 5)),
    "no rows": ([(0,), (3, 1)], (3, 0)),
}
LENGTHS = (4, 3, 2)


def joined(inputs, leading):
    return torch.cat([x.expand(*leading, x.shape[-1]) for x in inputs], -1)


def with_gradients(net, parameters, inputs, *called_with):
    out = net(*called_with)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out, *torch.autograd.grad((out.tanh() * weights).sum(), [*parameters, *inputs])]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", BROADCASTS)
def test_multi_linear_is_the_linear_map_of_the_concatenation(name, bias):
    each, leading = BROADCASTS[name]
    lengths = LENGTHS[: len(each)]
    torch.manual_seed(3)
    joint = nn.Linear(sum(lengths), 6, bias=bias)
    torch.manual_seed(3)
    multi = MultiLinear(lengths, 6, bias=bias)
    assert multi.state_dict().keys() == joint.state_dict().keys()
    assert all(torch.equal(value, joint.state_dict()[key]) for key, value in multi.state_dict().items())
    inputs = [torch.randn(*dims, length, requires_grad=True) for dims, length in zip(each, lengths, strict=True)]
    want = with_gradients(joint, joint.parameters(), inputs, joined(inputs, leading))
    for got, value in zip(with_gradients(multi, multi.parameters(), inputs, *inputs), want, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BROADCASTS)
def test_multi_mlp_is_the_mlp_of_the_concatenation(name):
    each, leading = BROADCASTS[name]
    shapes = ((2, 2), 3, (2, 1))[: len(each)]
    torch.manual_seed(3)
    joint = MLP(sum(LENGTHS[: len(each)]), hidden=(6, 5), activation=nn.Softplus)
    torch.manual_seed(3)
    multi = MultiMLP(shapes, hidden=(6, 5), activation=nn.Softplus)
    assert multi.feature_shape == joint.feature_shape
    assert multi.state_dict().keys() == joint.state_dict().keys()
    assert all(torch.equal(value, joint.state_dict()[key]) for key, value in multi.state_dict().items())
    inputs = [
        torch.randn(*dims, *as_shape(shape), requires_grad=True) for dims, shape in zip(each, shapes, strict=True)
    ]
    flat = [x.flatten(len(dims)) for x, dims in zip(inputs, each, strict=True)]
    want = with_gradients(joint, joint.parameters(), inputs, joined(flat, leading))
    for got, value in zip(with_gradients(multi, multi.parameters(), inputs, *inputs), want, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-12, atol=1e-12)


def test_an_input_without_the_enumerated_dim_passes_once():
    """Forward, and backward for the weights: 2 flops for each row, input and output of each input's own rows."""
    labels, rows, hidden = 10, 7, 20
    x, y = torch.randn(rows, 1, 8, 8), torch.eye(labels).unsqueeze(-2)
    net = MultiMLP([(1, 8, 8), labels], hidden=(hidden,))
    with FlopCounterMode(display=False) as forward:
        out = net(x, y)
    assert forward.get_total_flops() == 2 * hidden * (rows * 64 + labels * labels)
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    assert backward.get_total_flops() == forward.get_total_flops()


def test_multi_mlp_exports_with_any_batch_size():
    net = MultiMLP([(1, 4, 6), 3], hidden=(7, 5))
    batch = {0: torch.export.Dim("B", min=2)}
    for y, of_y in ((torch.randn(4, 3), batch), (torch.eye(3).unsqueeze(-2), None)):
        exported = torch.export.export(net, (torch.randn(4, 1, 4, 6), y), dynamic_shapes=((batch, of_y),))
        x = torch.randn(9, 1, 4, 6)
        y = torch.randn(9, 3) if of_y else y
        torch.testing.assert_close(exported.module()(x, y), net(x, y))


def test_conv_encoder_is_strided_convolutions():
    net = ConvEncoder((2, 9, 8), channels=(3, 4))
    x = torch.randn(5, 2, 9, 8)
    h = x
    for layer in (net.layers[0], net.layers[2]):
        h = relu(conv2d(h, layer.weight, layer.bias, stride=2, padding=1))
    torch.testing.assert_close(net(x), h.flatten(1))


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (28, 28), (32, 32), (8, 12), (1, 5)])
@pytest.mark.parametrize("channels", [(4,), (4, 3), (5, 4, 3)])
def test_conv_decoder_mirrors_the_encoder(size, channels):
    encoder, decoder = ConvEncoder((2, *size), channels[::-1]), ConvDecoder(6, (2, *size), channels)
    assert decoder(torch.randn(3, 6)).shape == (3, channels[-1], *size)
    assert np.prod(decoder.grid_shape) == encoder(torch.randn(3, 2, *size)).shape[-1]


def test_conv_decoder_is_the_transpose_of_strided_convolutions():
    # <conv(u), v> = <u, conv^T(v)> without biases, odd and even sizes alike.
    decoder = ConvDecoder(6, (1, 7, 10), (4, 3), activation=nn.Identity)
    v = torch.randn(1, 4, 2, 3)
    for layer in (decoder.layers[0], decoder.layers[2]):
        out = layer(v) - layer.bias[:, None, None]
        u = torch.randn_like(out)
        torch.testing.assert_close((conv2d(u, layer.weight, stride=2, padding=1) * v).sum(), (u * out).sum())
        v = out


def test_head_gives_each_parameter_its_own_map():
    flat = Head(6, (2, 3), num_parameters=2)
    h = torch.randn(5, 6)
    first, second = flat(h)
    weight, bias = flat.layer.weight, flat.layer.bias
    torch.testing.assert_close(first, (h @ weight[:6].T + bias[:6]).reshape(5, 2, 3))
    torch.testing.assert_close(second, (h @ weight[6:].T + bias[6:]).reshape(5, 2, 3))

    pointwise = Head((4, 3, 5), (2, 3, 5), num_parameters=2)
    h = torch.randn(6, 4, 3, 5)
    first, second = pointwise(h)
    weight, bias = pointwise.layer.weight[:, :, 0, 0], pointwise.layer.bias[:, None, None]
    torch.testing.assert_close(first, torch.einsum("cd,bdhw->bchw", weight[:2], h) + bias[:2])
    torch.testing.assert_close(second, torch.einsum("cd,bdhw->bchw", weight[2:], h) + bias[2:])


def test_construction_draws_from_the_callers_generator_only():
    torch.manual_seed(3)
    first = ConvDecoder(3, (1, 8, 8))
    torch.manual_seed(3)
    second = ConvDecoder(3, (1, 8, 8))
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_shapes():
    assert as_shape(np.int64(3)) == (3,)
    assert as_shape(torch.Size([2, 3])) == (2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MLP((1, 0)), ValueError, r"event_shape is \(1, 0\), expected sizes of at least 1"),
        (lambda: MLP(2.5), TypeError, r"event_shape is 2.5, expected an int"),
        (lambda: MLP(True), TypeError, r"event_shape is True, expected an int"),
        (lambda: MLP(3, hidden=(200, -1)), ValueError, r"hidden is \(200, -1\)"),
        (lambda: ConvEncoder((28, 28)), ValueError, r"event_shape is \(28, 28\), a convolution expects \(C, H, W\)"),
        (lambda: ConvEncoder((1, 28, 28), channels=(0,)), ValueError, r"channels is \(0,\)"),
        (lambda: ConvEncoder((1, 28, 28), channels=()), ValueError, r"channels is empty"),
        (lambda: ConvDecoder(0, (1, 28, 28)), ValueError, r"latent_dim is 0, expected sizes of at least 1"),
        (lambda: ConvDecoder(3, 28), ValueError, r"event_shape is \(28,\), a convolution expects"),
        (lambda: Head(3, 4, num_parameters=0), ValueError, r"num_parameters is 0"),
        (
            lambda: MLP((1, 8, 8))(torch.zeros(5, 1, 8, 7)),
            ValueError,
            r"x has event shape \(1, 8, 7\), the network expects \(1, 8, 8\); pass event_shape=\(1, 8, 7\) to",
        ),
        (lambda: ConvEncoder((1, 8, 8))(torch.zeros(8, 8)), ValueError, r"x has event shape \(8, 8\), the network"),
        (lambda: ConvDecoder(3, (1, 8, 8))(torch.zeros(5, 4)), ValueError, r"z has event shape \(4,\), .*latent_dim="),
        (
            lambda: Head((3, 2), 4)(torch.zeros(5, 4)),
            ValueError,
            r"features has event shape \(5, 4\), .*feature_shape=",
        ),
        (lambda: MultiLinear((), 4), ValueError, r"in_features is empty, expected the length of each input"),
        (lambda: MultiLinear((3, 0), 4), ValueError, r"in_features is \(3, 0\), expected sizes of at least 1"),
        (lambda: MultiLinear((3, 2.0), 4), TypeError, r"in_features is \(3, 2.0\), expected an int or a sequence"),
        (lambda: MultiLinear((3, 2), 0), ValueError, r"out_features is 0"),
        (
            lambda: MultiLinear((3, 2), 4)(torch.zeros(5, 3)),
            ValueError,
            r"the layer got 1 inputs, it has weights for 2 of lengths \(3, 2\); call it with one tensor for each",
        ),
        (
            lambda: MultiLinear((3, 2), 4)(torch.zeros(5, 3), torch.zeros(5, 3)),
            ValueError,
            r"input 1 has event shape \(3,\), the network expects \(2,\); pass in_features\[1\]=\(3,\) to",
        ),
        (
            lambda: MultiLinear((3, 2), 4)(torch.zeros(5, 3), torch.zeros(10, 2)),
            ValueError,
            r"the inputs have leading dims \(5,\), \(10,\), which do not broadcast; pass x \(B, D\) with",
        ),
        (lambda: MultiMLP((), (5,)), ValueError, r"event_shapes is \(\), expected a shape for each input"),
        (lambda: MultiMLP(3, (5,)), ValueError, r"event_shapes is 3, expected a shape for each input"),
        (lambda: MultiMLP([3, (1, 0)]), ValueError, r"event_shapes\[1\] is \(1, 0\), expected sizes of at least 1"),
        (lambda: MultiMLP([3, 2], hidden=()), ValueError, r"hidden is empty, but the inputs meet in the first hidden"),
        (
            lambda: MultiMLP([3, 2])(torch.zeros(5, 3)),
            ValueError,
            r"the network got 1 inputs, it was made for 2 of event shapes \(\(3,\), \(2,\)\); call it with one",
        ),
        (
            lambda: MultiMLP([3, (1, 2)])(torch.zeros(5, 3), torch.zeros(5, 2)),
            ValueError,
            r"input 1 has event shape \(5, 2\), the network expects \(1, 2\); pass event_shapes\[1\]=",
        ),
    ],
)
def test_bad_sizes_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
