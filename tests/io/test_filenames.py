"""File names from anybody's words, and paths that stay in their folder."""

import unicodedata

import pytest

from mmtok.errors import UserError
from mmtok.io.filenames import MOST_BYTES, file_names, inside, is_name

HOSTILE = [
    "../x",
    "/etc/x",
    "..",
    ".",
    "a/b",
    "a\\b",
    "a\0b",
    "\x1b[31m",
    "a\nb",
    "x" * 320,
    "語" * 320,
    "🚀" * 99,
    "...",
    "   ",
    "",
    " a ",
    "a.",
    ".hidden",
    "-rf",
    "con",
    "NUL.txt",
    "com1",
    "AUX ",
    "a:b",
    "a?",
    "\udcff",
    "\u202eb",
    "CON" + "é" * 99,
    "a" * 99 + " b",
    "~/x",
    "$HOME",
]
ALIKE = [
    "Seven",
    "seven",
    "SEVEN",
    unicodedata.normalize("NFD", "été"),
    "été",
    "Été",
    "straße",
    "STRASSE",
    "\ufb01n",
    "fin",
    "K",
    "\u212a",
]


def folded(name):
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


@pytest.mark.parametrize("space", [" ", "_"])
def test_names_are_safe_short_and_unlike_each_other(space, tmp_path):
    words = HOSTILE + ALIKE + ["three one four", "three_one_four", "a-b", "x" * 320 + "y"]
    names = file_names(words, space=space)
    assert len({folded(name) for name in names}) == len(set(words))
    for name in names:
        assert (
            0 < len(name.encode()) <= MOST_BYTES
            and is_name(name)
            and name.isprintable()
            and not set('<>:"/\\|?*\0') & set(name)
        )
        assert (
            not name.startswith((".", "-", " "))
            and not name.endswith((".", " "))
            and name.split(".")[0].strip().upper() not in ("CON", "NUL", "AUX")
        )
        path = tmp_path / f"{name}-000.wav.png"
        path.write_text(name)
        assert path.parent == tmp_path == inside(tmp_path, path.name).parent
    assert len(list(tmp_path.iterdir())) == len(set(words))


def test_good_names_stay_and_others_can_be_read():
    for name in (
        "seven",
        "Once upon a time",
        "語",
        "été",
        "a.b",
        "three one four",
        "x" * MOST_BYTES,
    ):
        assert file_names([name]) == [name] and is_name(name)
    assert file_names(["three one four"], space="_") == ["three_one_four"]
    assert file_names(["a/b"])[0].startswith("a_b-") and file_names(["../x"])[0].startswith("__x-")
    assert file_names(["x" * 320])[0].startswith("x" * 90)


def test_the_same_words_have_the_same_name_every_time():
    assert file_names(["a", "a/b", "a"]) == ["a", *file_names(["a/b"]), "a"]
    first = file_names(["Seven"])
    second = file_names(["seven"], there=first)
    assert first == ["Seven"] and second[0].startswith("seven-")
    assert (
        file_names(["Seven"], there=first + second) == first
        and file_names(["seven"], there=first + second) == second
    )


def test_nothing_leads_out_of_a_folder(tmp_path):
    home = tmp_path / "home"
    out = tmp_path / "out"
    for folder in (home / "deep", out):
        folder.mkdir(parents=True)
    (out / "x").write_text("secret")
    (home / "deep" / "link").symlink_to(out)
    (home / "file").symlink_to(out / "x")
    (home / "round").symlink_to(home / "round")
    (home / "own").symlink_to(home / "deep")
    (home / "absolute").write_text("")
    for name in (
        "../out/x",
        str(out / "x"),
        "deep/../../out/x",
        "deep/link/x",
        "file",
        "..",
        ".",
        "",
        "/",
        "a\0b",
        "deep/..",
        "round/x",
    ):
        with pytest.raises(UserError, match="is no file inside"):
            inside(home, name)
    for name in ("a", "deep/new/a", "own/a", "...", "a\nb", str(home / "absolute")):
        assert inside(home, name) == home / name
    assert inside(home, "file", root=tmp_path) == home / "file"
    with pytest.raises(UserError):
        inside(home, "../out/x", root=tmp_path)
