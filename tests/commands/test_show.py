"""What `mmtok show` says is true: parameters, ids, bits a frame, bitrates, fingerprints, of
whatever it is shown.
"""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.commands.show import describe, describe_path
from mmtok.core.segment import Signature
from mmtok.core.vocabulary import Vocabulary
from mmtok.errors import UserError
from mmtok.heads.categorical import Chained, Parallel
from mmtok.heads.diffusion import FrameDiffusion, GridDiffusion
from mmtok.heads.masked_diffusion import MaskedDiffusion
from mmtok.model.lm import LM, DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.run.recipe import override
from mmtok.run.run import open_run
from mmtok.run.signatures import size_of_decoder
from mmtok.tokenizers.autoencoders import ConvPatches
from mmtok.tokenizers.image_latents import PixelLatentsConfig
from mmtok.tokenizers.images import PixelsConfig, VQPatchesConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.quantizers import VQ
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.speech_latents import LogMelConfig
from mmtok.tokenizers.text import SentencePieceConfig

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def said(capsys):
    """said(path) -> what `mmtok show` prints of it."""

    def show(path, *words):
        capsys.readouterr()
        assert main(["show", str(path), *map(str, words)]) == 0
        return capsys.readouterr().out

    return show


def n_parameters(text):
    return int(re.search(r"decoder: (?:at most )?([\d,]+) parameters", text)[1].replace(",", ""))


# ---- recipes and runs


def test_a_recipe_tells_the_size_of_the_decoder_that_it_makes(tiny_recipe, tiny_run, said):
    text = describe(tiny_recipe)
    lm = open_run(tiny_run).lm
    assert (
        n_parameters(text)
        == sum(p.numel() for p in lm.parameters())
        == n_parameters(said(tiny_run))
    )
    assert f"{lm.vocabulary.size:,} ids" in text


@pytest.mark.parametrize(
    "head, signature",
    [
        (Parallel(), Signature("x", (7, 5))),
        (Chained(), Signature("x", (7, 5))),
        (FrameDiffusion(), Signature("x", latent_size=3)),
        (GridDiffusion(), Signature("x", latent_size=4, frames=4)),
        (MaskedDiffusion(), Signature("x", (7,), frames=4)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_a_decoder_is_counted_without_memory_for_it(head, signature):
    vocabulary = Vocabulary([signature])
    totals = {"x": 3} if len(signature.levels) > 1 else {}
    config = DecoderConfig(
        TransformerConfig(depth=1, width=16, n_heads=2, n_kv_heads=2, feed_forward=24),
        {"x": head},
        totals=totals,
    )
    assert size_of_decoder(config, vocabulary) == sum(
        p.numel() for p in LM(config, vocabulary).parameters()
    )


def test_sizes_that_hang_on_the_data_are_said_to_be_unknown_or_bounds(tiny_recipe):
    pieces = dataclasses.replace(
        tiny_recipe,
        tokenizers={**tiny_recipe.tokenizers, "text": SentencePieceConfig(n_pieces=300)},
    )
    assert "at most 300 levels" in describe(pieces) and "decoder: at most " in describe(pieces)
    assert "known once the tokenizers are fitted" in describe(
        dataclasses.replace(tiny_recipe, start="nowhere/llama")
    )
    patches = describe(
        override(
            tiny_recipe,
            ["--tokenizers.image", '{"kind": "VQPatchesConfig", "height": 4, "width": 4}'],
        )
    )
    assert (
        "64 levels, 6 bits a frame, 4 patches an image, 24 bits an image, 1.5 bits a pixel, not"
        " fitted" in patches
    )
    latents = describe(
        override(
            tiny_recipe,
            [
                "--tokenizers.image",
                '{"kind": "KLPatchesConfig", "height": 4, "width": 4}',
                "--model.heads",
                '{"jets": {"kind": "Chained"}}',
                "--tokenizers.speech",
                '{"kind": "LogMelConfig"}',
            ],
        )
    )
    assert (
        "4 floats a frame, 4 patches an image, not fitted" in latents
        and "80 floats a frame, 80 frames/s, not fitted" in latents
    )
    assert n_parameters(latents) > 0


def test_a_head_for_what_is_not_there_is_told(tiny_recipe):
    wrong = dataclasses.replace(
        tiny_recipe, model=dataclasses.replace(tiny_recipe.model, totals={"text": 4})
    )
    assert "decoder: cannot be made: totals are given for ['text']" in describe(wrong)


def test_a_run_tells_its_tokenizers_with_their_measured_fidelity(tiny_run, said):
    text = said(tiny_run)
    run = open_run(tiny_run)
    assert (
        f"vocabulary {run.vocabulary.fingerprint}: {run.vocabulary.size:,} ids" in text
        and "training: done, step 24 of 24" in text
    )
    for m, signature in run.vocabulary.signatures.items():
        line = next(line for line in text.splitlines() if line.startswith(f"  {m}: "))
        fidelity = json.loads((tiny_run / "tokenizers" / m / "fidelity.json").read_text())
        assert f"tokenizer {signature.fingerprint}" in line and all(
            f"{k} {x:.4g}" in line for k, x in fidelity.items()
        )
    assert "--train.steps" in text  # its fields


# ---- bitrates


@pytest.mark.parametrize(
    "config, part",
    [
        (DMelConfig.dmel_80hz(), f"80 frames/s, {DMelConfig.dmel_80hz().kbps * 1000:.5g} bit/s"),
        (DMelConfig.inkling_20hz(), "20 frames/s, 6400 bit/s"),
        (PixelsConfig(n_levels=16), "4 bits a value of a pixel"),
        (PixelsConfig(4, 4, 1, n_levels=4), "16 values an image, 32 bits an image, 2 bits a pixel"),
        (
            PixelLatentsConfig(4, 4, 1, n_levels=16, patch=2),
            (
                "4 floats a frame of 16 cells each, 16 bits a frame, 4 patches an image, 64 bits an"
                " image"
            ),
        ),
        (JetGridConfig(bins=(4, 4, 4)), "6 bits a particle"),
        (JetGridConfig(totals=("pt_gev",)), "bits a particle, the jet's totals before them: 1"),
    ],
)
def test_bits_in_the_modalitys_own_measure(config, part, tmp_path, said):
    tokenizer = config.build()
    tokenizer.save(tmp_path / "tokenizer")
    text = said(tmp_path / "tokenizer")
    assert part in text and f"fingerprint {tokenizer.signature.fingerprint}" in text


def test_text_pieces_are_told_in_bits_a_byte_once_that_is_measured(tmp_path, said):
    tokenizer = SentencePieceConfig(n_pieces=300).fit(["seven eight nine"] * 5)
    tokenizer.save(tmp_path)
    assert "bits a byte" not in said(tmp_path)
    (tmp_path / "fidelity.json").write_text('{"bytes_per_code": 2.0}')
    assert f"{np.log2(tokenizer.signature.levels[0]) / 2:.4g} bits a byte" in said(tmp_path)


def test_learned_patches_tell_how_many_numbers_they_learned(tmp_path, said):
    from mmtok.tokenizers.images import VQPatches

    config = VQPatchesConfig(quantizer=VQ(4), autoencoder=ConvPatches(4))
    VQPatches(config, network := config.network()).save(tmp_path)
    assert f"{sum(x.numel() for x in network.state_dict().values()):,} numbers learned" in said(
        tmp_path
    )


def test_latents_have_bits_only_where_they_are_discrete():
    image = PixelLatentsConfig()
    speech = LogMelConfig()
    assert image.rate_texts(Signature("image", latent_size=3, frames=4), {}) == [
        "4 patches an image"
    ]
    assert speech.rate_texts(Signature("speech", latent_size=80), {}) == ["80 frames/s"]
    assert Signature("voice", latent_size=3).bits_per_frame == 0
    assert Signature("voice", latent_size=3, cells=16).bits_per_frame == 12


def test_a_token_file_tells_bits_a_row(tmp_path, said):
    from mmtok.sources.jet_formats import write_jets

    write_jets(
        tmp_path / "jets.npz",
        [
            np.array([[9.0, 0.1, 0.1], [5.0, 0.0, 0.0]], np.float32),
            np.array([[7.0, 0.0, 0.0]], np.float32),
        ],
    )
    assert (
        main(["tokenize", "jets", str(tmp_path / "jets.npz"), "-o", str(tmp_path / "t.parquet")])
        == 0
    )
    bits = np.log2(41 * 61 * 61)
    assert f"41 x 61 x 61 levels, {bits:.4g} bits a frame, {1.5 * bits:.4g} bits a row" in said(
        tmp_path / "t.parquet"
    )


# ---- what lies at a path


def _show(recipe, *overrides):
    return describe_path(recipe, overrides=overrides)


def test_show_tells_what_a_path_is_read_as(tmp_path, monkeypatch):
    (tmp_path / "wavs").mkdir()
    names = [f"LJ001-{i:04}" for i in range(20)]
    for name in names:
        (tmp_path / "wavs" / f"{name}.wav").write_bytes(b"no header is looked at")
    rows = "".join(f"{name}|Words {name}.|words {name}\n" for name in names)
    (tmp_path / "metadata.csv").write_text(rows)
    with pytest.warns(UserWarning, match="read as ljspeech") as said:
        text = _show(RECIPES / "speech.py", "--path", str(tmp_path))
    assert "    read as ljspeech: 20 clips, 18 for train, 2 for heldout\n" in text
    lines = [str(w.message) for w in said]
    assert len(lines) == len(set(lines))
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(
        f'{{"audio_filepath": "wavs/{name}.wav", "duration": 2, "text": "a"}}\n' for name in names
    ))  # fmt: skip
    with pytest.warns(UserWarning, match="read as nemo"):
        text = _show(RECIPES / "speech.py", "--path", str(manifest))
    assert "    read as nemo: 20 clips, 18 for train, 2 for heldout\n" in text


def test_show_tells_of_pictures_and_texts(tmp_path):
    for i in range(10):
        path = tmp_path / "pictures" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no header is looked at")
    text = _show(RECIPES / "image.py", "--path", str(tmp_path / "pictures"))
    assert "    read as folder: 10 pictures, 9 for train, 1 for heldout\n" in text
    (tmp_path / "a.txt").write_text("words")
    text = _show(RECIPES / "text.py", "--path", str(tmp_path / "a.txt"))
    assert "    read as plain: 1 file of 5 bytes\n" in text


def test_show_refuses_a_path_that_is_asked_about_and_only_says_so_of_a_recipes_own(tmp_path):
    for path in ("speech.py", "image.py", "text.py", "jets.py"):
        with pytest.raises(UserError, match="nowhere"):
            _show(RECIPES / path, "--path", str(tmp_path / "nowhere"))
    recipe = tmp_path / "recipe.py"
    source = (RECIPES / "text.py").read_text()
    assert 'path=""' in source
    recipe.write_text(source.replace('path=""', 'path="nowhere.txt"'))
    assert "    cannot be read: nowhere.txt" in _show(recipe)
