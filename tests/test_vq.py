"""Vector quantisation: codebooks, bounds against sums over all grids, priors over codes."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian
from pyro.infer import Trace_ELBO
from test_compiled import same

import pyrovae as pv
from pyrovae.distributions import AutoregressiveCategorical, NearestCode
from pyrovae.evaluation import code_perplexity, encode, generate, perplexity_of
from pyrovae.models.base import structure
from pyrovae.nets import Codebook, EMACodebook
from pyrovae.priors import PixelCNN, UniformCodes
from pyrovae.training.step import Step

BOOKS = [Codebook, EMACodebook]


@pytest.fixture(autouse=True)
def seeded():
    pyro.set_rng_seed(0)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def bits(*shape):
    return (torch.rand(*shape, dtype=torch.float64) < 0.4).double()


def tiny(prior=UniformCodes, **options):
    """Two places of three codes: nine grids."""
    options = {"num_codes": 3, "code_dim": 2, "grid_shape": 2, "hidden": (8,), "prior": prior, **options}
    return pv.VQVAE(5, **options).double().eval()


def all_grids(*shape, num_codes):
    grids = itertools.product(range(num_codes), repeat=math.prod(shape))
    return torch.tensor(list(grids)).reshape(-1, *shape)


def log_evidence(vq, x):
    """log sum_k p(k) p(x | e_k), and each grid's log p(k), log p(x | e_k)."""
    grids = all_grids(*vq.grid_shape, num_codes=vq.num_codes)
    log_prior = vq.prior().log_prob(grids)
    log_x = vq.likelihood(vq.decoder(vq.embed(grids))).log_prob(x[:, None])  # (B, grids)
    return torch.logsumexp(log_prior + log_x, -1), grids, log_prior, log_x


@pytest.mark.parametrize("cls", BOOKS)
def test_the_nearest_code_is_that_of_brute_force(cls):
    book, h = cls(7, 3).double().eval(), double(4, 5, 3)
    vectors = book.vectors.tolist()
    want = [min(range(7), key=lambda j: math.dist(row, vectors[j])) for row in h.reshape(-1, 3).tolist()]
    assert book(h).flatten().tolist() == want
    assert torch.equal(book.embed(book(h))[1, 2], book.vectors[book(h)[1, 2]])
    assert len(set(want)) > 3


def test_the_running_mean_is_the_formula():
    """Eqs. 6 to 8 by hand, over two steps of other sizes; and nothing moves in evaluation mode."""
    book = EMACodebook(2, 1, decay=0.9, revive_below=0.0).double()
    book.sums.copy_(torch.tensor([[0.0], [5.0]]) / 2)  # e = 0, 5
    n, m = [0.5, 0.5], [0.0, 2.5]
    for batch in ([1.0, 2.0, 4.0, 6.0], [0.5, 7.0]):
        e = [m[0] / n[0], m[1] / n[1]]
        k = [0 if abs(h - e[0]) <= abs(h - e[1]) else 1 for h in batch]
        for code in (0, 1):
            mine = [h for h, owner in zip(batch, k, strict=True) if owner == code]
            n[code] = 0.9 * n[code] + 0.1 * len(mine) / len(batch)
            m[code] = 0.9 * m[code] + 0.1 * sum(mine) / len(batch)
        given = book(torch.tensor(batch, dtype=torch.float64)[:, None])
        after = [m[0] / n[0], m[1] / n[1]]
        assert given.tolist() == [0 if abs(h - after[0]) <= abs(h - after[1]) else 1 for h in batch]
        assert book.vectors.flatten().tolist() == pytest.approx(after, abs=1e-14)
    before = {name: value.clone() for name, value in book.state_dict().items()}
    book.eval()(double(9, 1))
    assert all(torch.equal(value, before[name]) for name, value in book.state_dict().items())


@pytest.mark.parametrize("cls", BOOKS)
def test_codes_that_nobody_uses_restart_in_the_batch(cls):
    book, h = cls(3, 2, decay=0.5, revive_below=0.5).double(), double(20, 2)
    start = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, -100.0]], dtype=torch.float64)
    book.initialise_(start)
    order = book.vectors[:, 0].argmax(), book.vectors[:, 1].argmin()
    book(h)
    book(h)
    assert all(abs(book.vectors[far].abs().max() - 100) < 1e-9 for far in order)  # shares 1/3, 1/6, now 1/12
    assert book(h).unique().numel() > 1
    assert all((h - book.vectors[far]).abs().sum(-1).min() < 3 for far in order)
    assert book.usage.sum() > 0.9
    never = cls(3, 2, decay=0.5, revive_below=0.0).double().initialise_(start)
    for _ in range(5):
        never(h)
    assert (never.vectors.abs().max(-1).values > 99).sum() == 2


@pytest.mark.parametrize(("decay", "calls"), [(0.0, 3), (0.5, 3000), (0.9, 3000)])
def test_codes_that_nobody_uses_stay_where_they_are(decay, calls):
    """Their shares would decay to 0, and 0 / 0 be the code that argmin gives to all; a late vector still moves them."""
    book, h = EMACodebook(3, 1, decay=decay, revive_below=0.0), torch.tensor([[1.0], [2.0]])
    book.sums.copy_(torch.tensor([[0.0], [50.3], [-70.7]]) / 3)
    for _ in range(calls):
        k = book(h)
    assert k.tolist() == [0, 0]
    assert book.vectors.flatten().tolist() == pytest.approx([1.5, 50.3, -70.7], rel=1e-5)
    book(torch.tensor([[1.5], [60.0]]))
    assert book.vectors.flatten().tolist() == pytest.approx([1.5, 60.0, -70.7], rel=1e-5)


@pytest.mark.parametrize("cls", BOOKS)
def test_a_new_codebook_starts_at_the_first_batch(cls):
    book, h = cls(4, 2, decay=0.0 if cls is Codebook else 0.99).double(), 100 + double(20, 2)
    assert book.vectors.abs().max() < 10
    assert book.eval()(h).shape == (20,)
    book.train()(h)
    assert (book.vectors[:, None] - h).abs().sum(-1).min(-1).values.max() < 1.0
    started = cls(4, 2).double().initialise_(h - 100)
    started.train()(h)
    assert started.vectors.mean() < 90


def test_a_revived_code_is_one_of_the_vectors_exactly():
    book, h = Codebook(4, 2, revive_below=0.5).double(), double(20, 2)
    book.usage.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    kept = book.vectors[0].clone()
    book(h)
    assert torch.equal(book.vectors[0], kept)
    assert (book.vectors[1:, None] - h).abs().sum(-1).min(-1).values.max() < 1e-15


def test_the_straight_through_gradient_is_that_of_the_code():
    """d log p(x | z) / dz at z = e_k, by hand for a linear Gaussian decoder: to h, and to the codes that are used."""
    weight, x = double(3, 2), double(4, 3)
    h, e = double(4, 2).requires_grad_(), double(5, 2).requires_grad_()
    k = torch.tensor([1, 4, 4, 0])
    z = NearestCode(k[:, None], h[..., None], e[k][..., None], event_dim=1).straight_through().squeeze(-1)
    assert torch.equal(z, e[k])
    dist.Normal(z @ weight.T, 0.5).log_prob(x).sum().backward()
    by_hand = (x - e[k].detach() @ weight.T) @ weight / 0.25
    assert torch.allclose(h.grad, by_hand, rtol=1e-12)
    of_codes = torch.zeros(5, 2, dtype=torch.float64).index_add(0, k, by_hand)
    assert torch.allclose(e.grad, of_codes, rtol=1e-12)


@pytest.mark.parametrize("cls", BOOKS)
def test_commitment_is_the_elbo_less_the_distances(cls):
    vq, x = tiny(codebook=cls), bits(6, 5)
    q = vq.codes_of(x)
    squares = (q.encoded - q.code).square().flatten(1).sum(-1).mean()
    loss = Step(vq, pv.Commitment(0.3, codebook=0.7), structure(vq, x))(x)
    plain = Step(vq, pv.ELBO(), structure(vq, x))(x)
    assert loss.item() == pytest.approx((plain + squares).item(), rel=1e-12)
    gradients = {}
    for name, objective in (("plain", pv.ELBO()), ("committed", pv.Commitment(0.3, codebook=0.7))):
        vq.zero_grad()
        Step(vq, objective, structure(vq, x)).backward(x)
        gradients[name] = {key: p.grad.clone() for key, p in vq.named_parameters()}
    vq.zero_grad()
    (0.3 * (q.encoded - q.code.detach()).square().flatten(1).sum(-1).mean()).backward()
    for key in ("head.layer.weight", "encoder.layers.0.weight"):
        more = gradients["committed"][key] - gradients["plain"][key]
        assert torch.allclose(more, dict(vq.named_parameters())[key].grad, atol=1e-12)
        assert more.any()
    if cls is Codebook:  # 2 x 0.7 (e - h) of each vector's share
        want = torch.zeros_like(vq.codebook.weight)
        for code, h in zip(q.v.flatten(), q.encoded.movedim(-2, -1).reshape(-1, 2), strict=True):
            want[code] += 1.4 * (vq.codebook.vectors[code] - h).detach() / len(x)
        more = gradients["committed"]["codebook.weight"] - gradients["plain"]["codebook.weight"]
        assert torch.allclose(more, want, atol=1e-12)
    assert type(pv.Commitment().for_validation()) is pv.ELBO


def perturbed(grid, num_codes, **options):
    prior = PixelCNN(grid, num_codes, **{"hidden": 6, "num_blocks": 1, **options})
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior


@pytest.mark.parametrize("prior", [UniformCodes, perturbed])
def test_the_bound_is_one_term_of_the_sum_over_all_grids(prior):
    vq, x = tiny(prior), bits(6, 5)
    evidence, grids, log_prior, log_x = log_evidence(vq, x)
    assert log_prior.exp().sum().item() == pytest.approx(1, abs=1e-12)
    found = pv.log_weights(vq, x, num_particles=2)
    row = [(grids == k).all(-1).nonzero().item() for k in encode(vq, x, site="k", sample=True)]
    term = (log_prior + log_x)[torch.arange(6), row]
    assert torch.allclose(found, term.expand(2, 6), rtol=1e-12)
    assert (found < evidence - 1e-3).all()
    if prior is UniformCodes:
        assert torch.allclose(log_prior, torch.full((9,), -2 * math.log(3), dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize(("grid", "num_codes"), [((2, 2), 3), ((3,), 4), ((2, 3), 2)])
def test_the_autoregressive_prior_sums_to_one_over_all_grids(grid, num_codes):
    grids = all_grids(*grid, num_codes=num_codes)
    log_p = perturbed(grid, num_codes).double()().log_prob(grids)
    assert log_p.shape == (num_codes ** math.prod(grid),)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_p.std() > 0.1


def test_each_code_depends_on_all_before_it_and_on_none_after():
    prior, k = perturbed((3, 4), 5).double(), torch.zeros(3, 4, dtype=torch.long)
    base = prior.logits(k).reshape(12, 5)
    for i in range(12):
        other = k.clone().flatten()
        other[i] = 3
        changed = (prior.logits(other.reshape(3, 4)).reshape(12, 5) - base).abs().sum(-1) > 0
        assert changed.tolist() == [False] * (i + 1) + [True] * (11 - i)


def test_samples_of_the_autoregressive_prior_have_its_probabilities():
    prior = perturbed((2, 2), 2).double()()
    grids, draws = all_grids(2, 2, num_codes=2), 4000
    p = prior.log_prob(grids).exp()
    got = (prior.sample((draws,))[:, None] == grids).all(-1).all(-1).double().mean(0)
    print(p, got)
    assert ((got - p).abs() < 4 * (p * (1 - p) / draws).sqrt()).all()
    assert p.max() - p.min() > 0.05


def test_a_context_gives_each_row_its_own_prior():
    prior = perturbed((2, 2), 3, context_shape=(2, 1, 1)).double()
    contexts, grids = double(3, 2, 1, 1), all_grids(2, 2, num_codes=3)
    log_p = prior(contexts).log_prob(grids[:, None])  # (81, 3)
    assert torch.allclose(log_p.exp().sum(0), torch.ones(3, dtype=torch.float64), rtol=1e-12)
    alone = torch.stack([prior(context).log_prob(grids) for context in contexts], -1)
    assert torch.allclose(log_p, alone, rtol=1e-12)
    assert (log_p[:, 0] - log_p[:, 1]).abs().max() > 0.1
    assert prior(contexts).sample((5,)).shape == (5, 3, 2, 2)
    assert prior(contexts).expand((5, 3)).sample().shape == (5, 3, 2, 2)


def test_places_of_the_batch_that_values_lack_count_too():
    prior, k = perturbed((2, 2), 3).double(), all_grids(2, 2, num_codes=3)[5:11]
    want = prior().log_prob(k)
    assert torch.equal(prior().expand((4, 1)).log_prob(k), want.expand(4, 6))
    pair = pv.CodeModel((2, 2), num_codes=3, prior=prior)
    vectorised = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    assert vectorised.loss(pair.model, pair.guide, k) == pytest.approx(-want.sum().item(), rel=1e-12)


def test_every_code_sees_the_whole_context():
    prior, context = perturbed((8, 8), 5, context_shape=(2, 4, 4), num_blocks=3).double(), double(2, 4, 4)
    k = torch.zeros(8, 8, dtype=torch.long)
    base = prior(context).logits_of(k)
    for row, column in itertools.product(range(4), repeat=2):
        other = context.clone()
        other[:, row, column] += 1
        assert ((prior(other).logits_of(k) - base).abs().sum(-1) > 1e-9).all()


def test_a_prior_fitted_to_codes_raises_the_bound_and_draws_them():
    """Codes of data in four kinds: the fitted p(k) is near their frequencies, and the pair's samples follow."""
    x = torch.eye(5)[[0, 0, 1, 2]].repeat(50, 1)
    vq = tiny(num_codes=4).float().initialise_(torch.rand(50, 5))
    codes = encode(vq, x, site="k", sample=True)
    before = pv.elbo(vq, x, num_particles=1).elbo.value
    model = pv.CodeModel(2, num_codes=4, prior=partial(PixelCNN, hidden=8, num_blocks=1))
    pv.fit(model, codes, validation=codes, max_epochs=60, batch_size=50, lr=0.02, seed=0, progress=False, compile=False)
    vq.bind_prior(model)
    kinds, counts = codes.unique(dim=0, return_counts=True)
    share = counts / len(codes)
    assert vq.prior().log_prob(kinds).exp().tolist() == pytest.approx(share.tolist(), abs=0.02)
    gain = pv.elbo(vq, x, num_particles=1).elbo.value - before
    assert gain == pytest.approx(2 * math.log(4) + (share * share.log()).sum().item(), abs=0.02)
    drawn = pyro.infer.Predictive(vq.model, num_samples=1)(x)["k"][0]
    assert sum((drawn == kind).all(-1).float().mean() for kind in kinds) > 0.9


def test_a_bound_prior_is_saved_with_the_pair():
    from test_laws import is_rebuilt

    vq = pv.VQVAE(5, num_codes=3, grid_shape=2, hidden=(8,))
    vq.bind_prior(pv.CodeModel(2, num_codes=3, prior=partial(PixelCNN, hidden=4)))
    is_rebuilt(vq, lambda pair: pv.log_weights(pair, bits(4, 5).float().round() * 0, num_particles=1))


@pytest.mark.parametrize("cls", BOOKS)
def test_captured_steps_are_eager_steps(cls):
    """Running means, shares and restarts are in the graph: ten steps in training mode, of two batches."""

    def make():
        pyro.set_rng_seed(0)
        book = partial(cls, decay=0.6, revive_below=0.7)
        return tiny(perturbed, codebook=book).train(), pv.Commitment()

    x = bits(6, 5)
    training = same(make, [(x,), (x.flip(0),)])
    assert training.update.failure is None
    assert training.update.step.pair.codebook.usage.std() > 0


def test_two_grids_factorise_as_they_say():
    vq = pv.VQVAE2((1, 4, 4), num_codes=2, code_dim=2, channels=(3,), prior=partial(perturbed)).double().eval()
    x = bits(3, 1, 4, 4)
    k2 = all_grids(1, 1, num_codes=2)
    k1 = all_grids(2, 2, num_codes=2)
    z2 = vq.codebook2.embed(k2).movedim(-1, -3)  # (2, D, 1, 1)
    joint = vq.prior2().log_prob(k2)[:, None] + vq.prior1(z2[:, None]).log_prob(k1)  # (2, 16)
    assert joint.exp().sum().item() == pytest.approx(1, abs=1e-12)
    z1 = vq.codebook1.embed(k1).movedim(-1, -3)
    both = torch.cat([z1.expand(2, *z1.shape), vq.wide(z2)[:, None].expand(2, 16, -1, -1, -1)], -3)
    log_x = vq.likelihood(vq.decoder(both)).log_prob(x[:, None, None])
    evidence = torch.logsumexp((joint + log_x).flatten(1), -1)
    bound = pv.log_weights(vq, x)[0]
    at2, at1 = encode(vq, x, site="k2", sample=True).flatten(), encode(vq, x, site="k1", sample=True)
    row = torch.tensor([(k1 == k).flatten(1).all(-1).nonzero().item() for k in at1])
    assert torch.allclose(bound, (joint + log_x)[torch.arange(3), at2, row], rtol=1e-12)
    assert (bound < evidence - 1e-3).all()
    fine = pv.CodeModel((2, 2), num_codes=2, context_shape=(2, 1, 1)).double()
    vq.bind_priors(fine, pv.CodeModel((1, 1), num_codes=2).double())
    assert vq.prior1 is fine.prior
    assert generate(vq, 2, like=(x,)).shape == (2, 1, 4, 4)


def test_perplexity_of_codes():
    assert perplexity_of(torch.full((7,), 1 / 7)) == pytest.approx(7)
    assert perplexity_of(torch.tensor([0.5, 0.25, 0.25])) == pytest.approx(2**1.5)
    vq, x = tiny(), bits(30, 5)
    shares = [(encode(vq, x, site="k", sample=True) == code).double().mean().item() for code in range(3)]
    want = math.exp(-sum(share * math.log(share) for share in shares if share))
    assert code_perplexity(vq, x, site="k", num_codes=3) == pytest.approx(want)
    with pytest.raises(ValueError, match="no codes"):
        code_perplexity(vq, x, site="z")
    with pytest.raises(ValueError, match="num_codes is 2"):
        code_perplexity(vq, x, site="k", num_codes=2)
    y = code_perplexity(pv.CategoricalVAE(5, num_classes=3, hidden=(4,)), x.float(), site="y1")
    assert 1 <= y <= 3


def image_vq(**options):
    return pv.VQVAE((1, 8, 8), **{"num_codes": 16, "channels": (8,), **options})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: image_vq(num_codes=17).initialise_(torch.rand(1, 1, 8, 8)), "17 codes, and there are"),
        (lambda: image_vq(codebook=Codebook(16, 3)), "codebook has 16 codes of 3 numbers, the pair 16 of 16"),
        (lambda: Codebook(4, 3)(torch.zeros(2, 5)), "length 5, the codebook's 3"),
        (lambda: PixelCNN((64, 64), 8), r"4096 codes.*1024"),
        (lambda: pv.VQVAE(5, encoder=pv.nets.MLP(5)), "have no grid; pass grid_shape"),
        (lambda: image_vq(decoder=pv.nets.GridDecoder), r"grid of codes is \(4, 4\)"),
        (lambda: image_vq().bind_prior(pv.CodeModel((2, 2), num_codes=16)), r"grid \(2, 2\), the pair has 16 on"),
        (lambda: perturbed((2, 2), 3, context_shape=(2, 1, 1))(), r"context has shape None, the prior expects"),
        (lambda: Codebook(4, 3, decay=1.0), r"decay is 1.0"),
        (lambda: pv.Commitment(-1.0), "beta is -1.0"),
        (
            lambda: pv.Commitment().loss(*(getattr(LinearGaussian(), f) for f in ("model", "guide")), double(3, 5)),
            "no codes of a codebook",
        ),
        (lambda: AutoregressiveCategorical(torch.log, (2,), 3).log_prob(torch.tensor([0, 3])), "within the support"),
    ],
)
def test_bad_input_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()
