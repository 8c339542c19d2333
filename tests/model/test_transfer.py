"""Weights of one decoder in another: ids keep their meaning, so nothing of the old one changes."""

from dataclasses import replace

import pytest
import torch

from mmtok.core.segment import Document, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.heads.categorical import Chained
from mmtok.model.likelihood import score
from mmtok.model.lm import LM
from mmtok.model.transfer import id_blocks, transfer

TEXT = Signature("text", (9,), banned=(0, 4))
JETS = Signature("jets", (6, 4, 3), descending=True)
IMAGE = Signature("image", (7,), frames=9)
OLD = (JETS, TEXT)
NEW = (IMAGE, TEXT, JETS)  # another order, and a modality more


def in_new(signatures, old, **fields):
    """A decoder of other signatures, with an old one's trunk."""
    torch.manual_seed(2)
    config = replace(old.config, **fields)
    return LM(config, Vocabulary(signatures)).double().eval()


@pytest.fixture
def old(toy_lm):
    return toy_lm(OLD, {"jets": Chained(8)})


def ids_of(vocabulary, modalities):
    """(kind, modality, number) -> id, of all ids that mean something."""
    names = ("pad", "document_mark", "null", "hole", "fill", "mask")
    found = {(name, "", 0): getattr(vocabulary, name) for name in names}
    for m in modalities:
        found["begin", m, 0] = vocabulary.begin(m)
        found["end", m, 0] = vocabulary.end(m)
        found |= {("code", m, i): row for i, row in enumerate(vocabulary.span(m))}
    return found


def test_every_id_goes_where_it_means_the_same():
    old = Vocabulary(OLD)
    new = Vocabulary(NEW)
    where = {first + k: begin + k for first, begin, n in id_blocks(old, new) for k in range(n)}
    mine = ids_of(new, old.signatures)
    theirs = ids_of(old, old.signatures)
    assert where == {theirs[key]: mine[key] for key in theirs}


def test_states_logits_and_scores_of_old_documents_stay(old, corpus, segment):
    new = in_new(NEW, old)
    origin = transfer(old, new)
    n_all = sum(x.numel() for x in new.state_dict().values())
    assert origin.n_copied + origin.n_new == n_all
    n_rows = new.vocabulary.size - sum(n for *_, n in id_blocks(old.vocabulary, new.vocabulary))
    assert origin.n_new == n_rows * old.config.trunk.width
    assert not origin.left_out
    h = torch.randn(5, old.config.trunk.width, dtype=torch.float64)
    for first, begin, n in id_blocks(old.vocabulary, new.vocabulary):
        mine = new.logits(h)[:, begin : begin + n]
        torch.testing.assert_close(mine, old.logits(h)[:, first : first + n])
    documents = [
        Document((segment("text", 4), segment("jets", 5)), (True, True)),
        Document((segment("jets", 3), segment("text", 6)), (False, True)),
    ]
    for before, after in zip(score(old, documents), score(new, documents), strict=True):
        assert after.total == pytest.approx(before.total, rel=1e-12)


def test_what_the_new_one_has_no_place_for_is_named(old):
    new = in_new(NEW, old, heads={})
    assert transfer(old, new).left_out == ("heads.jets",)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (2, 2), (2, 3)])
def test_adapters_are_added_merged_or_kept(toy_lm, segment, before, after):
    plain = toy_lm(OLD, {"jets": Chained(8)})
    old = in_new(OLD, plain, lora=before)
    with torch.no_grad():
        for p in old.parameters():
            p.normal_(std=0.3)
    new = in_new(NEW, old, lora=after)
    transfer(old, new)
    document = Document((segment("text", 4), segment("jets", 5)), (True, True))
    assert score(new, [document])[0].total == pytest.approx(score(old, [document])[0].total)


def test_other_ids_of_a_modality_are_refused(old):
    other = replace(JETS, levels=(6, 4, 4))
    new = in_new((TEXT, other), old)
    with pytest.raises(UserError, match="other ids of jets"):
        transfer(old, new)


def test_the_same_vocabulary_gives_the_same_bits(old):
    new = in_new(OLD, old)
    assert transfer(old, new).n_new == 0
    for name, x in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], x)
