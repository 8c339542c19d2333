"""Documents of JSON lines: texts, pictures, sounds, jets and numbers in any order."""

import json

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.sources.image_files import write_image
from mmtok.sources.interleaved import InterleavedFile, read_documents
from mmtok.sources.jet_formats import write_jets
from mmtok.sources.sound_files import write_sound


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "media").mkdir()
    write_image(tmp_path / "media" / "cat.png", np.full((3, 4, 3), 7, np.uint8))
    write_sound(tmp_path / "media" / "meow.wav", np.full(800, 0.25, np.float32))
    jets = [np.array([[10 * (i + 1), 0, 0]], np.float32) for i in range(3)]
    write_jets(tmp_path / "media" / "jets.npz", jets)
    return tmp_path


def write(folder, *values, name="docs.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


PARTS = [
    {"type": "text", "text": "A cat:"},
    {"type": "image", "path": "media/cat.png"},
    {"type": "audio", "path": "media\\meow.wav", "predict": False},
    {"type": "jets", "path": "media/jets.npz", "index": 2},
    {"type": "jets", "constituents": [[5, 0.1, 0.2]]},
    {"type": "number", "name": "pt_gev", "value": "600"},
]
TEXT = {"type": "text", "text": "x"}


def test_every_kind_of_part(folder):
    path = write(folder, {"content": PARTS})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    [(name, document)] = read_documents(path)
    assert name == f"{path}, line 1"
    modalities = [part.modality for part in document.parts]
    assert modalities == ["text", "image", "speech", "jets", "jets", "pt_gev"]
    text, image, sound, jet, inline, number = (part.signal for part in document.parts)
    assert text == "A cat:" and number == 600.0
    assert (image.pixels == 7).all() and image.pixels.shape == (3, 4, 3)
    assert np.allclose(sound.samples, 0.25, atol=1e-4) and len(sound.samples) == 800
    assert jet.tolist() == [[30, 0, 0]] and np.allclose(inline, [[5, 0.1, 0.2]])
    assert [part.predict for part in document.parts] == [True, True, False, True, True, True]


def test_the_forms_of_chats(folder):
    """OpenAI's image_url and Hugging Face's image; of messages the assistant's carry loss."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [TEXT, {"type": "image_url", "image_url": {"url": "media/cat.png"}}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    path = write(
        folder, {"messages": messages}, [TEXT, {"type": "image", "image": "media/cat.png"}]
    )
    (_, chat), (_, plain) = read_documents(path)
    assert [(p.modality, p.predict) for p in chat.parts] == [
        ("text", False),
        ("text", False),
        ("image", False),
        ("text", True),
    ]
    assert [p.modality for p in plain.parts] == ["text", "image"]


def test_messages_of_other_words_and_files_listed_beside_them(folder):
    """LLaVA's from and value with <image>; Hugging Face's parts without a path."""
    llava = {
        "image": "media/cat.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A cat."},
        ],
    }
    messages = [
        {"role": "user", "content": [{"type": "image"}, TEXT, {"type": "audio"}]},
        {"role": "assistant", "content": "y"},
    ]
    listed = {"images": ["media/cat.png"], "audios": ["media/meow.wav"], "messages": messages}
    plain = {"messages": [{"role": "gpt", "content": "<image> is a word"}]}
    path = write(folder, llava, listed, plain)
    found = [[(p.modality, p.predict) for p in d.parts] for _, d in read_documents(path)]
    answered = [("text", False), ("text", True)]
    assert found[0] == [("image", False), *answered]
    assert found[1] == [("image", False), ("text", False), ("speech", False), ("text", True)]
    assert found[2] == [("text", True)]
    (_, first), _, (_, last) = read_documents(path)
    assert [p.signal for p in first.parts[1:]] == ["\nWhat is it?", "A cat."]
    assert last.parts[0].signal == "<image> is a word"
    for value, said in [
        (llava | {"image": ["media/cat.png"] * 2}, "no message has a place for media/cat.png"),
        ({"messages": messages}, "a place for an image has no file, as path or in image or images"),
        (llava | {"image": 3}, "image is 3; it must be a path or a list of paths"),
        ({"messages": [{"content": "x"}]}, "message 0 has no role"),
    ]:
        with pytest.raises(UserError, match=said):
            list(read_documents(write(folder, value)))


def test_documents_without_loss_and_packed_files_are_refused(folder):
    asked = {"messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(UserError, match="line 1: no part carries loss.* 2 of 2 documents"):
        InterleavedFile(str(write(folder, asked, asked))).check()
    (folder / "docs.jsonl.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match="docs.jsonl.gz: is packed"):
        InterleavedFile(str(folder / "docs.jsonl.gz")).check()


def test_splits_are_disjoint_and_repeatable(folder):
    path = write(folder, *({"content": [{"type": "text", "text": f"{i}"}]} for i in range(20)))
    with path.open("a") as file:
        file.write("\n\n")
    source = InterleavedFile(str(path))
    assert source.fields == {"document": "interleaved"}

    def read(split):
        examples = list(source.examples(split, folder))
        return [e["document"].parts[0].signal for e in examples], [e.name for e in examples]

    train, names = read("train")
    heldout, _ = read("heldout")
    assert len(heldout) == 2 and sorted(map(int, train + heldout)) == list(range(20))
    assert read("train") == (train, names)
    assert names[0] == f"{path}, line {int(train[0]) + 1}"
    assert sum(len(chunk.items) for chunk in source.listing("train").chunks) == 18


@pytest.mark.parametrize(
    "value, words",
    [
        ({"content": []}, "has no parts"),
        ({"text": "x"}, "has no content"),
        ({"content": 3}, "must be a list of parts"),
        ([{"type": "video", "path": "a.mp4"}], "part 0: .*no type that is known.*text, image"),
        ([TEXT, {"type": "text"}], "part 1: text is None"),
        ([{"type": "image"}], "part 0: has no path"),
        ([{"type": "image", "path": "media/dog.png"}], "no file media/dog.png in"),
        ([{"type": "image", "path": "../../etc/passwd"}], "no file inside"),
        ([{"type": "image_url", "image_url": {"url": "https://a.b/c.png"}}], "download it"),
        ([{"type": "image", "path": "media/meow.wav"}], "meow.wav"),
        ([{"type": "jets", "path": "media/jets.npz", "index": 3}], "has no jet 3"),
        ([{"type": "jets", "path": "media/jets.npz", "index": -1}], "index is -1"),
        ([{"type": "number", "value": "many"}], "'many' is no number"),
        ([{"type": "text", "text": "x", "predict": "no"}], "predict is 'no'"),
    ],
)
def test_what_is_no_document_is_refused_in_one_line(folder, value, words):
    path = write(folder, value, name="d.jsonl")
    with pytest.raises(UserError, match=words) as said:
        list(read_documents(path))
    assert str(path.parent) in str(said.value) and "\n" not in str(said.value)


def test_broken_documents_are_passed_over_while_they_are_few(folder):
    good = [{"content": [{"type": "text", "text": f"document {i}"}]} for i in range(30)]
    path = write(folder, *good, {"content": [{"type": "image", "path": "gone.png"}]})
    with path.open("a") as file:
        file.write("{not json\n")
    with pytest.raises(UserError, match=r"line 31.*2 of 32 documents cannot be used"):
        InterleavedFile(str(path)).check()
    source = InterleavedFile(str(path), max_error_share=0.1)
    with pytest.warns(UserWarning, match="2 of 32 documents were passed over"):
        assert len(list(source.examples("train", folder))) == 27


def test_a_document_in_both_splits_is_a_leak(folder):
    source = InterleavedFile(str(write(folder, *[{"content": [TEXT]}] * 30)))
    with pytest.raises(UserError, match="held out, and its content is in training too"):
        source.check()
    allowed = InterleavedFile(source.path, max_leak_share=1.0)
    with pytest.warns(UserWarning, match="3 of 3"):
        allowed.check()


@pytest.mark.parametrize("name, words", [("none.jsonl", "no such file"), ("media", "is a folder")])
def test_a_place_without_documents_is_said(folder, name, words):
    with pytest.raises(UserError, match=words):
        InterleavedFile(str(folder / name)).check()


def test_an_empty_file_and_a_single_document_are_refused(folder):
    for values in ((), ({"content": [TEXT]},)):
        source = InterleavedFile(str(write(folder, *values)))
        with pytest.raises(UserError, match="cannot be split"):
            list(source.examples("train", folder))


@pytest.mark.parametrize("indent, ends", [(None, "\n"), (2, "\n"), (2, "\r\n")])
def test_an_array_of_documents_as_of_llava(folder, indent, ends):
    turns = [{"from": "human", "value": "<image>\nWhät?"}, {"from": "gpt", "value": "Ein Tïer."}]
    rows = [{"id": str(i), "image": "media/cat.png", "conversations": turns} for i in range(20)]
    rows[7]["image"] = "media/none.png"
    path = folder / "llava_instruct.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=False).replace("\n", ends)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    source = InterleavedFile(str(path), max_error_share=0.1, max_leak_share=1.0)
    with pytest.warns(UserWarning, match="llava_instruct.json, document 8, part 0: no file"):
        found = [list(source.examples(split)) for split in ("train", "heldout")]
    assert [len(part) for part in found] == [17, 2]
    parts = found[0][0]["document"].parts
    assert parts[-1].signal == "Ein Tïer." and parts[-1].predict
    with pytest.raises(UserError, match="document 8, part 0: no file"):
        list(read_documents(path))
    path.write_text(json.dumps(rows)[:-5])
    with pytest.raises(UserError, match="llava_instruct.json: not JSON at character"):
        source.check()


def test_a_list_of_parts_stays_one_document(folder):
    path = write(folder, PARTS, name="one.json")
    [(name, document)] = read_documents(path)
    assert name == str(path) and len(document.parts) == len(PARTS)
