import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from mmtok.core.segment import Document, Segment, Signature
from mmtok.errors import missing_extra
from mmtok.io.serialize import from_plain


def codes(n, c=1):
    return np.zeros((n, c), int)


def test_a_signature_has_levels_or_latents():
    for wrong in ({}, {"levels": (3,), "latent_size": 2}):
        with pytest.raises(ValueError, match="exactly one"):
            Signature("x", **wrong)
    with pytest.raises(ValueError, match="banned"):
        Signature("x", (3, 3), banned=(1,))


def test_a_signature_survives_json():
    text = Signature("text", (9,), banned=(0,), fingerprint="ab")
    jets = Signature("jets", (4, 3), descending=True)
    for s in (text, jets, Signature("v", latent_size=4, frames=1)):
        assert from_plain(json.loads(json.dumps(s.as_dict())), Signature, "signature") == s


@pytest.mark.parametrize("spans", [((3, 2),), ((0, 2), (1, 3)), ((4, 6),), ((-1, 2),)])
def test_spans_to_infill_are_ordered_and_within_the_frames(spans):
    with pytest.raises(ValueError, match="infill_spans"):
        Segment("x", codes=codes(5), infill_spans=spans)


def test_spans_to_infill_may_touch_be_empty_and_reach_the_ends():
    spans = ((0, 0), (0, 2), (2, 5), (5, 5))
    assert Segment("x", codes=codes(5), infill_spans=spans).infill_spans == spans


def test_a_segment_is_one_table_of_frames():
    with pytest.raises(ValueError, match="exactly one"):
        Segment("x")
    with pytest.raises(ValueError, match="exactly one"):
        Segment("x", codes=codes(2), latents=np.zeros((2, 1), np.float32))
    with pytest.raises(ValueError, match="shape"):
        Segment("x", codes=np.zeros(3, int))
    with pytest.raises(ValueError, match="truncated"):
        Segment("x", codes=codes(3), truncated=True, infill_spans=((0, 1),))
    assert len(Segment("x", codes=codes(3))) == 3


def test_a_document_flags_each_segment_and_predicts_none_that_is_left_out():
    with pytest.raises(ValueError, match="flags"):
        Document((Segment("x", codes=codes(1)),), ())
    with pytest.raises(ValueError, match="left out"):
        Document((None,), (True,))


def test_a_document_s_target_is_its_last_segment_if_there_is_one():
    word, picture = (Segment(m, codes=np.zeros((1, 1), int)) for m in ("text", "image"))
    assert Document((word, None, picture), (False,) * 3).target is picture
    for without in (Document((), ()), Document((picture, None), (True, False))):
        with pytest.raises(ValueError, match="no last segment"):
            without.target


def test_a_missing_extra_names_one_command_that_works_anywhere():
    """For an installed package too: no path, and an extra that the package declares."""
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert (
        str(missing_extra("making jets", "jets"))
        == "making jets needs the extra: pip install 'mmtok[jets]'"
    )
    said = 0
    for path in [*(root / "mmtok").rglob("*.py"), *(root / "scripts").glob("*.py")]:
        text = path.read_text()
        assert "pip install -e" not in text and "pip install '." not in text, path
        for call in re.findall(r'missing_extra\(.*, "(\w+)"\)|mmtok\[(\w+)\]', text):
            said += 1
            assert "".join(call) in extras, path
    assert said >= 11
