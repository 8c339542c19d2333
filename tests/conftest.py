"""Toy signatures, the trap document, and small models in float64 that every room's laws are tried
on.
"""

import runpy
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mmtok.core.segment import Document, Segment, Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.heads.categorical import Chained, Parallel
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.transformer import TransformerConfig

torch.set_num_threads(1)  # the same sums in the same order everywhere

# one of every kind: banned ids, many channels, a fixed count, a set, a fixed count of many
# channels, latents, one never used
TOY = (
    Signature("text", (9,), banned=(0, 4)),
    Signature("speech", (5,) * 6),
    Signature("image", (7,), frames=9),
    Signature("jets", (6, 4, 3), descending=True),
    Signature("tiles", (3, 2), frames=2),
    Signature("voice", latent_size=3),
    Signature("absent", (5, 5)),
)
HEADS = {"speech": Parallel(), "jets": Chained(8), "tiles": Chained(8), "absent": Chained(8)}
TRUNK = TransformerConfig(depth=2, width=16, n_heads=4, n_kv_heads=2, feed_forward=24)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def vocabulary():
    return Vocabulary(TOY)


@pytest.fixture
def segment(vocabulary, rng):
    """segment("jets", 5) -> five random legal frames; further arguments go to Segment."""
    return segment_maker(vocabulary, rng)


@pytest.fixture
def trap(segment):
    """DESIGN.md's: text, speech, image with a span to infill, text again, jets; modalities of the
    vocabulary absent.
    """
    segments = (
        segment("text", 5),
        segment("speech", 7),
        segment("image", 9, infill_spans=((2, 5),)),
        segment("text", 3),
        segment("jets", 6),
    )
    return Document(segments, (True,) * 5)


@pytest.fixture
def corpus(segment, trap):
    """Documents of many shapes: infilling, truncation, conditions given and left out, empty
    segments, a fixed count, latents.
    """
    return [
        trap,
        Document((segment("text", 4), segment("image", 9)), (False, True)),
        Document((None, segment("image", 9, infill_spans=((0, 2), (2, 2), (7, 9)))), (False, True)),
        Document((segment("jets", 9, truncated=True), segment("text", 4)), (True, True)),
        Document(
            (
                segment("voice", 2),
                segment("text", 3),
                segment("speech", 6, infill_spans=((1, 1), (2, 5))),
            ),
            (False, False, True),
        ),
        Document(
            (
                segment("text", 0),
                segment("jets", 0),
                segment("tiles", 2),
                segment("text", 2, truncated=True),
            ),
            (True,) * 4,
        ),
        Document(
            (segment("absent", 3), None, segment("image", 9, infill_spans=((0, 9), (9, 9)))),
            (True, False, True),
        ),
        Document((segment("image", 4, truncated=True), segment("speech", 1)), (True, True)),
    ]


@pytest.fixture
def lm(vocabulary):
    """An LM over the toy vocabulary whose parameters are all far from zero, in float64."""
    return shaken(small_lm(vocabulary)).double().eval()


@pytest.fixture
def untrained(vocabulary):
    """The LM as it starts out, float32."""
    return small_lm(vocabulary).eval()


@pytest.fixture
def toy_lm():
    """toy_lm(signatures, heads) -> a shaken LM in float64 over a grammar small enough to be summed
    over.
    """
    return lambda signatures, heads=None: (
        shaken(small_lm(Vocabulary(signatures), heads or {})).double().eval()
    )


@pytest.fixture
def untrained_toy():
    """As `toy_lm`, but with even odds of all that is legal."""

    def make(signatures, heads=None):
        lm = small_lm(Vocabulary(signatures), heads or {}).double().eval()
        torch.nn.init.zeros_(lm.model.embed_tokens.weight)
        return lm

    return make


def segment_maker(vocabulary, rng):
    def make(modality, n, **fields):
        signature = vocabulary.signatures[modality]
        if signature.latent_size:
            return Segment(
                modality,
                latents=rng.normal(size=(n, signature.latent_size)).astype(np.float32),
                **fields,
            )
        free = [np.setdiff1d(np.arange(k), signature.banned) for k in signature.levels]
        codes = np.stack([rng.choice(x, n) for x in free], 1)
        if signature.descending:
            codes = codes[np.lexsort(-codes.T[::-1])]
        return Segment(modality, codes=codes, **fields)

    return make


def small_lm(vocabulary, heads=HEADS):
    torch.manual_seed(0)
    heads = {m: h for m, h in heads.items() if m in vocabulary.signatures}
    totals = {
        m: 3 for m, s in vocabulary.signatures.items() if s.descending and m in heads
    }  # sets carry running totals
    return LM(DecoderConfig(TRUNK, heads, channel_size=4, totals=totals), vocabulary)


def shaken(lm):
    """Large random weights, so that every distribution is far from uniform and every path carries a
    signal.
    """
    torch.manual_seed(1)
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return lm


@pytest.fixture(scope="session")
def contents():
    """contents(folder) -> path -> the bytes of everything in it, None of folders."""
    return lambda folder: {
        p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


@pytest.fixture
def said(capsys):
    """said(words) -> the one line in which the command line refuses `words`, with exit code 2, the
    last on stderr.
    """
    from mmtok.cli import main

    def refuse(words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2, words
        lines = capsys.readouterr().err.splitlines()
        errors = [
            line
            for line in lines
            if line.startswith("mmtok: ") and not line.startswith("mmtok: note: ")
        ]
        assert len(errors) == 1 and errors[0] == lines[-1], lines
        return errors[0]

    return refuse


@pytest.fixture
def notes(capsys):
    """notes(words) -> what the command line notes while it does as it is told."""
    from mmtok.cli import main

    def succeed(words):
        capsys.readouterr()
        assert main([str(word) for word in words]) == 0
        return [
            line
            for line in capsys.readouterr().err.splitlines()
            if line.startswith("mmtok: note: ")
        ]

    return succeed


@pytest.fixture(scope="session")
def make_llama():
    """make_llama(folder, tied, rope) -> a tiny random Llama, saved by transformers with a
    byte-level BPE of its own and rows to spare.
    """
    return random_llama


@pytest.fixture(scope="session")
def make_codec():
    """make_codec(folder, family) -> a tiny random Mimi, DAC or EnCodec, saved by transformers: four
    codebooks of 16 codes at 24 kHz.
    """
    return random_codec


def random_codec(folder, family, **settings):
    import transformers

    sizes = {
        "mimi": {
            "hidden_size": 16,
            "num_filters": 4,
            "codebook_dim": 8,
            "vector_quantization_hidden_dimension": 8,
            "num_quantizers": 4,
            "num_hidden_layers": 1,
            "intermediate_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "upsample_groups": 16,
        },
        "dac": {
            "encoder_hidden_size": 4,
            "decoder_hidden_size": 32,
            "n_codebooks": 4,
            "codebook_dim": 4,
            "downsampling_ratios": [2, 4, 5, 8],
            "sampling_rate": 24_000,
        },
        "encodec": {
            "hidden_size": 8,
            "num_filters": 4,
            "num_lstm_layers": 1,
            "target_bandwidths": [0.6, 1.2],
        },
    }
    kind = {"mimi": "Mimi", "dac": "Dac", "encodec": "Encodec"}[family]
    config = getattr(transformers, f"{kind}Config")(codebook_size=16, **sizes[family] | settings)
    torch.manual_seed(3)
    model = getattr(transformers, f"{kind}Model")(config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("codebook.embed", "embed_sum")):  # zeros, else
                value.copy_(torch.randn(value.shape))
    model.save_pretrained(folder)
    return folder


def random_llama(folder, tied=True, rope=None):
    import tokenizers
    import transformers

    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    texts = [
        "dark",
        "light",
        "low high low",
        "thin jet",
        "fat jet",
        "seven o'clock and all is well",
    ]
    tok.train_from_iterator(texts * 4, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<|begin|>", eos_token="<|end|>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(2)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=288,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=tied,
            rope_parameters=rope or {"rope_type": "default", "rope_theta": 1e4},
        )
    ).eval()
    for parameter in llama.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    llama.save_pretrained(folder)
    return llama


# ---- a whole run in seconds: tests/tiny/recipe.py on files made here

TINY = Path(__file__).parent / "tiny" / "recipe.py"


def make_tiny_data(home):
    """images/NAME/*.png, sounds/*.wav with transcripts, jets.npz with labels.txt: two captions
    each.
    """
    from mmtok.sources.images import write_image
    from mmtok.sources.jet_formats import write_jets
    from mmtok.sources.sound_files import write_sound

    rng = np.random.default_rng(0)
    (home / "sounds").mkdir(parents=True)
    for i in range(20):
        name = ("dark", "light")[i % 2]
        (home / "images" / name).mkdir(parents=True, exist_ok=True)
        write_image(
            home / "images" / name / f"{i}.png",
            rng.integers(0, 90, (4, 4)).astype(np.uint8) + np.uint8(160 * (i % 2)),
        )
        sine = 0.3 * np.sin(np.arange(4000 + 100 * i) * (0.1 + 0.3 * (i % 2)))
        write_sound(home / "sounds" / f"{i:02d}.wav", sine.astype(np.float32))
        text = "low high low" if i % 7 == 0 else ("low", "high")[i % 2]
        (home / "sounds" / f"{i:02d}.txt").write_text(text)  # 03 and 07 are held out
    jets = [
        np.stack([-np.sort(-rng.uniform(1, 100, n)), *rng.uniform(-0.5, 0.5, (2, n))], 1)
        for n in rng.integers(2, 8, 24)
    ]
    write_jets(home / "jets.npz", [jet.astype(np.float32) for jet in jets])
    (home / "labels.txt").write_text("thin jet\nfat jet\n" * 12)
    return home


def tiny_overrides(home):
    """What points the tiny recipe to its files."""
    paths = {
        "sources.0.path": "images",
        "sources.1.path": "sounds",
        "sources.2.path": "jets.npz",
        "sources.2.labels": "labels.txt",
    }
    return [word for field, name in paths.items() for word in (f"--{field}", str(home / name))]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """The folder with the tiny recipe's files. Do not write into it."""
    return make_tiny_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_words(tiny_data):
    """The words after `mmtok fit` or `mmtok train` that name the tiny recipe."""
    return [str(TINY), *tiny_overrides(tiny_data)]


@pytest.fixture(scope="session")
def tiny_recipe(tiny_words):
    from mmtok.run.recipe import load_recipe

    return load_recipe(tiny_words[0], tiny_words[1:])


@pytest.fixture(scope="session")
def tiny_run(tiny_recipe, tmp_path_factory):
    """The folder of the trained tiny run. Do not write into it; `tiny_copy` is for that."""
    from mmtok.run.build import train

    return train(tiny_recipe, tmp_path_factory.mktemp("runs") / "tiny").folder


@pytest.fixture
def tiny_copy(tiny_run, tmp_path):
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def latent_run(tiny_data, tmp_path_factory):
    """latent_run("cascade") -> the folder of the trained variant of tests/tiny/latents.py of that
    name. Do not write into it.
    """
    from mmtok.run.build import train

    variants = runpy.run_path(str(TINY.with_name("latents.py")))["VARIANTS"]
    folders = {}

    def folder(name):
        if name not in folders:
            source = replace(variants[name].sources[0], path=str(tiny_data / "images"))
            recipe = replace(variants[name], sources=(source,))
            with warnings.catch_warnings(action="ignore"):  # their sigma_data fits nothing
                folders[name] = train(recipe, tmp_path_factory.mktemp("latent") / name).folder
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def one_channel(tiny_recipe, tmp_path_factory):
    """The folder of a trained run over text and images, a code a frame. Do not write into it."""
    from mmtok.data.tasks import Task
    from mmtok.run.build import train
    from mmtok.sources.images import ImageFolder

    tasks = (Task(("caption",), ("image",)), Task((), ("caption",)))
    source = next(s for s in tiny_recipe.sources if isinstance(s, ImageFolder))
    kept = {m: tiny_recipe.tokenizers[m] for m in ("text", "image")}
    recipe = replace(
        tiny_recipe,
        sources=(source,),
        tokenizers=kept,
        tasks=tasks,
        model=replace(tiny_recipe.model, heads={}),
        train=replace(tiny_recipe.train, steps=4),
        sampling={},
    )
    return train(recipe, tmp_path_factory.mktemp("runs") / "one_channel").folder
