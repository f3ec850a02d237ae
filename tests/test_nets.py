import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, relu

from pyrovae.nets import MLP, ConvDecoder, ConvEncoder, Head, as_shape

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
    ],
)
def test_bad_sizes_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
