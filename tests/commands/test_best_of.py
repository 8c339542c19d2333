"""Of several draws the likeliest per frame is kept."""

import numpy as np
import pytest

from mmtok.commands.best_of import closed, draw_best, nats_per_frame
from mmtok.commands.sample import prompt_document
from mmtok.errors import UserError


def test_the_best_is_the_likeliest_of_the_same_draws(speaking_run):
    document = prompt_document(speaking_run, ["Ben ran."], "speech")
    sampling = speaking_run.sampling("speech")
    drawn = speaking_run.draw([document] * 6, sampling, 3)
    scores = speaking_run.score_documents([closed(document, found) for found in drawn])
    ranks = [
        (not len(found.segment), found.stop == "cap", nats_per_frame(score.nats[-1], found))
        for found, score in zip(drawn, scores, strict=True)
    ]
    best = draw_best(speaking_run, [document, document], sampling, 3, 3)
    assert len(best) == 2
    for k, found in enumerate(best):
        mine = range(3 * k, 3 * k + 3)
        expected = drawn[min(mine, key=ranks.__getitem__)]
        assert np.array_equal(found.segment.values, expected.segment.values)
    one = draw_best(speaking_run, [document], sampling, 3, 1)
    assert np.array_equal(
        one[0].segment.values, speaking_run.draw([document], sampling, 3)[0].segment.values
    )


def test_what_cannot_be_compared_is_refused(speaking_run, said):
    with pytest.raises(UserError, match="best-of is 0"):
        draw_best(speaking_run, [], speaking_run.sampling("speech"), 0, 0)
    words = ["sample", speaking_run.folder, "--prompt", "low", "--to", "speech", "--best-of", "2"]
    assert "come as files only" in said([*words, "--out", "-"])
