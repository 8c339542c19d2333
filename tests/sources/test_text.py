"""Text files: strict UTF-8, whole or not at all; chunks that join to the file."""

import pytest

from mmtok.errors import UserError
from mmtok.sources.text import TextFile, chunks, read_text, write_text


@pytest.mark.parametrize(
    "text", ["seven", " \r\n\t\0\u2581 \U0001f469 e\u0301", "\ufeffwith a mark"]
)
def test_what_is_written_is_read(tmp_path, text):
    write_text(tmp_path / "a.txt", text)
    assert read_text(tmp_path / "a.txt") == text
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_unusable_files_are_refused(tmp_path):
    (tmp_path / "latin1.txt").write_bytes("caf\u00e9 noir".encode("latin1"))
    (tmp_path / "empty.txt").write_bytes(b"")
    reasons = {
        "latin1.txt": "0xE9 at offset 3",
        "empty.txt": "empty",
        "missing.txt": "no such file",
        ".": "cannot be read",
    }
    for name, says in reasons.items():
        with pytest.raises(UserError, match=says) as error:
            read_text(tmp_path / name)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(UserError, match="surrogate"):
        write_text(tmp_path / "a.txt", "new \ud800")
    assert (tmp_path / "a.txt").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "nowhere" / "a.txt", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "folder", "new")
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "text",
    ["", "a", "x" * 100, "one two three four five six seven " * 9, "line\nline\n\n  line\n" * 20],
)
@pytest.mark.parametrize("chunk_chars", [1, 2, 7, 40, 1000])
def test_chunks_join_to_the_text(text, chunk_chars):
    cut = list(chunks(text, chunk_chars))
    assert "".join(cut) == text and all(0 < len(passage) <= chunk_chars for passage in cut)


def test_chunks_end_behind_white_space():
    assert list(chunks("seven eight nine", 12)) == ["seven eight ", "nine"]


def test_source_holds_out_the_end(tmp_path):
    text = "one two three four five six seven eight nine ten " * 40
    write_text(tmp_path / "a.txt", text)
    source = TextFile(tmp_path / "a.txt", chunk_chars=50, heldout_share=0.25)
    parts = {
        split: [example["text"] for example in source.examples(split, tmp_path)]
        for split in source.splits
    }
    assert "".join(parts["train"] + parts["heldout"]) == text
    assert len("".join(parts["heldout"])) == len(text) // 4
    assert source.fields == {"text": "text"} and set(source.splits) == {"train", "heldout"}


def test_source_refuses_what_it_cannot_split(tmp_path):
    write_text(tmp_path / "a.txt", "ab")
    source = TextFile(tmp_path / "a.txt")
    assert [next(source.examples(split))["text"] for split in source.splits] == ["a", "b"]
    write_text(tmp_path / "a.txt", "a")
    with pytest.raises(UserError, match="longer"):
        next(source.examples("train"))
    with pytest.raises(UserError, match="no split 'test'"):
        next(source.examples("test"))
    with pytest.raises(UserError, match="no such file"):
        next(TextFile(tmp_path / "missing.txt").examples("train"))
    with pytest.raises(UserError, match="chunk_chars"):
        TextFile(tmp_path / "a.txt", chunk_chars=0)
    with pytest.raises(UserError, match="heldout_share"):
        TextFile(tmp_path / "a.txt", heldout_share=1.0)


def test_a_folder_of_texts_is_cut_at_the_end_of_all(tmp_path):
    for name, text in (
        ("b.txt", "b" * 50),
        ("a.TXT", "a" * 50),
        ("._c.txt", "c"),
        ("d/e.txt", "e" * 20),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    source = TextFile(str(tmp_path), chunk_chars=40, heldout_share=0.25)
    with pytest.warns(UserWarning, match="left out 1 hidden"):
        parts = [[e["text"] for e in source.examples(split)] for split in source.splits]
    assert parts == [["a" * 40, "a" * 10, "b" * 40], ["b" * 10, "e" * 20]]
    with pytest.warns(UserWarning, match="1 of 3 chunks was left out: fewer characters than 20"):
        assert (
            len(
                list(
                    TextFile(
                        str(tmp_path), chunk_chars=40, heldout_share=0.25, min_chars=20
                    ).examples("train")
                )
            )
            == 2
        )


def test_one_broken_text_in_a_hundred_is_passed_over(tmp_path):
    for i in range(100):
        (tmp_path / f"{i:02}.txt").write_text(f"text {i}")
    (tmp_path / "50.txt").write_bytes(b"\xff")
    with pytest.warns(
        UserWarning, match="1 of 100 files was passed over as unusable .*50.txt: not UTF-8"
    ):
        TextFile(str(tmp_path)).check()
    (tmp_path / "60.txt").write_bytes(b"")
    with pytest.raises(UserError, match="60.txt: 2 of 100 files cannot be used"):
        TextFile(str(tmp_path)).check()
