import resource

import numpy as np
import pytest
import scipy.sparse
import torch
from exact import LinearGaussian

import pyrovae as pv
from pyrovae.data import Data, SparseRows, Split, load, load_corpus, match
from pyrovae.data.corpora import check_counts


def random_counts(rows=30, words=12, seed=0):
    """A matrix of counts (scipy's CSR) with a word in each row."""
    generator = np.random.default_rng(seed)
    counts = generator.poisson(0.4, (rows, words))
    counts[np.arange(rows), np.arange(rows) % words] += 1
    return scipy.sparse.csr_matrix(counts)


SOURCES = {
    "scipy csr_matrix": lambda m: m,
    "scipy csr_array of int32": lambda m: scipy.sparse.csr_array(m).astype(np.int32),
    "scipy coo with doubles": lambda m: scipy.sparse.coo_matrix(
        (np.ones(int(m.sum())), (np.repeat(*np.array(m.tocoo().coords)[[0]], m.data), np.repeat(m.indices, m.data))),
        shape=m.shape,
    ),
    "scipy csc of bytes": lambda m: m.tocsc().astype(np.uint8),
    "unsorted with doubles": lambda m: scipy.sparse.csr_matrix(
        (np.tile(m.data / 2, 1).repeat(2), m.indices.repeat(2), 2 * m.indptr), shape=m.shape
    ),
    "torch coo": lambda m: torch.as_tensor(m.toarray()).to_sparse(),
    "torch csr": lambda m: torch.sparse_csr_tensor(
        torch.as_tensor(m.indptr), torch.as_tensor(m.indices), torch.as_tensor(m.data), m.shape, check_invariants=True
    ),
    "torch csr with doubles": lambda m: torch.sparse_csr_tensor(
        torch.as_tensor(2 * m.indptr),
        torch.as_tensor(m.indices.repeat(2)),
        torch.as_tensor(m.data / 2).float().repeat_interleave(2),
        m.shape,
        check_invariants=False,
    ),
}


# rows


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", SOURCES)
def test_a_split_holds_sparse_rows_and_gives_dense_batches(kind):
    matrix = random_counts()
    dense = torch.as_tensor(matrix.toarray()).float()
    split = Split({"x": SOURCES[kind](matrix), "y": np.arange(30)})
    same = Split({"x": dense, "y": np.arange(30)})
    assert isinstance(split["x"], SparseRows)
    assert (len(split), split.event_shape, split["x"].dtype) == (30, (12,), torch.float32)
    for index in ([4, 0, 4], slice(3, 9), slice(None, None, 7), torch.arange(30) % 3 == 0, np.array([-1, 2]) % 30, []):
        for a, b in zip(split.rows(index), same.rows(index), strict=True):
            assert torch.equal(a, b)
    for a, b in zip(split.batches(7, seed=3, epoch=1, skip=1), same.batches(7, seed=3, epoch=1, skip=1), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    part = split.subset([5, 2])
    assert isinstance(part["x"], SparseRows)
    assert torch.equal(part["x"].to_dense(), dense[[5, 2]])
    assert split.to(dtype=torch.float64).rows([1])[0].dtype == torch.float64
    assert torch.equal(split["x"].sum(0), dense.sum(0))
    assert torch.equal(split["x"].sum(1), dense.sum(1))


def test_later_writes_to_the_matrix_do_not_reach_the_data():
    matrix = random_counts().astype(np.float32)
    split = Split({"x": matrix})
    before = split["x"].to_dense()
    matrix.data[:] = 7
    assert torch.equal(split["x"].to_dense(), before)


def test_default_dtype_and_names():
    torch.set_default_dtype(torch.float64)
    try:
        assert Split({"x": random_counts()})["x"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert match(random_counts(), lambda x: None).names == ("x",)
    assert isinstance(match((random_counts(), np.arange(30)), lambda x, y: None)["x"], SparseRows)


def test_transforms_see_dense_batches():
    split = Split({"x": random_counts()}, transform=lambda tensors: {**tensors, "x": tensors["x"] + 1})
    assert torch.equal(split.rows([3])[0], torch.as_tensor(random_counts().toarray()[[3]]).float() + 1)
    with pytest.raises(ValueError, match="x is sparse and has a transform"):
        split.fixed(0)


def test_bad_sparse_values_are_refused():
    matrix = random_counts().astype(float)
    matrix.data[matrix.indptr[4]] = np.nan
    with pytest.raises(ValueError, match=r"x has 1 NaN or infinite values, the first in row 4"):
        Split({"x": matrix})
    with pytest.raises(TypeError, match="complex128, real numbers are wanted"):
        Split({"x": random_counts().astype(complex)})
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\), \(N, V\) is wanted"):
        Split({"x": torch.ones(2, 2, 2).to_sparse()})


def test_a_million_documents_never_need_dense_memory():
    """A million documents by 50,000 words are 200 GB dense and 40 MB sparse."""
    rows, words, each = 1_000_000, 50_000, 3
    generator = np.random.default_rng(0)
    columns = generator.integers(0, words, rows * each, dtype=np.int32)
    matrix = scipy.sparse.csr_matrix(
        (np.ones(rows * each, np.float32), columns, np.arange(0, rows * each + 1, each)), shape=(rows, words)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = load_corpus(matrix, [str(v) for v in range(words)], validation=0.1, test=0)
    train = data.train
    seen = [x for (x,), _ in zip(train.batches(64, seed=0, epoch=0), range(3), strict=False)]
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    assert [tuple(x.shape) for x in seen] == [(64, words)] * 3
    assert all((x.sum(1) == each).all() for x in seen)
    assert (len(train), len(data.validation)) == (900_000, 100_000)
    assert used < 700, f"{used} MiB"


# damaged ones


def raw(form="csr", *, indices=(0, 1, 2), starts=(0, 1, 2, 3), shape=(3, 3), values=None, kind=np.int32):
    """What `scipy.sparse.save_npz` writes, of arrays that need be no matrix."""
    values = np.ones(3) if values is None else values
    found = {"format": np.array(form.encode()), "shape": np.array(shape), "data": values}
    if form == "coo":
        return {**found, "row": np.array(indices, kind), "col": np.array([0, 1, 2], np.int32)}
    return {**found, "indices": np.array(indices, kind), "indptr": np.array(starts, kind)}


BLOCKS = {"values": np.ones((3, 1, 1))}
DAMAGED = {
    "csc too large": raw("csc", indices=(0, 70000, 2)),
    "csr too large": raw(indices=(0, 7, 2)),
    "bsr too large": raw("bsr", indices=(0, 70000, 2), **BLOCKS),
    "coo too large": raw("coo", indices=(0, 7, 2)),
    "csr negative": raw(indices=(0, -1, 2)),
    "csc negative": raw("csc", indices=(0, -70000, 2)),
    "bsr negative": raw("bsr", indices=(0, -1, 2), **BLOCKS),
    "coo negative": raw("coo", indices=(0, -1, 2)),
    "decreasing": raw(starts=(0, 3, 1, 3)),
    "decreasing to nothing": raw(starts=(0, 3, 3, 0)),
    "decreasing below nothing": raw(starts=(0, 1, 2, -1)),
    "starting late": raw(starts=(1, 2, 3, 3)),
    "ending late": raw(starts=(0, 1, 2, 9)),
    "too few starts": raw(starts=(0, 1, 3)),
    "too many starts": raw(starts=(0, 1, 2, 3, 3)),
    "fewer values": raw(values=np.ones(2)),
    "fractions": raw(indices=(0, 1.5, 2), kind=np.float64),
    "fractions in coo": raw("coo", indices=(0, 1.5, 2), kind=np.float64),
    "values of another rank": raw(values=np.ones((3, 1))),
    "blocks of nothing": raw("bsr", values=np.ones((3, 0, 0))),
    "blocks that do not fit": raw("bsr", values=np.ones((3, 2, 2))),
    "shape of one": raw(shape=(3,)),
    "negative shape": raw(shape=(3, -3)),
    "no such format": raw("exe"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_matrix_in_a_file_is_refused_before_it_is_used(kind, tmp_path):
    """scipy's routines would read and write beyond the arrays: the process would end, or count in another column."""
    np.savez(tmp_path / "train.npz", **DAMAGED[kind])
    (tmp_path / "vocab.txt").write_text("a\nb\nc\n")
    for read in (lambda: load(tmp_path / "train.npz", validation=0, test=0), lambda: load_corpus(tmp_path)):
        with pytest.raises(ValueError, match=r"train\.npz is truncated or damaged \("):
            read()


@pytest.mark.parametrize("form", ["csr", "csc", "bsr", "coo"])
def test_every_format_of_a_matrix_is_read(form, tmp_path):
    matrix = random_counts()
    scipy.sparse.save_npz(tmp_path / "a.npz", matrix.asformat(form))
    read = load(tmp_path / "a.npz", validation=0, test=0).train["x"]
    assert sorted(read.to_dense().tolist()) == sorted(matrix.toarray().tolist())


def test_diagonals_and_no_columns_in_a_file_are_refused(tmp_path):
    scipy.sparse.save_npz(tmp_path / "none.npz", scipy.sparse.csr_array((50, 0)))
    with pytest.raises(ValueError, match=r"none\.npz has shape \(50, 0\)"):
        load(tmp_path / "none.npz")
    scipy.sparse.save_npz(tmp_path / "a.npz", scipy.sparse.eye_array(3, format="dia"))
    with pytest.raises(ValueError, match=r"a\.npz .*format dia, wanted csr, csc, bsr or coo; save matrix\.tocsr\(\)"):
        load(tmp_path / "a.npz")


def test_files_of_a_corpus_are_named_where_they_are_no_matrix(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\nc\n")
    scipy.sparse.save_npz(tmp_path / "train.npz", scipy.sparse.eye_array(3, format="csr"))
    whole = (tmp_path / "train.npz").read_bytes()
    for size in (0, 1, 40, len(whole) // 2, len(whole) - 1):
        (tmp_path / "train.npz").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"train\.npz is truncated or damaged"):
            load_corpus(tmp_path)
    np.savez(tmp_path / "train.npz", counts=np.eye(3))
    with pytest.raises(ValueError, match=r"train\.npz has counts, a sparse matrix is wanted; .*save_npz"):
        load_corpus(tmp_path)


def spoiled(matrix, **arrays):
    for name, array in arrays.items():
        setattr(matrix, name, array)
    return matrix


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: spoiled(scipy.sparse.eye_array(3, format="csr"), indices=np.array([0, 3, 1])),
            "index 3, 0 to 2 are wanted",
        ),
        (lambda: spoiled(scipy.sparse.eye_array(3, format="csc"), indices=np.array([0, -1, 1])), "index -1"),
        (lambda: spoiled(scipy.sparse.eye_array(3, format="csr"), indptr=np.array([0, 1, 2, -1])), "index -1, 0 to 3"),
        (lambda: spoiled(scipy.sparse.eye_array(3, format="csc"), indptr=np.array([0, 2, 1, 3])), "never decrease"),
        (lambda: spoiled(scipy.sparse.eye_array(3, format="csr"), indptr=np.array([0, 1, 2, 9])), "index 9, 0 to 3"),
        (lambda: spoiled(scipy.sparse.eye_array(3, format="csr"), data=np.ones(2)), "2 values for 3 indices"),
        (lambda: spoiled(scipy.sparse.eye_array(3, format="csr"), indices=np.array([0, 1.5, 2])), "index of float64"),
        (lambda: spoiled(scipy.sparse.eye_array(3, format="coo"), coords=(np.arange(3), np.arange(1, 4))), "index 3"),
        (lambda: torch.sparse_csr_tensor([0, 1, 2, 3], [0, 7, 1], torch.ones(3), (3, 3)), "index 7"),
        (lambda: torch.sparse_csr_tensor([0, 1, 2, 9], [0, 1, 2], torch.ones(3), (3, 3)), "index 9, 0 to 3"),
        (lambda: torch.sparse_coo_tensor([[0, 1], [2, -1]], torch.ones(2), (3, 3)), "index -1"),
    ],
)
def test_a_matrix_in_memory_with_indices_outside_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        Split({"x": make()})


def test_values_that_a_matrix_has_to_spare_are_left_out():
    spare = spoiled(scipy.sparse.eye_array(3, format="csr"), data=np.arange(1.0, 6), indices=np.arange(5) % 3)
    rows = SparseRows.of(spare)
    assert torch.equal(rows.sum(1), torch.tensor([1.0, 2.0, 3.0]))
    assert len(spare.data) == 5, "the matrix that was passed has changed"


# training and evaluation


@pytest.mark.parametrize("compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("make", [pv.NVDM, pv.ProdLDA])
def test_sparse_equals_dense(make, compile):
    """Same seed, same fit, to the last bit; and the same evaluation."""
    matrix, runs, pairs = random_counts(50), [], []
    for x in (matrix, torch.as_tensor(matrix.toarray()).float()):
        torch.manual_seed(0)
        pair = make(12, 3, hidden=(5,))
        run = pv.fit(
            pair, x, validation=0.2, max_epochs=2, batch_size=8, seed=1, compile=compile, lr=0.01, progress=False
        )
        runs.append(run.history)
        pairs.append(pair)
    assert runs[0]["train_loss"] == runs[1]["train_loss"]
    assert runs[0]["validation_loss"] == runs[1]["validation_loss"]
    for a, b in zip(pairs[0].state_dict().values(), pairs[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    both = (matrix, matrix.toarray().astype(float))
    assert torch.equal(*[pv.log_likelihood(pairs[0], x, num_samples=20).per_datum for x in both])


@pytest.mark.parametrize(("value", "what"), [(-1.0, "negative"), (0.5, "fractional")])
def test_fit_refuses_what_are_no_counts_by_row(value, what):
    matrix = random_counts().astype(float).tolil()
    matrix[4, 5] = value
    with pytest.raises(ValueError, match=f"x has {what} counts in row 4; counts of words are 0, 1, 2"):
        pv.fit(pv.NVDM(12, 3), matrix.tocsr(), max_epochs=1, progress=False)


def test_another_pair_takes_sparse_rows():
    pair = LinearGaussian()
    x = scipy.sparse.csr_matrix(pair.sample(6).numpy())
    torch.testing.assert_close(
        pv.log_likelihood(pair, x).per_datum, pair.log_prob(torch.as_tensor(x.toarray())), atol=1e-5, rtol=1e-5
    )


# corpora

WORDS = [f"word{v}" for v in range(12)]


def test_a_matrix_with_its_vocabulary(untouched):
    matrix = random_counts()
    data = load_corpus(matrix, WORDS, validation=5, test=0.2, seed=3)
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 19, "validation": 5, "test": 6}
    assert (data.vocabulary, data.event_shape, data.name) == (WORDS, (12,), "corpus")
    together = torch.cat([split["x"].to_dense() for split in data.splits.values()]).numpy()
    assert sorted(map(tuple, together)) == sorted(map(tuple, matrix.toarray()))
    own = load_corpus({"train": matrix, "test": random_counts(7, seed=1)}, WORDS, validation=0, name="mine")
    assert {part: len(split) for part, split in own.splits.items()} == {"train": 30, "test": 7}
    assert own.name == "mine"
    dense = load_corpus(matrix.toarray(), WORDS, validation=0, test=0)
    assert torch.equal(dense.train["x"].to_dense(), own.train["x"].to_dense())


def test_a_vocabulary_of_columns_is_in_their_order():
    """scikit-learn's `vocabulary_`, word -> column, in the order that the texts have the words in."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer()
    matrix = vectorizer.fit_transform(["the cat sat", "a cat and a dog", "dog days"])
    assert list(vectorizer.vocabulary_) != sorted(vectorizer.vocabulary_)
    words = list(vectorizer.get_feature_names_out())
    assert load_corpus(matrix, vectorizer.vocabulary_, validation=0, test=0).vocabulary == words
    with pytest.raises(ValueError, match=r"vocabulary has 2 words for the columns 1, 2, 0 to 1 are wanted"):
        load_corpus(matrix, {"cat": 2, "dog": 1})


def test_texts_go_through_count_vectorizer(tmp_path):
    from sklearn.feature_extraction.text import CountVectorizer

    texts = ["Cats sat. Cats!", "a dog sat", "dogs and a cat"]
    data = load_corpus({"train": texts, "test": ["cat dog dog horse"]}, validation=0)
    vectorizer = CountVectorizer(stop_words="english")
    counted = vectorizer.fit_transform(texts).toarray().tolist()
    assert sorted(data.train["x"].to_dense().tolist()) == sorted(counted)
    assert data.vocabulary == list(vectorizer.get_feature_names_out())
    assert data.test["x"].to_dense()[0, data.vocabulary.index("dog")] == 2  # and the horse is not in the vocabulary
    chosen = load_corpus(texts, ["dog", "sat"], validation=0, test=0, drop_empty=True)
    assert sorted(chosen.train["x"].to_dense().tolist()) == [[0, 1], [1, 1]]  # the third has none of the two
    for number, text in enumerate(texts):
        (tmp_path / "deeper").mkdir(exist_ok=True)
        (tmp_path / "deeper" / f"{number}.txt").write_text(text)
    files = load_corpus(tmp_path, vectorizer=CountVectorizer(stop_words="english"), validation=0, test=0)
    assert sorted(files.train["x"].to_dense().tolist()) == sorted(data.train["x"].to_dense().tolist())


def test_a_folder_of_matrices_and_a_file(tmp_path):
    matrix = random_counts()
    scipy.sparse.save_npz(tmp_path / "train.npz", matrix)
    scipy.sparse.save_npz(tmp_path / "test.npz", matrix[:4])
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    data = load_corpus(tmp_path, validation=0.1)
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 27, "validation": 3, "test": 4}
    assert data.vocabulary == WORDS
    plain = load(tmp_path / "train.npz", validation=0, test=0)
    assert sorted(plain.train["x"].to_dense().tolist()) == sorted(matrix.toarray().tolist())


def test_newsgroups_come_from_scikit_learn(monkeypatch):
    class Bunch:
        def __init__(self, data):
            self.data = data

    def fetch(subset, remove):
        assert remove == ("headers", "footers", "quotes")
        return Bunch({"train": ["guns guns law", "space orbit"], "test": ["law orbit"]}[subset])

    monkeypatch.setattr("sklearn.datasets.fetch_20newsgroups", fetch)
    data = load_corpus("20newsgroups", validation=0)
    assert data.vocabulary == ["guns", "law", "orbit", "space"]
    assert data.test["x"].to_dense().tolist() == [[0, 1, 1, 0]]


def changed(row, column, value):
    matrix = random_counts().astype(float).tolil()
    matrix[row, column] = value
    return matrix.tocsr()


def emptied(*rows):
    matrix = random_counts().tolil()
    for row in rows:
        matrix[row] = 0
    return matrix.tocsr()


@pytest.mark.parametrize(
    ("source", "vocabulary", "message"),
    [
        (changed(7, 1, -1), WORDS, r"train has negative counts in row 7; counts of words are 0, 1, 2, \.\.\."),
        (changed(7, 1, 0.5), WORDS, r"train has fractional counts in row 7"),
        (changed(7, 1, np.nan), WORDS, r"train has NaN or infinite counts in row 7"),
        (emptied(3), WORDS, r"train has 1 empty documents, row 3; leave them out"),
        (emptied(*range(2, 9)), WORDS, r"train has 7 empty documents, rows 2, 3, 4, 5, 6, \.\.\.; leave"),
        (random_counts(), WORDS[:-1], r"vocabulary has 11 words, train has 12 columns"),
        ({"train": random_counts(), "test": random_counts(words=13)}, WORDS, r"12 words, test has 13 columns"),
        (random_counts(), None, r"vocabulary is None"),
        ({"test": random_counts()}, WORDS, r"source has test and no train"),
        ({"tests": random_counts()}, WORDS, r"source has tests; the parts are train, validation, test"),
    ],
)
def test_bad_corpora_are_refused(source, vocabulary, message):
    with pytest.raises(ValueError, match=message):
        load_corpus(source, vocabulary)


def test_bad_sources_are_refused(tmp_path):
    with pytest.raises(TypeError, match="train is a int, a sparse matrix"):
        load_corpus(3, WORDS)
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere"):
        load_corpus("nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither train\.npz nor \.txt files"):
        load_corpus(tmp_path)
    scipy.sparse.save_npz(tmp_path / "train.npz", random_counts())
    with pytest.raises(FileNotFoundError, match=r"has no vocab\.txt; pass vocabulary="):
        load_corpus(tmp_path)
    with pytest.raises(ValueError, match="vocabulary has 2 words, x has event shape"):
        Data(Split({"x": random_counts()}), vocabulary=["a", "b"])
    check_counts(random_counts())
    kept = load_corpus(emptied(3, 5), WORDS, drop_empty=True, validation=0, test=0)
    assert len(kept.train) == 28


@pytest.mark.data
def test_the_projects_newsgroups(data_root):
    data = load_corpus(data_root / "20news", validation=0)
    assert {part: len(split) for part, split in data.splits.items()} == {"train": 11258, "test": 7487}
    assert (float(data.train["x"].values.sum()), float(data.test["x"].values.sum())) == (991493, 629312)
    assert len(data.vocabulary) == 1995
    assert {"weapon", "company", "_eos_"} <= set(data.vocabulary)
