"""A run becomes a folder for `transformers`: equal logits, equal ids, and what it writes can be a
start again.
"""

import dataclasses
import json
import resource
import shutil

import numpy as np
import pytest
import torch

from mmtok.cli import main
from mmtok.commands.export import export, id_names, unreachable
from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.io.locks import folder_lock
from mmtok.model.likelihood import score
from mmtok.model.llama import from_llama
from mmtok.nn.denoisers import DiTConfig
from mmtok.run.build import train
from mmtok.run.run import open_run
from mmtok.tokenizers.autotokenizer import write_autotokenizer
from mmtok.tokenizers.pretrained import PretrainedTextConfig
from mmtok.tokenizers.text import BytesConfig, SentencePieceConfig

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings(
    "ignore:export. this model writes text"
)  # its run draws images too

CAPTIONS = [
    "dark",
    "light",
    "it is été",
    "seven  o'clock, and all is well",
    "a b\nc",
    "low high low",
] * 3
HARD = [
    "",
    " ",
    "  a  b ",
    "\u2581 x\u2581",
    "\ufffd\0",
    "<s></s><unk><0x41>",
    "<|pad|> <|document|>x",
    "<|unused_1|>",
    "\U0001f469\u200d\U0001f680",
    "\u00e9e\u0301",
]
NAMES = ["<|pad|>", "<|document|>", "<|begin_text|>", "<|end_text|>"]


def same_logits(run, folder, ids):
    """Assert that transformers' model of a folder says what the run's says of a text after ids (1,
    L), and nothing else.
    """
    llama = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    lm = run.lm.cpu()
    far = unreachable(run.vocabulary, "text")
    near = sorted({*range(run.vocabulary.size)} - {*far})
    assert llama.config.vocab_size == run.vocabulary.size
    with torch.no_grad():
        mine = lm.logits(
            lm.model(
                lm.model.embed_tokens(ids), torch.arange(ids.shape[1])[None], torch.zeros_like(ids)
            )
        )
        theirs = llama(ids).logits
    assert torch.allclose(theirs[..., near], mine[..., near], rtol=0, atol=1e-5)
    assert bool((theirs.softmax(-1)[..., far] == 0).all())


def test_transformers_opens_a_run_with_equal_logits_and_ids(one_channel, tmp_path, capsys):
    assert main(["export", str(one_channel), "-o", str(tmp_path / "llama")]) == 0
    assert capsys.readouterr().out.split()[-1] == str(tmp_path / "llama")
    run = open_run(one_channel)
    v = open_run(one_channel).vocabulary
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama")
    assert len(auto) == v.size
    ids = auto("dark light", return_tensors="pt").input_ids
    assert ids[0].tolist() == [v.document_mark, v.begin("text"), *b"dark light"]
    same_logits(run, tmp_path / "llama", ids)
    assert auto.convert_ids_to_tokens([v.begin("image"), v.span("image")[3], v.end("image")]) == [
        "<|begin_image|>",
        "<|image_3|>",
        "<|end_image|>",
    ]
    assert (
        auto.decode([*ids[0], v.end("text"), v.span("image")[0]], skip_special_tokens=True)
        == "dark light"
    )
    assert (auto.pad_token_id, auto.bos_token_id, auto.eos_token_id) == (
        v.pad,
        v.document_mark,
        v.end("text"),
    )


def test_generate_stops_where_the_run_would(one_channel, tmp_path):
    """Also over a former export whose file says otherwise."""
    v = open_run(one_channel).vocabulary
    for _ in range(2):
        folder = export(open_run(one_channel), tmp_path / "llama")
        found = transformers.AutoModelForCausalLM.from_pretrained(folder).generation_config
        assert found.eos_token_id == [v.end("text"), v.end("image")] and (
            found.bos_token_id,
            found.pad_token_id,
        ) == (v.document_mark, v.pad)
        (folder / "generation_config.json").write_text('{"eos_token_id": 1}')


def drawn(folder, start, temperature):
    """2,000 ids and more that transformers draws after ids, with nothing but the temperature set;
    what follows an end is dropped.
    """
    llama = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = []
    torch.manual_seed(0)
    ends = llama.generation_config.eos_token_id
    while len(ids) < 2000:
        rows = llama.generate(
            torch.tensor([start] * 32),
            do_sample=True,
            temperature=temperature,
            top_k=0,
            max_new_tokens=100,
        )
        for row in rows[:, len(start) :].tolist():
            end = next((i for i, id in enumerate(row) if id in ends), len(row))
            ids += row[: end + 1]
    return set(ids)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_whatever_generate_draws_is_a_text(one_channel, temperature, tmp_path):
    """By generation_config.json, and by the weights alone, which other engines go by."""
    run = open_run(one_channel)
    v = run.vocabulary
    folder = export(run, tmp_path / "llama")
    settings = json.loads((folder / "generation_config.json").read_text())
    assert settings["suppress_tokens"] == [
        *range(256, v.end("text")),
        *range(v.end("text") + 1, v.size),
    ]
    valid = {*v.span("text"), v.end("text")}
    assert drawn(folder, [v.document_mark, v.begin("text")], temperature) <= valid
    (folder / "generation_config.json").unlink()
    found = drawn(folder, [v.document_mark, v.begin("text")], temperature)
    assert found <= valid and v.end("text") in found


def test_another_modality_is_written_where_it_is_asked_for(one_channel, tmp_path, capsys, said):
    """Of text and images one: what the other's ids are is read, and not written."""
    run = open_run(one_channel)
    place = str(tmp_path / "llama")
    v = run.vocabulary
    assert main(["export", str(one_channel), "-o", place]) == 0
    assert (
        "this model writes text; for one that writes image name it with --to"
        in capsys.readouterr().err
    )
    assert (
        main(["export", str(one_channel), "-o", place, "--to", "image"]) == 0
        and "note" not in capsys.readouterr().err
    )
    assert drawn(place, [v.document_mark, v.null, v.begin("image")], 1.0) <= {
        *v.span("image"),
        v.end("image"),
    }
    assert "no task of this run makes speech; --to is one of image, text" in said(
        ["export", str(one_channel), "-o", place, "--to", "speech"]
    )
    assert unreachable(Vocabulary([Signature("text", (4,), banned=(1,))]), "text") == [
        1,
        *range(4, 11),
        *range(12, 68),
    ]


def test_codes_that_a_head_draws_are_no_llamas(one_channel, tmp_path):
    run = open_run(one_channel)
    heads = {"image": MaskedDiffusion(DiTConfig(1, 8, 1), grid=None)}
    recipe = dataclasses.replace(
        run.recipe,
        model=dataclasses.replace(run.recipe.model, heads=heads),
        tasks=run.recipe.tasks[:1],
    )
    with pytest.raises(UserError, match="image is drawn by a head of its own"):
        export(train(recipe, tmp_path / "run"), tmp_path / "llama")
    assert not (tmp_path / "llama").exists()


def test_an_export_overwrites_nothing_but_an_export(
    one_channel, make_llama, tmp_path, contents, capsys
):
    make_llama(tmp_path / "llama")
    folder = export(open_run(one_channel), tmp_path / "tuned")
    transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(
        folder
    )  # as after training there
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("precious")
    shutil.copytree(tmp_path / "llama", tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{")
    for name, says in (
        ("llama", "a model that is no export"),
        ("tuned", "a model that is no export"),
        ("broken", "a model that is no export"),
        ("notes", "is not empty"),
    ):
        before = contents(tmp_path / name)
        capsys.readouterr()
        assert main(["export", str(one_channel), "-o", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert (
            says in err
            and str(tmp_path / name) in err
            and err.count("\n") == 1
            and contents(tmp_path / name) == before
        )
    (tmp_path / "empty").mkdir()
    assert (
        main(["export", str(one_channel), "-o", str(tmp_path / "empty")])
        == 0
        == main(["export", str(one_channel), "-o", str(tmp_path / "empty")])
    )


@pytest.fixture
def refused(one_channel):
    """The run with a text tokenizer that AutoTokenizer has no counterpart for: its weights could be
    written.
    """
    run = open_run(one_channel)
    run.vocabulary, run.lm  # noqa: B018 - opened with the tokenizers that it has
    run.tokenizers["text"] = type("Own", (), {"signature": run.vocabulary.signatures["text"]})()
    return run


def test_a_refused_export_leaves_everything_as_it_was(one_channel, refused, tmp_path, contents):
    folder = export(open_run(one_channel), tmp_path / "llama")
    before = contents(folder)
    assert set(before) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    (tmp_path / "empty").mkdir()
    for place in (folder, tmp_path / "empty", tmp_path / "new" / "deeper"):
        with pytest.raises(UserError, match="no counterpart"):
            export(refused, place)
    with folder_lock(folder), pytest.raises(UserError, match="is being written by process"):
        export(open_run(one_channel), folder)
    assert (
        contents(folder) == before
        and contents(tmp_path / "empty") == {}
        and not (tmp_path / "new").exists()
    )


def test_a_full_disk_and_an_interrupt_leave_everything_as_it_was(
    one_channel, tmp_path, contents, monkeypatch
):
    run = open_run(one_channel)
    folder = tmp_path / "llama"
    before = contents(export(run, folder))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for place in (folder, tmp_path / "new"):
        for name in ("model.safetensors", "tokenizer.json"):
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (len(before[name]) - 1, hard)
            )  # no file may grow to this one's size
            try:
                with pytest.raises(OSError, match="too large") as error:
                    export(run, place)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert error.value.filename == str(place / name)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(
                "mmtok.commands.export.json.dumps", lambda *args, **named: raises(KeyboardInterrupt)
            )
            export(run, place)
    assert contents(folder) == before and not (tmp_path / "new").exists()


def raises(kind):
    raise kind


def test_what_was_exported_opens_again_but_is_no_start(one_channel, tmp_path):
    """Its ids are text's and images': as a language model of text alone it would read images as
    text.
    """
    run = open_run(one_channel)
    folder = export(run, tmp_path / "llama")
    again = from_llama(folder, run.vocabulary)
    for (name, a), b in zip(run.lm.state_dict().items(), again.state_dict().values(), strict=True):
        assert (
            torch.equal(a.cpu(), b) if a.ndim > 1 else torch.allclose(a.cpu(), b, rtol=2e-7, atol=0)
        ), name
    document = Document(
        (Segment("text", codes=np.frombuffer(b"dark light", np.uint8)[:, None].astype(int)),),
        (True,),
    )
    before, after = (score(lm.cpu(), [document])[0].total for lm in (run.lm, again))
    assert after == pytest.approx(before, rel=1e-6)
    with pytest.raises(UserError, match="was exported from a run"):
        train(dataclasses.replace(run.recipe, start=str(folder)), tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "config",
    [BytesConfig(), SentencePieceConfig(340), SentencePieceConfig(340, "bpe")],
    ids=["bytes", "unigram", "bpe"],
)
def test_autotokenizer_gives_the_same_ids(config, tmp_path):
    tokenizer = config.build() if isinstance(config, BytesConfig) else config.fit(CAPTIONS)
    special = {"bos_token": NAMES[1], "eos_token": NAMES[3], "pad_token": NAMES[0]}
    write_autotokenizer(tokenizer, tmp_path, NAMES, NAMES[1:3], special)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    n = tokenizer.signature.levels[0]
    rng = np.random.default_rng(0)
    drawn = [
        "".join(rng.choice(list("seven o'clk\u2581\n<|0x41>é漢"), rng.integers(1, 40)))
        for _ in range(200)
    ]
    for text in CAPTIONS + HARD + drawn:
        ids = auto(text, add_special_tokens=False).input_ids
        assert ids == tokenizer.encode(text).codes[:, 0].tolist(), text
        assert auto.decode(ids) == text and auto(text).input_ids == [n + 1, n + 2, *ids]


def test_a_pretrained_tokenizer_is_written_back_with_its_ids(make_llama, tmp_path):
    make_llama(tmp_path / "llama")
    tokenizer = PretrainedTextConfig(str(tmp_path / "llama")).build()
    write_autotokenizer(tokenizer, tmp_path / "out", NAMES, NAMES[1:3], {"eos_token": NAMES[3]})
    auto, before = (
        transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("out", "llama")
    )
    for text in CAPTIONS + ["<|end|>"]:
        ids = auto(text, add_special_tokens=False).input_ids
        assert ids == tokenizer.encode(text).codes[:, 0].tolist() and auto.decode(ids) == text
        assert text == "<|end|>" or ids == before(text, add_special_tokens=False).input_ids
    assert auto.convert_tokens_to_ids(NAMES) == [288, 289, 290, 291]


LETTERS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|pad|>",
]  # of the tokenizer below: the last is the name of a mark of ours too


def byte_level(special):
    """A byte-level BPE with these special pieces, as a pretrained model has one."""
    lib = pytest.importorskip("tokenizers")
    tok = lib.Tokenizer(lib.models.BPE())
    tok.pre_tokenizer = lib.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = lib.decoders.ByteLevel()
    alphabet = lib.pre_tokenizers.ByteLevel.alphabet()
    trainer = lib.trainers.BpeTrainer(
        vocab_size=275, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(CAPTIONS, trainer)
    return tok


def test_marks_give_way_to_pieces_of_their_names(one_channel, make_llama, tmp_path):
    """A run that starts from a tokenizer with its own <|pad|>, and rows to spare of which one's
    name is taken too.
    """
    make_llama(tmp_path / "start")
    byte_level([*LETTERS, "<|fill|>", "<|unused_280|>", "<|image_0|>"]).save(
        str(tmp_path / "start" / "tokenizer.json")
    )
    run = train(
        dataclasses.replace(open_run(one_channel).recipe, start=str(tmp_path / "start")),
        tmp_path / "run",
    )
    folder = export(run, tmp_path / "llama")
    v = run.vocabulary
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    assert (auto.pad_token, auto.pad_token_id, auto.bos_token) == (
        "<|mmtok_pad|>",
        v.pad,
        "<|document|>",
    )
    names = {
        "<|pad|>": 2,
        "<|fill|>": 3,
        "<|mmtok_fill|>": v.fill,
        "<|mask|>": v.mask,
        "<|mmtok_image_0|>": v.span("image")[0],
        "<|image_1|>": v.span("image")[1],
        "<|unused_280|>": 4,
        "<|mmtok_unused_280|>": 280,
        "<|unused_281|>": 281,
    }
    assert auto.convert_tokens_to_ids(list(names)) == list(names.values()) and len(auto) == v.size
    for text in [*CAPTIONS, *HARD, "<|mmtok_pad|><|begin_of_text|>"]:
        ids = auto(text, add_special_tokens=False).input_ids
        assert (
            ids == run.tokenizers["text"].encode(text).codes[:, 0].tolist()
            and auto.decode(ids) == text
        )
    same_logits(run, folder, auto("dark <|pad|>", return_tensors="pt").input_ids)


def test_the_context_length_is_the_starts_and_of_an_older_run_ours(
    one_channel, make_llama, tmp_path
):
    make_llama(tmp_path / "start")
    start = json.loads((tmp_path / "start" / "config.json").read_text())
    (tmp_path / "start" / "config.json").write_text(
        json.dumps(start | {"max_position_embeddings": 131_072})
    )
    recipe = dataclasses.replace(open_run(one_channel).recipe, start=str(tmp_path / "start"))
    run = train(recipe, tmp_path / "run")
    place = tmp_path / "run" / "recipe.json"

    def says(run):
        return json.loads((export(run, tmp_path / "llama") / "config.json").read_text())[
            "max_position_embeddings"
        ]

    assert (
        says(run) == says(open_run(run.folder)) == 131_072 and says(open_run(one_channel)) == 32_768
    )
    older = json.loads(place.read_text())
    del older["model"]["trunk"]["max_positions"]
    place.write_text(json.dumps(older))
    assert says(open_run(run.folder)) == says(train(recipe, run.folder)) == 32_768


def test_ids_with_gaps_are_refused_naming_the_first(make_llama, tmp_path):
    make_llama(tmp_path / "start")
    pieces = json.loads((tmp_path / "start" / "tokenizer.json").read_text())
    last = max(pieces["model"]["vocab"], key=pieces["model"]["vocab"].get)
    pieces["model"]["vocab"][last] += 3
    (tmp_path / "start" / "tokenizer.json").write_text(json.dumps(pieces))
    tokenizer = PretrainedTextConfig(str(tmp_path / "start")).build()
    n = len(pieces["model"]["vocab"])
    with pytest.raises(UserError, match=f"no piece for the id {n - 1}, but for {n + 2}") as refusal:
        write_autotokenizer(tokenizer, tmp_path / "x", NAMES, NAMES[1:3], {})
    assert "\n" not in str(refusal.value) and not (tmp_path / "x").exists()
    with pytest.raises(UserError, match="65 of the text tokenizer has that name"):
        write_autotokenizer(BytesConfig().build(), tmp_path / "x", ["A"], [], {})


def test_every_id_has_one_name():
    v = Vocabulary(
        [Signature("text", (9,)), Signature("image", (7,), frames=9), Signature("codes", (5,))]
    )
    names = id_names(v)
    assert len(names) == len(set(names)) == v.size - 9
    odd = Vocabulary(
        [Signature("text", (9,)), Signature("reserved", (70,)), Signature("mmtok_pad", (3,))]
    )
    again = id_names(odd, ["<|pad|>", "<|mmtok_pad|>", "<|mmtok_pad_1|>", "here"])
    assert (
        len(again) == len(set(again)) == odd.size - 9
        and again[0] == "<|mmtok_mmtok_pad|>"
        and "<|mmtok_mmtok_pad_1|>" in again
    )
    assert not {"<|pad|>", "here"} & set(again) and "<|mmtok_reserved_20|>" in again
    assert (
        names[v.null - 9] == "<|null|>"
        and names[v.end("codes") - 9] == "<|end_codes|>"
        and names[-1] == "<|codes_4|>"
    )


def test_channels_and_run_folders_are_refused(tiny_run, one_channel, tmp_path, capsys):
    assert main(["export", str(tiny_run), "-o", str(tmp_path / "x")]) == 2
    assert (
        "speech, jets spend one id per frame" in capsys.readouterr().err
        and not (tmp_path / "x").exists()
    )
    assert (
        main(["export", str(one_channel), "-o", str(tiny_run)]) == 2
        and "is a run folder" in capsys.readouterr().err
    )
    with pytest.raises(UserError, match="no counterpart"):
        write_autotokenizer(
            type("Own", (), {"signature": Signature("text", (3,))})(), tmp_path / "y", [], [], {}
        )
    assert json.loads((tiny_run / "config.json").read_text())["model_type"] == "mmtok"


def test_the_root_of_the_file_system_is_no_place_for_an_export(one_channel, said):
    assert "/ is the root of the file system" in said(["export", one_channel, "-o", "/"])
