"""Retrieval: partners have equal labels; what has none is not asked."""

import numpy as np

from mmtok.evaluation.embedding import Labelled, _joined, top1_hits


def test_top1_asks_only_for_what_has_a_partner():
    basis = np.eye(3, dtype=np.float32)
    candidates = Labelled(basis, np.array(["one", "two", "three"]))
    queries = Labelled(basis[[0, 1, 0, 2]], np.array(["one", "three", "four", "three"]))
    assert top1_hits(queries, candidates).tolist() == [1, 0, 1]
    assert len(top1_hits(queries, Labelled(basis[:1], np.array(["ten"])))) == 0


def test_a_text_that_several_contrasts_have_counts_once():
    basis = np.eye(3, dtype=np.float32)
    one = Labelled(basis[:2], np.array(["one", "two"]))
    other = Labelled(basis[1:], np.array(["two", "three"]))
    found = _joined([one, other], is_text=True)
    assert found.labels.tolist() == ["one", "two", "three"]
    assert np.array_equal(found.vectors, basis)
    assert len(_joined([one, other], is_text=False).labels) == 4
