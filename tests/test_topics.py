import math
from functools import partial
from itertools import product

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.distributions import Multinomial

import pyrovae as pv
from pyrovae.conditionals import TopicMixture
from pyrovae.data import Data, Split
from pyrovae.distributions import BagOfWords
from pyrovae.evaluation import topics as tools
from pyrovae.evaluation.estimates import estimate
from pyrovae.evaluation.predictive import encode
from pyrovae.training.em import Ascent, fit_em

DOCUMENTS = torch.tensor([[2.0, 1.0, 0.0, 3.0], [0.0, 0.0, 4.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
WORDS = ["orbit", "guns", "law", "moon"]


def fixed(per_datum):
    return estimate(torch.as_tensor(per_datum), 0.25, 10)


# perplexity


def test_perplexity_of_a_known_distribution():
    """By hand, from the probabilities of the words one by one; the coefficient does not enter."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    log_prob = BagOfWords(probs=p).log_prob(DOCUMENTS.double())
    of_torch = torch.stack([Multinomial(int(x.sum()), p).log_prob(x.double()) for x in DOCUMENTS])
    torch.testing.assert_close(log_prob, of_torch)
    words = [2 * math.log(0.1) + math.log(0.2) + 3 * math.log(0.4), 4 * math.log(0.3), math.log(0.1 * 0.2 * 0.3 * 0.4)]
    per_document = math.exp(-(words[0] / 6 + words[1] / 4 + words[2] / 4) / 3)
    per_corpus = math.exp(-sum(words) / 14)
    for data in (DOCUMENTS, DOCUMENTS.to_sparse(), scipy.sparse.csr_matrix(DOCUMENTS.numpy()), Split({"x": DOCUMENTS})):
        result = tools.perplexity(fixed(log_prob), data)
        assert result.per_document == pytest.approx(per_document, rel=1e-12)
        assert result.per_corpus == pytest.approx(per_corpus, rel=1e-12)
        assert (result.num_documents, result.num_words) == (3, 14)
    above, below = (tools.perplexity(fixed(log_prob + e), DOCUMENTS).per_corpus for e in (-1e-6, 1e-6))
    assert result.standard_error == pytest.approx(0.25 * (above - below) / 2e-6, rel=1e-6)  # delta method
    assert str(result) == f"{per_document:.1f} per document, {per_corpus:.1f} per corpus"


def test_uniform_words_have_the_perplexity_of_the_vocabulary():
    pair = pv.NVDM(4, 2)
    with torch.no_grad():
        for parameter in (*pair.likelihood.parameters(), *pair.posterior.parameters()):
            parameter.zero_()
    data = Data(Split({"x": DOCUMENTS[:1]}), test=Split({"x": DOCUMENTS}))
    exact = tools.perplexity(pv.log_likelihood(pair, data, num_samples=5), data)  # of the test split
    assert exact.per_document == pytest.approx(4, rel=1e-3)  # the guide's scale has a floor of 1e-4
    assert exact.per_corpus == pytest.approx(4, rel=1e-3)
    assert exact.num_documents == 3


def test_the_bound_is_above_the_importance_weighted_perplexity():
    torch.manual_seed(0)
    pair = pv.NVDM(4, 2)
    bound = tools.perplexity(pv.elbo(pair, DOCUMENTS, num_particles=200).elbo, DOCUMENTS)
    weighted = tools.perplexity(pv.log_likelihood(pair, DOCUMENTS, num_samples=2000), DOCUMENTS)
    assert bound.per_document > weighted.per_document
    assert bound.per_corpus > weighted.per_corpus + 4 * weighted.standard_error


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (DOCUMENTS[:2], r"data have 2 documents, the estimate 3"),
        (DOCUMENTS * torch.tensor([[1.0], [0.0], [1.0]]), r"data has 1 empty documents, row 1"),
        (DOCUMENTS / 2, r"data has fractional counts in rows 0, 2"),
        (-DOCUMENTS, r"data has negative counts in rows 0, 1, 2"),
    ],
)
def test_perplexity_of_other_data_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        tools.perplexity(fixed([-1.0, -1.0, -1.0]), x)


@pytest.mark.parametrize("data", [(DOCUMENTS,), [DOCUMENTS], (scipy.sparse.csr_matrix(DOCUMENTS.numpy()), [0, 1, 1])])
def test_documents_come_by_position_too(data):
    assert tools.perplexity(fixed([-1.0, -2.0, -3.0]), data) == tools.perplexity(fixed([-1.0, -2.0, -3.0]), DOCUMENTS)
    pairs = torch.tensor([[0, 1], [0, 2]])
    assert torch.equal(tools.npmi(pairs, data), tools.npmi(pairs, DOCUMENTS))


@pytest.mark.parametrize("data", [{"counts": DOCUMENTS}, Split({"counts": DOCUMENTS})])
def test_documents_without_a_name_for_them_are_refused(data):
    for call in (partial(tools.perplexity, fixed([-1.0])), partial(tools.npmi, torch.tensor([[0, 1]]))):
        with pytest.raises(ValueError, match=r"data hold counts, the counts of words are wanted as x; pass \{'x'"):
            call(data)


# coherence


def by_hand(corpus, words):
    """NPMI over pairs, with loops over sets."""
    documents = [{v for v, count in enumerate(row) if count} for row in corpus]
    values = []
    for i, v in enumerate(words):
        for w in words[:i]:
            both = sum(v in d and w in d for d in documents) / len(documents)
            p_v, p_w = (sum(u in d for d in documents) / len(documents) for u in (v, w))
            values.append(-1.0 if both == 0 else 1.0 if both == 1 else math.log(both / (p_v * p_w)) / -math.log(both))
    return sum(values) / len(values)


def test_npmi_of_a_corpus_worked_by_hand():
    """Eight documents: words 0 and 1 in four, together in two (independent); 2 with 0 always; 3 never with 0."""
    corpus = torch.tensor(
        [[1, 1, 1, 0], [2, 1, 1, 0], [1, 0, 3, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 5, 0, 1], [0, 0, 0, 1], [0, 0, 0, 2]]
    ).float()
    pairs = torch.tensor([[0, 1], [0, 2], [0, 3], [1, 3]])
    want = torch.tensor([0.0, 1.0, -1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(tools.npmi(pairs, corpus), want, atol=1e-12, rtol=0)
    three = tools.npmi(torch.tensor([[0, 1, 2]]), corpus)  # 0 with 1, 0 with 2, 1 with 2
    torch.testing.assert_close(three, torch.tensor([1 / 3], dtype=torch.float64))
    uneven = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0]]).float()  # P = 3/4, 1/2, both 1/2
    value = math.log(0.5 / (0.75 * 0.5)) / -math.log(0.5)
    assert tools.npmi(torch.tensor([[0, 1]]), uneven).item() == pytest.approx(value, rel=1e-12)
    always = torch.ones(3, 2)
    assert tools.npmi(torch.tensor([[0, 1]]), always).item() == 1


def test_npmi_is_that_of_loops_over_documents():
    generator = np.random.default_rng(0)
    corpus = generator.poisson(0.5, (40, 9))
    corpus[:, 4] = 0  # a word that no document has
    topics = torch.as_tensor(generator.normal(size=(5, 9)))
    top = topics.argsort(1, descending=True)[:, :4]
    want = [by_hand(corpus.tolist(), row) for row in top.tolist()]
    assert tools.npmi(topics, scipy.sparse.csr_matrix(corpus), num_words=4).tolist() == pytest.approx(want, rel=1e-12)
    assert tools.npmi(top, torch.as_tensor(corpus), num_words=4).tolist() == pytest.approx(want, rel=1e-12)
    split = Split({"x": scipy.sparse.csr_matrix(corpus)})
    of_data = tools.npmi(topics, Data(split, test=Split({"x": torch.ones(2, 9)})), num_words=4)  # of the training split
    assert of_data.tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    "spelled",
    [np.asarray, torch.Tensor.tolist, torch.Tensor.byte, torch.Tensor.int],
    ids=["array", "list", "u8", "i32"],
)
def test_npmi_takes_indices_as_arrays_lists_and_whole_numbers_of_any_size(spelled):
    """0 with 1 are independent, 0 with 2 always together; the third word of each is left out, the fourth too."""
    corpus = torch.tensor([[1, 1, 1, 0], [2, 0, 1, 0], [0, 1, 0, 1], [0, 0, 0, 2]]).float()
    indices = torch.tensor([[0, 1, 2, 3], [0, 2, 1, 3]])
    assert tools.npmi(spelled(indices), corpus, num_words=2).tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


@pytest.mark.parametrize(
    ("topics", "num_words", "error", "message"),
    [
        (torch.tensor([[0, 1, 2]]), -1, ValueError, "num_words is -1, at least 1 is wanted"),
        (torch.tensor([[0, 1, 2]]), 2.5, TypeError, r"num_words is 2\.5, a whole number is wanted"),
        (torch.tensor([[0, 1, 2]]), 1, ValueError, r"shape \(1, 3\) and num_words is 1; pass two words at least"),
        (
            torch.tensor([0, 1, 2]),
            2,
            ValueError,
            r"topics have shape \(3,\) .*; pass two words at least of each, \(T, n\)",
        ),
        (torch.ones(2, 4) > 0, 2, ValueError, r"topics is torch.bool of shape \(2, 4\), finite weights"),
    ],
)
def test_npmi_says_what_topics_it_takes(topics, num_words, error, message):
    with pytest.raises(error, match=message):
        tools.npmi(topics, DOCUMENTS, num_words=num_words)


def test_npmi_of_topics_that_made_the_documents_is_above_that_of_shuffled_words():
    torch.manual_seed(0)
    topics = torch.zeros(4, 40)
    for k in range(4):
        topics[k, 10 * k : 10 * k + 10] = 5.0
    x = BagOfWords(torch.full((300,), 12.0), logits=topics[torch.randint(4, (300,))]).sample()
    shuffled = topics[:, torch.randperm(40)]
    good, chance = tools.npmi(topics, x).mean(), tools.npmi(shuffled, x).mean()
    assert good > 0.3
    assert chance < good - 0.3


def test_bad_topics_and_references_are_refused():
    with pytest.raises(ValueError, match="topics are over other words than the 4"):
        tools.npmi(torch.rand(2, 5), DOCUMENTS, num_words=3)
    with pytest.raises(ValueError, match="topics are over other words than the 4"):
        tools.npmi(torch.tensor([[0, 4]]), DOCUMENTS)
    with pytest.raises(ValueError, match="pass two words at least"):
        tools.npmi(torch.tensor([[0], [1]]), DOCUMENTS)
    with pytest.raises(ValueError, match="num_words is 5, the vocabulary has 4"):
        tools.topic_words(torch.rand(2, 4), WORDS, num_words=5)
    with pytest.raises(ValueError, match="vocabulary has 4 words, the topics are over 3"):
        tools.topic_words(torch.rand(2, 3), WORDS, num_words=2)
    with pytest.raises(ValueError, match="finite weights"):
        tools.topic_diversity(torch.full((2, 3), math.nan), num_words=2)
    with pytest.raises(ValueError, match=r"word 'gun' is not among the 4 of the vocabulary; .*such as guns"):
        tools.nearest_words(torch.rand(2, 4), WORDS, "gun")


# words and documents


def test_words_of_topics_nearest_words_and_diversity():
    topics = torch.tensor([[3.0, 0.1, 0.2, 2.5], [-1.0, 2.0, 1.9, -1.2], [0.0, 0.0, 0.5, 0.1]])
    assert tools.topic_words(topics, WORDS, num_words=2) == [["orbit", "moon"], ["guns", "law"], ["law", "moon"]]
    near = tools.nearest_words(topics, WORDS, "orbit", num_words=3)
    cosine = torch.nn.functional.cosine_similarity(topics[:, :1], topics, dim=0)
    assert [word for word, _ in near] == ["moon", "law", "guns"]
    assert [value for _, value in near] == pytest.approx([cosine[3].item(), cosine[2].item(), cosine[1].item()])
    assert tools.topic_diversity(topics, num_words=2) == pytest.approx(4 / 6)


def test_topics_of_documents_are_averages_over_the_guide():
    torch.manual_seed(0)
    pair = pv.ProdLDA(4, 3, hidden=(5,))
    found = tools.document_topics(pair, DOCUMENTS, num_samples=100)
    torch.testing.assert_close(found.sum(1), torch.ones(3))
    with torch.no_grad():
        q = pair.eval().posterior(pair.encoder(DOCUMENTS))
        draws = q.sample((20_000,)).softmax(-1)
    error = draws.std(0) * (1 / 100 + 1 / 20_000) ** 0.5
    assert ((found - draws.mean(0)).abs() < 4 * error).all()


def test_seeds_share_no_draws_of_topics(monkeypatch):
    pair, drawn = pv.ProdLDA(4, 3, hidden=(5,)), []

    def recorded(*args, **options):
        drawn.append(encode(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(tools, "encode", recorded)
    found = [tools.document_topics(pair, DOCUMENTS, num_samples=20, seed=seed) for seed in (0, 1, 0)]
    assert torch.equal(found[0], found[2])
    assert len(torch.stack(drawn[:40]).unique(dim=0)) == 40
    torch.testing.assert_close(found[1], torch.stack(drawn[20:40]).softmax(-1).mean(0))


# the models


def exact_log_prob(pair, x, half=6.0, points=161):
    """log p(x | n) of a pair with two latents, by quadrature on a grid."""
    axis = torch.linspace(-half, half, points, dtype=torch.float64)
    z = torch.tensor(list(product(axis.tolist(), repeat=2)), dtype=torch.float64)
    with torch.no_grad():
        joint = pair.prior().log_prob(z)[:, None] + pair.likelihood(pair.decoder(z)[:, None]).log_prob(x)
    return joint.logsumexp(0) + 2 * math.log(axis[1] - axis[0])


@pytest.mark.parametrize(
    "make", [pv.NVDM, pv.ProdLDA, partial(pv.ProdLDA, likelihood=TopicMixture)], ids=["NVDM", "ProdLDA", "mixture"]
)
def test_log_likelihood_is_the_integral(make):
    torch.manual_seed(0)
    pair, x = make(4, 2, hidden=(5,)).double().eval(), DOCUMENTS.double()
    want = exact_log_prob(pair, x)
    got = pv.log_likelihood(pair, x, num_samples=20_000)
    errors = (1 / got.ess - 1 / got.num_samples).sqrt()
    assert ((got.per_datum - want).abs() < 4 * errors).all()
    assert pv.elbo(pair, x, num_particles=500).elbo.value < want.mean()
    # and the masses of all documents of two words are one
    every = torch.tensor([d for d in product(range(3), repeat=4) if sum(d) == 2], dtype=torch.float64)
    torch.testing.assert_close(exact_log_prob(pair, every).exp().sum(), torch.tensor(1.0).double(), atol=1e-5, rtol=0)


def test_replicates_and_samples_keep_each_documents_length():
    pair = pv.ProdLDA(4, 3)
    x = pv.evaluation.reconstruct(pair, DOCUMENTS, sample=True)
    assert x.sum(1).tolist() == [6, 4, 4]
    drawn = pv.evaluation.generate(pair, 5, like=DOCUMENTS, sample=True)
    assert drawn.sum(1).tolist() == [6, 4, 4, 6, 4]
    torch.testing.assert_close(pv.evaluation.reconstruct(pair, DOCUMENTS).sum(1), DOCUMENTS.sum(1))


def test_encoder_and_decoder_by_turns():
    """The authors' way to train NVDM: what one step moves, the other holds."""
    torch.manual_seed(0)
    pair, seen = pv.NVDM(4, 2, hidden=(5,)), []
    model = [*pair.decoder.parameters(), *pair.likelihood.parameters()]

    class Watched(Ascent):
        def __call__(self, *arguments, **options):
            before = [p.detach().clone() for p in model]
            value = super().__call__(*arguments, **options)
            seen.append(all(torch.equal(p, b) for p, b in zip(model, before, strict=True)))
            return value

    start = [p.detach().clone() for p in pair.parameters()]
    run = fit_em(pair, DOCUMENTS, e_step=Watched(3), m_step=Ascent(3), max_epochs=30, seed=0)
    assert not any(torch.equal(p, s) for p, s in zip(pair.parameters(), start, strict=True))
    loss = run.history["train_loss"]
    assert sum(loss[-5:]) < sum(loss[:5]) - 1
    assert len(seen) == 30
    assert all(seen)


def test_topics_are_found_again():
    """Documents of four separate topics: ProdLDA's lists are their words."""
    torch.manual_seed(0)
    topics = torch.full((4, 40), -3.0)
    for k in range(4):
        topics[k, 10 * k : 10 * k + 10] = 1.0
    owner = torch.randint(4, (400,))
    x = BagOfWords(torch.full((400,), 30.0), logits=topics[owner]).sample()
    pair = pv.ProdLDA(40, 4, hidden=(20,), dropout=0.2)
    optimizer = partial(torch.optim.Adam, betas=(0.99, 0.999))
    pv.fit(pair, x, max_epochs=40, batch_size=50, lr=5e-3, optimizer=optimizer, seed=0, compile=False, progress=False)
    lists = [sorted({word // 10 for word in row}) for row in pair.topics.topk(8).indices.tolist()]
    assert sorted(lists) == [[0], [1], [2], [3]]
    main = tools.document_topics(pair, x).argmax(1)
    found = torch.tensor([lists[k][0] for k in main])
    assert (found == owner).float().mean() > 0.97


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"dropout is 1.5"):
        pv.ProdLDA(6, 3, dropout=1.5)
    with pytest.raises(ValueError, match=r"a Dirichlet has a vector of at least 2"):
        pv.ProdLDA(6, 1)
    with pytest.raises(ValueError, match=r"event_shape is \(2, 3\) and feature_shape"):
        pv.NVDM((2, 3))


# pictures


def test_picture_of_topics():
    topics = torch.tensor([[0.0, 2.0, 1.0, -1.0], [3.0, 0.0, 0.0, 2.0]])
    axes = pv.plots.topic_words(topics, WORDS, num_words=2, columns=3)
    assert axes.shape == (1, 2)
    bars = [[bar.get_width() for bar in ax.patches] for ax in axes.flat]
    assert bars == [[2.0, 1.0], [3.0, 2.0]]
    labels = [[label.get_text() for label in ax.get_yticklabels()] for ax in axes.flat]
    assert labels == [["guns", "law"], ["orbit", "moon"]]
    assert axes[0, 0].get_title() == "topic 0"
    assert pv.plots.topic_words(torch.rand(7, 4), WORDS, columns=3).shape == (3, 3)
    with pytest.raises(ValueError, match=r"topics have shape \(2, 3\) for 4 words"):
        pv.plots.topic_words(torch.rand(2, 3), WORDS)
    with pytest.raises(ValueError, match="titles are 1 for 2 topics"):
        pv.plots.topic_words(torch.rand(2, 4), WORDS, titles=["a"])
