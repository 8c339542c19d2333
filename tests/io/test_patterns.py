"""Laws of patterns: braces as in a shell, globs in order, and nothing is passed over silently."""

import subprocess

import pytest

from mmtok.errors import UserError
from mmtok.io.patterns import expanded, is_pattern, named_places


@pytest.mark.parametrize(
    "name",
    ["a{0..3}.tar", "a{08..11}", "{x,y}/{1..2}", "{3..1}", "{000..2}", "{9..11}", "a", "{a}"],
)
def test_braces_are_those_of_a_shell(name):
    said = subprocess.run(["bash", "-c", f"echo {name}"], capture_output=True, text=True).stdout
    assert expanded(name) == said.split()
    assert is_pattern(name) == (expanded(name) != [name])


def test_places_come_in_order_and_once(tmp_path):
    for name in ("s-10.tar", "s-02.tar", "s-01.tar", "{odd,name}.tar"):
        (tmp_path / name).write_bytes(b"")
    named = [p.name for p in named_places(f"{tmp_path}/s-*.tar", "Source", "tars")]
    assert named == ["s-01.tar", "s-02.tar", "s-10.tar"]
    assert named_places(f"{tmp_path}/s-{{01..02}}.tar", "Source", "tars") == [
        tmp_path / "s-01.tar",
        tmp_path / "s-02.tar",
    ]
    assert len(named_places(f"{tmp_path}/s-{{0[12],*2}}.tar", "Source", "tars")) == 2
    odd = tmp_path / "{odd,name}.tar"
    assert named_places(str(odd), "Source", "tars") == [odd]


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    (tmp_path / "s-01.tar").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="2 of its names stand for nothing: s-00.tar, s-02.tar"):
        named_places("s-{00..02}.tar", "Source", "tars")
    for name, said in [
        (f"{tmp_path}/t-*.tar", "nothing there has such a name; Source wants tars"),
        ("https://host/a.tar", "is an address, and Source reads local files"),
        ("pipe:cat a.tar", "is an address"),
        ("", "Source: no path given"),
        ("{0..9999999}.tar", "more than 1,000,000 names"),
        ("{0..9999}{0..9999}.tar", "more than 1,000,000 names"),
    ]:
        with pytest.raises(UserError, match=said):
            named_places(name, "Source", "tars")
