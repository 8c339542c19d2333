"""Laws of every tokenizer: batches give, and refuse, what the single calls do."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec
from mmtok.tokenizers.autoencoders import ConvPatches
from mmtok.tokenizers.image_latents import (
    KLPatches,
    KLPatchesConfig,
    PixelLatentsConfig,
)
from mmtok.tokenizers.images import PixelsConfig, VQPatches, VQPatchesConfig
from mmtok.tokenizers.jet_codes import JetCodesConfig
from mmtok.tokenizers.jet_latents import JetLatentsConfig
from mmtok.tokenizers.jet_networks import PerParticle, WholeJet
from mmtok.tokenizers.jet_vq import JetVQ, JetVQConfig
from mmtok.tokenizers.jets import JetGridConfig
from mmtok.tokenizers.pretrained import PretrainedTextConfig
from mmtok.tokenizers.published import SentencePieceFile
from mmtok.tokenizers.quantizers import VQ
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.speech_latents import LogMelConfig
from mmtok.tokenizers.text import BytesConfig, SentencePieceConfig
from mmtok.tokenizers.vocoders import GriffinLimConfig

RNG = np.random.default_rng(0)
TEXTS = ["seven", "", " two  spaces ", "日本 \u2581 é", "a\nb\0", "seven" * 50]
GREY = [RNG.integers(0, 256, (4, 4), np.uint8) for _ in range(5)]
ANY_SIZE = [RNG.integers(0, 256, shape, np.uint8) for shape in ((4, 4), (3, 5, 3), (1, 1), (7, 2))]
CLIPS = [
    RNG.uniform(-0.5, 0.5, n).astype(kind)
    for n, kind in ((4000, np.float32), (900, np.float64), (1, np.float32), (7000, np.float16))
]
JET_KINDS = [
    (5, np.float32),
    (0, np.float64),
    (40, np.float64),
    (40, np.float32),
    (3, np.int64),
]
JETS = [
    np.concatenate([RNG.uniform(1, 300, (n, 1)), RNG.normal(0, 0.2, (n, 2))], 1).astype(kind)
    for n, kind in JET_KINDS
]
MEL = dict(mel=MelSpec(n_mels=20), vocoder=GriffinLimConfig(n_iterations=2))


def of_texts(make):
    return make, TEXTS, [3, b"x", None, "a\ud800", ["a"]]


def of_images(make, signals=GREY):
    wrong = [GREY[0].astype(float), np.zeros((4,), np.uint8), np.zeros((0, 4), np.uint8), "x", None]
    return make, signals, wrong + [np.zeros((5, 4), np.uint8)] * (signals is GREY)


def of_clips(make):
    wrong = [
        np.zeros(0, np.float32),
        np.zeros((2, 9), np.float32),
        np.arange(9),
        np.full(9, np.nan),
        np.full(9, 1e4),
        "x",
        None,
    ]
    return make, CLIPS, wrong


def of_jets(make):
    wrong = [
        np.zeros((3, 2)),
        np.zeros(3),
        np.full((2, 3), np.nan),
        np.array([[-1.0, 0, 0]]),
        "x",
        None,
        [["a", "b", "c"]],
    ]
    return make, JETS, wrong


def published(home):
    SentencePieceConfig(300).fit(TEXTS).save(home)
    return SentencePieceFile(str(home / "pieces.model")).build()


def pretrained(home, make_llama):
    make_llama(home)
    return PretrainedTextConfig(str(home)).build()


def learned(kind, config):
    torch.manual_seed(0)
    return kind(config, config.network())


def learned_jets(config):
    torch.manual_seed(0)
    network = config.autoencoder()
    network.codebook.vectors.normal_()
    return JetVQ(config, network)


SMALL = dict(height=4, width=4, autoencoder=ConvPatches(4))
KINDS = {
    "Bytes": of_texts(lambda home, llama: BytesConfig().build()),
    "SentencePiece": of_texts(lambda home, llama: SentencePieceConfig(300).fit(TEXTS)),
    "SentencePiece, bpe": of_texts(lambda home, llama: SentencePieceConfig(300, "bpe").fit(TEXTS)),
    "PublishedPieces": of_texts(lambda home, llama: published(home)),
    "PretrainedText": of_texts(pretrained),
    "Pixels, any size": of_images(lambda home, llama: PixelsConfig(n_levels=256).build(), ANY_SIZE),
    "Pixels": of_images(lambda home, llama: PixelsConfig(4, 4).build()),
    "VQPatches": of_images(
        lambda home, llama: learned(VQPatches, VQPatchesConfig(**SMALL, quantizer=VQ(4, 2)))
    ),
    "PixelLatents": of_images(lambda home, llama: PixelLatentsConfig(4, 4).build()),
    "KLPatches": of_images(
        lambda home, llama: learned(KLPatches, KLPatchesConfig(**SMALL, latent_size=2))
    ),
    "DMel": of_clips(lambda home, llama: DMelConfig(**MEL).build()),
    "DMel, causal": of_clips(lambda home, llama: DMelConfig.inkling_20hz().build()),
    "LogMel": of_clips(lambda home, llama: LogMelConfig(**MEL).fit(CLIPS)),
    "JetGrid": of_jets(lambda home, llama: JetGridConfig().build()),
    "JetCodes": of_jets(lambda home, llama: JetCodesConfig(n_codes=2).fit(JETS)),
    "JetCodes, residual": of_jets(
        lambda home, llama: JetCodesConfig(n_codes=2, n_books=3, max_constituents=2).fit(JETS)
    ),
    "JetLatents": of_jets(lambda home, llama: JetLatentsConfig().fit(JETS)),
    "JetVQ": of_jets(lambda home, llama: learned_jets(JetVQConfig(VQ(8, 4), WholeJet(8, 1, 2)))),
    "JetVQ, per particle": of_jets(
        lambda home, llama: learned_jets(JetVQConfig(VQ(8, 4), PerParticle(8, 1), max_angle=0.5))
    ),
    "JetGrid, totals": of_jets(
        lambda home, llama: JetGridConfig(
            totals=("pt_gev", "mass_gev"), max_constituents=20
        ).build()
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory, make_llama):
    make, signals, wrong = KINDS[request.param]
    with warnings.catch_warnings(action="ignore"):
        return make(tmp_path_factory.mktemp("made"), make_llama), signals, wrong


def same(a, b):
    assert (a.modality, a.truncated, dict(a.info)) == (b.modality, b.truncated, dict(b.info))
    assert a.values.dtype == b.values.dtype and np.array_equal(a.values, b.values)


def refusal(call, argument):
    """The one line of a refusal, without the number of the jet in the call."""
    with pytest.raises(UserError) as error:
        call(argument)
    assert "\n" not in str(error.value)
    return re.sub(r"jet \d+", "jet", str(error.value))


def test_a_config_knows_the_signature_before_fitting_or_nothing_of_it(case):
    tokenizer, _, _ = case
    config = tokenizer.config
    found = tokenizer.signature
    planned = config.signature()
    if planned is None:
        assert isinstance(config, PretrainedTextConfig)
    elif config.signature_is_bound:
        assert found.levels <= planned.levels and found.modality == planned.modality
    elif config.learns:
        assert planned == replace(found, fingerprint="")
    else:
        assert planned == found


def test_a_config_loads_what_its_tokenizer_saved(case, tmp_path):
    tokenizer, signals, _ = case
    tokenizer.save(tmp_path)
    again = tokenizer.config.load(tmp_path)
    assert type(again) is type(tokenizer) and again.signature == tokenizer.signature
    same(again.encode(signals[0]), tokenizer.encode(signals[0]))


def test_units_are_bytes_particles_values_of_cells_and_frames():
    text = "a café in the café in the café"
    for tokenizer in (BytesConfig().build(), SentencePieceConfig(n_pieces=300).fit([text] * 9)):
        assert tokenizer.n_units(tokenizer.encode(text)) == len(text.encode())
    jet = np.array([[50.0, 0.1, 0.2], [20.0, -0.1, 0.3]], np.float32)
    for totals in ((), ("pt_gev", "mass_gev")):  # frames of the jet itself are no particles
        tokenizer = JetGridConfig(totals=totals).build()
        segment = tokenizer.encode(jet)
        assert len(segment) == 2 + len(totals) and tokenizer.n_units(segment) == 2
    cells = PixelLatentsConfig(4, 4).build()
    pixels = PixelsConfig(4, 4).build()
    assert cells.n_units(cells.encode(GREY[0])) == pixels.n_units(pixels.encode(GREY[0])) == 16
    floats = learned(KLPatches, KLPatchesConfig(**SMALL, latent_size=2))
    assert floats.n_units(floats.encode(GREY[0])) == 4


def test_batches_encode_as_single_calls(case):
    tokenizer, signals, _ = case
    alone = [tokenizer.encode(signal) for signal in signals]
    for batch in (signals, tuple(signals)):
        for a, b in zip(alone, tokenizer.encode_batch(batch), strict=True):
            same(a, b)
    for a, b in zip(alone[::-1], tokenizer.encode_batch(signals[::-1]), strict=True):
        same(a, b)
    assert tokenizer.encode_batch([]) == []


def test_batches_decode_as_single_calls(case):
    tokenizer, signals, _ = case
    segments = tokenizer.encode_batch(signals)
    rounding = (
        5e-3 if segments[0].modality == "speech" else 0
    )  # which the vocoder's iterations carry on
    for segment, signal in zip(segments, tokenizer.decode_batch(segments), strict=True):
        alone = tokenizer.decode(segment)
        if isinstance(signal, str):
            assert signal == alone
        else:
            assert signal.dtype == alone.dtype
            np.testing.assert_allclose(signal, alone, rtol=0, atol=rounding)
    assert tokenizer.decode_batch([]) == []


def test_a_jets_codes_do_not_depend_on_the_jets_in_its_batch():
    """At the edges of bins the logarithms of float32 and of float64 fall to different sides."""
    config = JetGridConfig(max_constituents=500, allow_clipping=True)
    edges = np.exp(np.linspace(config.low[0], config.high[0], config.bins[0] - 1)).astype(
        np.float32
    )
    jet = np.stack([edges, 0 * edges, 0 * edges], 1)
    tokenizer = config.build()
    alone = tokenizer.encode(jet)
    assert len(alone) == len(jet)
    same(alone, tokenizer.encode_batch([np.ones((1, 3)), jet])[1])
    same(alone, tokenizer.encode(jet.astype(np.float64)))


def test_batches_refuse_what_single_calls_refuse(case):
    tokenizer, signals, wrong = case
    for signal in wrong:
        alone = refusal(tokenizer.encode, signal)
        for batch in ([signal], [signals[0], signal], [signal, signals[0]]):
            assert refusal(tokenizer.encode_batch, batch) == alone


def test_batches_refuse_segments_that_single_calls_refuse(case):
    tokenizer, signals, _ = case
    signature = tokenizer.signature
    good = tokenizer.encode(signals[0])
    m = signature.modality
    n = len(good)
    if signature.latent_size:
        broken = np.where(np.arange(n)[:, None] == 0, np.nan, good.latents)
        wrong = [
            Segment(m, latents=good.latents[:, 1:]),
            Segment(m, latents=broken),
            Segment(m, codes=np.zeros((n, 1), int)),
        ]
    else:
        levels = np.array(signature.levels)
        wrong = [
            Segment(m, codes=np.zeros((n, len(levels) + 1), int)),
            Segment(m, codes=np.tile(levels, (n, 1))),
            Segment(m, codes=np.full((n, len(levels)), -1)),
            Segment(m, latents=np.zeros((n, 2), np.float32)),
        ]
    for segment in wrong:
        alone = refusal(tokenizer.decode, segment)
        for batch in ([segment], [good, segment], [segment, good]):
            assert refusal(tokenizer.decode_batch, batch) == alone
