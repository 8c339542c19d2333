"""The folders among the inputs of scripts/fuzz.py: tokenizers, recipes, runs and exports."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import fuzz_files as ways
import numpy as np

# ---- tokenizers


def tokenizer_maker(kind: str) -> Callable[[Path], Path]:
    """A function that saves a tokenizer of MAKERS in a folder."""

    def make(folder: Path) -> Path:
        MAKERS[kind]().save(folder / "t")
        ways.write_folder(folder / "t", {"fidelity.json": b'{"exact_share": 1.0}'})
        return folder / "t"

    return make


def _sentencepiece():
    from mmtok.tokenizers.text import SentencePieceConfig

    return SentencePieceConfig(n_pieces=300).fit(["seven eight nine"] * 5)


def _pretrained():
    import tokenizers as library

    from mmtok.tokenizers.pretrained import (
        PretrainedText,
        PretrainedTextConfig,
        byte_letters,
    )

    tok = library.Tokenizer(
        library.models.BPE(vocab={letter: i for i, letter in enumerate(byte_letters())}, merges=[])
    )
    tok.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = library.decoders.ByteLevel()
    return PretrainedText(PretrainedTextConfig("a/b"), tok.to_str())


def _vq():
    from mmtok.tokenizers.autoencoders import ConvPatches
    from mmtok.tokenizers.images import VQPatches, VQPatchesConfig
    from mmtok.tokenizers.quantizers import VQ

    config = VQPatchesConfig(4, 4, quantizer=VQ(4, 2), autoencoder=ConvPatches(4))
    return VQPatches(config, config.network())


def _kl():
    from mmtok.tokenizers.autoencoders import ConvPatches
    from mmtok.tokenizers.image_latents import KLPatches, KLPatchesConfig

    config = KLPatchesConfig(4, 4, autoencoder=ConvPatches(4))
    return KLPatches(config, config.network())


def _jet_vq():
    from mmtok.tokenizers.jet_networks import WholeJet
    from mmtok.tokenizers.jet_vq import JetVQ, JetVQConfig
    from mmtok.tokenizers.quantizers import VQ

    config = JetVQConfig(VQ(4, 2), WholeJet(8, 1, 2))
    return JetVQ(config, config.autoencoder())


def _jet_autoencoder():
    from mmtok.tokenizers.jet_autoencoder import JetAutoencoder, JetAutoencoderConfig

    config = JetAutoencoderConfig(2, 2, 8, 1, 2, max_constituents=4)
    return JetAutoencoder(config, config.network())


def _pixel_latents():
    from mmtok.tokenizers.image_latents import PixelLatentsConfig

    return PixelLatentsConfig(4, 4).build()


def _log_mel():
    from mmtok.tokenizers.speech_latents import LogMelConfig

    return LogMelConfig().fit([ways.SINE])


def _default(modality: str) -> Callable[[], object]:
    def make():
        from mmtok.tokenizers import default

        return default(modality)

    return make


MAKERS = {
    "bytes": _default("text"),
    "sentencepiece": _sentencepiece,
    "pretrained": _pretrained,
    "dmel": _default("speech"),
    "logmel": _log_mel,
    "pixels": _default("image"),
    "vqpatches": _vq,
    "pixellatents": _pixel_latents,
    "klpatches": _kl,
    "jetgrid": _default("jets"),
    "jetvq": _jet_vq,
    "jetautoencoder": _jet_autoencoder,
}


def load_tokenizer(path: Path) -> None:
    """Describes a tokenizer's folder, loads it and encodes a signal, if that is a small one."""
    from mmtok.commands.show import describe_tokenizer
    from mmtok.errors import UserError
    from mmtok.tokenizers import load

    describe_tokenizer(path, {})
    tokenizer = load(path)
    config = tokenizer.config
    size = (getattr(config, "height", None) or 4, getattr(config, "width", None) or 4)
    n_fft = getattr(getattr(config, "mel", None), "n_fft", 0)
    if max(size) > 64 or n_fft > 2**14:
        return
    signal = {
        "text": "seven",
        "speech": ways.SINE,
        "jets": ways.JETS[0],
        "image": np.zeros(size, np.uint8),
    }[tokenizer.signature.modality]
    with contextlib.suppress(UserError):  # it takes other signals; that is no fault of the folder
        tokenizer.encode(signal)


# ---- recipes and runs


def _recipe():
    from mmtok.data.tasks import Task
    from mmtok.model.lm import DecoderConfig
    from mmtok.nn.transformer import TransformerConfig
    from mmtok.run.recipe import Recipe
    from mmtok.sources.text import TextFile
    from mmtok.tokenizers.text import BytesConfig
    from mmtok.train.config import TrainConfig

    trunk = TransformerConfig(depth=1, width=16, n_heads=2, n_kv_heads=2, feed_forward=16)
    return Recipe(
        "tiny",
        {"text": BytesConfig()},
        (TextFile("a.txt"),),
        (Task((), ("text",)),),
        DecoderConfig(trunk),
        TrainConfig(steps=2, batch_size=2, seq_len=512, checkpoint_every=1, log_every=1),
    )


def recipe_json(folder: Path) -> Path:
    """Writes the quickstart's recipe as JSON."""
    from mmtok.run.recipe import load_recipe

    recipe = load_recipe(Path(__file__).parent.parent / "recipes" / "digits.py")
    return ways.written(folder / "recipe.json", recipe.to_json().encode())


def load_recipe_file(path: Path) -> None:
    """Loads a recipe and describes it."""
    from mmtok.commands.show import describe
    from mmtok.run.recipe import load_recipe

    describe(load_recipe(path))


def make_run(folder: Path) -> Path:
    """Trains a tiny run of text, and adds an evaluation and samples."""
    from dataclasses import replace

    from mmtok.run.build import train
    from mmtok.sources.text import TextFile

    text = ways.written(folder / "a.txt", b"seven eight nine " * 40)
    with contextlib.redirect_stderr(io.StringIO()):
        train(replace(_recipe(), sources=(TextFile(str(text)),)), folder / "run")
    figures = {
        "score": {"text": {"n": 3, "bits_per_byte": 4.5, "kind": "exact"}},
        "text_from_nothing": {"share": 0.5},
    }
    index = [{"file": "nothing-000.txt", "frames": 5, "stop": "end"}]
    files = {
        "evaluation.json": json.dumps(figures).encode(),
        "samples/asked/index.json": json.dumps(index).encode(),
        "samples/text_from_nothing.json": b'[{"truth": "seven", "read": "even"}]',
        "samples/asked/nothing-000.txt": b"seven",
    }
    ways.write_folder(folder / "run", files)
    return folder / "run"


def load_run(path: Path) -> None:
    """Reads every file of a run: its JSON, tokens, weights and checkpoints."""
    from mmtok.commands.export import export
    from mmtok.commands.sample import read_index
    from mmtok.evaluation.evaluate import evaluate
    from mmtok.report.report import sample_section
    from mmtok.run.run import open_run
    from mmtok.train.checkpoint import (
        load_checkpoint,
        load_weights,
        planned_steps,
        precision_of,
    )

    run = open_run(path)
    from mmtok.commands.show import describe_run

    describe_run(run)
    evaluate(run)
    read_index(path / "samples" / "asked")
    for name in ("asked", "text_from_nothing"):
        sample_section(run, name)
    for file in run.token_files():
        file.row(0)
    for read in (load_checkpoint, load_weights, planned_steps, precision_of):
        read(path / "checkpoints")
    export(run, path.parent / "llama")


def make_llama(folder: Path) -> Path:
    """Exports a tiny run as a Llama of transformers."""
    from mmtok.commands.export import export
    from mmtok.run.run import open_run

    export(open_run(make_run(folder)), folder / "llama")
    return folder / "llama"


def load_llama_folder(path: Path) -> None:
    """Reads an exported folder as training from it does."""
    from mmtok.model.llama import check_llama, exported_vocabulary, llama_sizes
    from mmtok.model.lm import DecoderConfig
    from mmtok.tokenizers.pretrained import PretrainedTextConfig

    exported_vocabulary(path)
    config = llama_sizes(path, DecoderConfig())
    check_llama(path, config, PretrainedTextConfig(str(path)).build().signature)
