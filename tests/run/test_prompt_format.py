"""A form of prompts is read back exactly, or refused with the form."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mmtok.errors import UserError
from mmtok.run.prompt_format import format_fields, parse_prompt

FORM = "{caption}, pt {pt} GeV"


def parsed(text, form=FORM, numbers=("pt",)):
    return parse_prompt(text, form, numbers)


def test_a_prompt_is_taken_apart():
    assert format_fields(FORM) == ["caption", "pt"]
    assert parsed("top jet, pt 600 GeV") == {"caption": "top jet", "pt": "600"}
    assert parsed("a, pt 5, pt 6.5e2 GeV") == {"caption": "a, pt 5", "pt": "6.5e2"}
    assert parsed("{x} 3", "{{x}} {n}", ("n",)) == {"n": "3"}


@given(st.text(min_size=1), st.floats(1, 1e6))
def test_what_is_written_is_read(caption, pt):
    assume(", pt" not in caption)
    assert parsed(FORM.format(caption=caption, pt=pt)) == {"caption": caption, "pt": str(pt)}


@pytest.mark.parametrize(
    "text",
    [
        "top jet",
        "top jet, pt 600 GeV ",
        "top jet, pt 600 gev",
        "top jet, pt  600 GeV",
        "top jet, pt six GeV",
        "top jet, pt nan GeV",
        ", pt 600 GeV",
    ],
)
def test_any_other_text_is_refused_with_the_form(text):
    with pytest.raises(UserError) as said:
        parsed(text)
    assert '"{caption}, pt {pt} GeV"' in str(said.value)
    assert "pt is a number" in str(said.value) and "\n" not in str(said.value)


@pytest.mark.parametrize(
    "form, words",
    [
        ("top", "names no field"),
        ("{a}{b}", "nothing stands between 'a' and 'b'"),
        ("{a} {a}", "each field once"),
        ("{a:.1f}", "each field once"),
        ("{} x", "each field once"),
        ("{a", "expected '}'"),
    ],
)
def test_forms_that_cannot_be_read_back_are_refused(form, words):
    with pytest.raises(UserError, match=words):
        format_fields(form)
