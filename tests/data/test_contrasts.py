"""Groups of documents: one of an example's fields, one of equal signals, joined over both."""

import numpy as np
import pytest

from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment
from mmtok.data.contrasts import equal_groups, with_groups
from mmtok.data.loader import Loader
from mmtok.data.tasks import Contrast, Task, check_rows
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.errors import UserError


def stream(vocabulary, segment):
    return to_stream(vocabulary, Document((segment,), (False,)))


def text(*codes):
    return Segment("text", codes=np.array(codes)[:, None])


def test_equal_documents_join_the_groups_of_their_examples(vocabulary, segment):
    seven = stream(vocabulary, text(1, 2))
    eight = stream(vocabulary, text(3))
    pictures = [stream(vocabulary, segment("image", 9)) for _ in range(3)]
    clip = stream(vocabulary, segment("speech", 4))
    rows = [[seven, pictures[0], eight, pictures[1]], [seven, clip], [pictures[2]]]
    marks = [[(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)], [(1, 0, 0), (1, 0, 2)], [None]]
    groups, fields = equal_groups(rows, marks)
    assert groups == [[0, 0, 1, 1], [0, 0], [-1]]  # the clip of "seven" is of its picture's group
    assert fields == [[0, 1, 0, 1], [0, 2], [-1]]


@pytest.fixture
def files(tmp_path, vocabulary, segment, rng):
    names = {"caption": "text", "image": "image"}
    signatures = {f: vocabulary.signatures[m] for f, m in names.items()}
    rows = [{"caption": text(1 + i % 3), "image": segment("image", 9)} for i in range(30)]
    write_tokens(tmp_path / "pairs.parquet", signatures, rows)
    return [read_tokens(tmp_path / "pairs.parquet")]


def test_a_contrast_makes_a_document_of_each_field(files, vocabulary):
    contrast = Contrast(("caption", "image"))
    loader = Loader(files, [contrast], vocabulary, {}, batch_size=4, seq_len=40, seed=0)
    batch = loader.batch(3)
    assert not batch.predict.any()
    starts = (batch.position == 0) & (batch.document >= 0)
    assert (batch.ids[starts] == vocabulary.document_mark).all()
    group = batch.group[starts]
    field = batch.field[starts]
    assert sorted(field.unique().tolist()) == [0, 1]
    # three captions in all: as many groups at most, and each has both fields
    assert len(group.unique()) <= 3
    for g in group.unique():
        assert set(field[group == g].tolist()) == {0, 1}
    assert ((batch.group >= 0) == (batch.document >= 0)).all()


def test_documents_of_tasks_beside_contrasts_have_no_group(files, vocabulary):
    tasks = [Contrast(("caption", "image")), Task(("caption",), ("image",))]
    loader = Loader(files, tasks, vocabulary, {}, batch_size=8, seq_len=40, seed=0)
    batch = loader.batch(0)
    assert ((batch.group < 0) & (batch.document >= 0)).any() and (batch.group >= 0).any()
    assert not (batch.predict & (batch.group >= 0)).any()
    plain = Loader(files, tasks[1:], vocabulary, {}, batch_size=8, seq_len=40, seed=0)
    assert plain.batch(0).group is None


def test_numbers_spread_over_their_documents(vocabulary, segment):
    from mmtok.core.batch import pack

    batch = pack(vocabulary, [[stream(vocabulary, text(1)), stream(vocabulary, text(2, 3))]], 12)
    grouped = with_groups(batch, [[5, -1]], [[1, -1]])
    assert grouped.group[0].tolist() == [5] * 4 + [-1] * 8
    assert grouped.field[0].tolist() == [1] * 4 + [-1] * 8


def test_bad_contrasts_are_one_line(files, vocabulary):
    with pytest.raises(UserError, match="two different names or more"):
        Contrast(("caption",))
    with pytest.raises(UserError, match="weight is 0"):
        Contrast(("caption", "image"), weight=0)
    contrast = Contrast(("caption", "sound"))
    with pytest.raises(UserError, match="no example has all fields of contrast caption ~ sound"):
        Loader(files, [contrast], vocabulary, {}, 4, 40, 0)
    with pytest.raises(UserError, match="contrast caption ~ sound: a document takes 26"):
        check_rows([contrast], 20, {"caption": 4, "sound": 16})
