"""Pretrained codecs, on tiny random weights: the codes that transformers gives, exact lengths,
independence of the batch, the delay pattern, folders, refusals.
"""

import json
import math
import pickle
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.data.loader import cut
from mmtok.errors import UserError
from mmtok.io import memory_budget
from mmtok.io.serialize import from_plain, to_plain
from mmtok.run.recipe import PackageTokenizers
from mmtok.tokenizers import codecs, load
from mmtok.tokenizers.codecs import Codec, CodecConfig

transformers = pytest.importorskip("transformers")
FAMILIES = {"mimi": 1920, "dac": 320, "encodec": 320}  # and samples per frame
LENGTHS = [1, 7, 319, 320, 321, 1919, 1920, 1921, 5000, 12_001]


@pytest.fixture(scope="module")
def checkpoints(make_codec, tmp_path_factory):
    home = tmp_path_factory.mktemp("codecs")
    return {family: make_codec(home / family, family) for family in FAMILIES}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module", params=[False, True], ids=["as they are", "delayed"])
def tokenizer(request, family, checkpoints):
    return CodecConfig(str(checkpoints[family]), n_codebooks=3, delay=request.param).build()


def noise(n: int, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def test_codes_and_sound_are_those_of_transformers(family, checkpoints):
    folder = checkpoints[family]
    kind = {"mimi": "Mimi", "dac": "Dac", "encodec": "Encodec"}[family]
    model = getattr(transformers, f"{kind}Model").from_pretrained(folder).eval()
    clip = noise(FAMILIES[family] * 4)
    x = torch.from_numpy(clip)[None, None]
    with torch.no_grad():
        match family:
            case "mimi":
                codes = model.encode(x, num_quantizers=4).audio_codes
                sound = model.decode(codes).audio_values[0, 0]
            case "dac":
                codes = model.encode(x, n_quantizers=4).audio_codes
                sound = model.decode(audio_codes=codes).audio_values[0]
            case "encodec":
                codes = model.encode(x, bandwidth=1.2).audio_codes
                sound = model.decode(codes, [None]).audio_values[0, 0]
                codes = codes[0]
    tokenizer = CodecConfig(str(folder), n_codebooks=4).build()
    segment = tokenizer.encode(clip)
    assert np.array_equal(segment.codes, codes[0].T.numpy())
    n = min(len(sound), len(clip))
    np.testing.assert_allclose(
        tokenizer.decode(segment)[:n], sound[:n] / max(1, sound[: len(clip)].abs().max()), atol=1e-6
    )
    # the first codebooks are the same, however many are asked for
    for q in (1, 2, 3):
        fewer = CodecConfig(str(folder), n_codebooks=q).build().encode(clip)
        assert np.array_equal(fewer.codes, segment.codes[:, :q])


@pytest.mark.parametrize("n", LENGTHS)
def test_lengths_are_exact(tokenizer, family, n):
    segment = tokenizer.encode(noise(n))
    n_frames = math.ceil(n / FAMILIES[family])
    assert tokenizer.n_units(segment) == n_frames
    assert len(segment) == n_frames + 2 * tokenizer.config.delay
    assert dict(segment.info) == {"n_samples": n, "rate_hz": 24_000}
    sound = tokenizer.decode(segment)
    assert sound.shape == (n,) and sound.dtype == np.float32 and np.isfinite(sound).all()
    assert np.abs(sound).max() <= 1


def test_long_clips_go_block_by_block(family, checkpoints, monkeypatch):
    """DAC's are those of the whole clip; of the others nearly, as they remember what was long ago.

    No call sees more than a block with what is around it.
    """
    tokenizer = CodecConfig(str(checkpoints[family]), n_codebooks=3).build()
    clip = noise(24_000 * 4 + 100)
    whole = tokenizer.encode(clip)
    sound = tokenizer.decode(whole)
    for name, seconds in (("WHOLE_S", 2.0), ("BLOCK_S", 1.0), ("BEFORE_S", 0.8), ("AFTER_S", 0.4)):
        monkeypatch.setattr(codecs, name, seconds)
    seen = []
    codes = tokenizer.codec.codes
    samples = tokenizer.codec.samples

    def noting(call, unit, *arguments):
        seen.append(arguments[0].shape[-1] * unit / 24_000)
        return call(*arguments)

    hop = FAMILIES[family]
    monkeypatch.setattr(tokenizer.codec, "codes", partial(noting, codes, 1))
    monkeypatch.setattr(tokenizer.codec, "samples", partial(noting, samples, hop))
    in_blocks = tokenizer.encode(clip)
    again = tokenizer.decode(whole)
    assert len(seen) >= 8 and max(seen) <= 1.0 + 0.8 + 0.4 + 3 * hop / 24_000
    assert in_blocks.codes.shape == whole.codes.shape and len(again) == len(clip)
    same = (in_blocks.codes == whole.codes).mean()
    off = np.abs(again - sound).max() / np.abs(sound).max()
    if family == "dac":
        assert same == 1 and off < 1e-5
    else:
        assert same > 0.9 and off < 0.05
    short = noise(24_000 * 2)  # not longer than WHOLE_S
    seen.clear()
    tokenizer.encode(short)
    assert seen == [2.0]


def test_a_long_clip_takes_the_memory_of_a_block(checkpoints, monkeypatch):
    tokenizer = CodecConfig(str(checkpoints["mimi"]), n_codebooks=3).build()
    asked = []
    monkeypatch.setattr(memory_budget, "check", lambda n_bytes, *rest: asked.append(n_bytes))
    for minutes in (1, 10, 100):
        assert len(tokenizer._blocks(round(12.5 * 60 * minutes))) == 3 * minutes
    assert len(set(asked)) == 1


def test_batches_equal_single_calls(tokenizer):
    clips = [noise(n, n) for n in (3000, 1, 7001)]
    together = tokenizer.encode_batch(clips)
    for clip, segment, sound in zip(clips, together, tokenizer.decode_batch(together), strict=True):
        alone = tokenizer.encode(clip)
        assert np.array_equal(alone.codes, segment.codes) and alone.info == segment.info
        assert np.array_equal(tokenizer.decode(segment), sound)
    assert tokenizer.encode_batch([]) == [] == tokenizer.decode_batch([])


def test_the_delay_is_undone(family, checkpoints):
    """The same codes, each q frames later, and the same sound."""
    plain = CodecConfig(str(checkpoints[family]), n_codebooks=3).build()
    late = CodecConfig(str(checkpoints[family]), n_codebooks=3, delay=True).build()
    assert plain.signature.levels == (16,) * 3 and late.signature.levels == (17,) * 3
    codes = plain.encode(noise(6000)).codes
    segment = late.encode(noise(6000))
    for q in range(3):
        assert np.array_equal(segment.codes[q : q + len(codes), q], codes[:, q])
    assert (segment.codes == 16).sum() == 3 * 2
    assert np.array_equal(late.decode(segment), plain.decode(plain.encode(noise(6000))))


def test_of_cut_segments_what_is_whole_is_decoded_and_the_rest_said(checkpoints):
    late = CodecConfig(str(checkpoints["encodec"]), n_codebooks=3, delay=True).build()
    segment = late.encode(noise(320 * 10))
    with pytest.warns(UserWarning, match="clip 0 was cut off: the last moments, without all"):
        sound = late.decode(cut(segment, 7))
    assert len(sound) == 320 * 5
    with pytest.warns(UserWarning, match="1 of 2 clips was cut off"):
        late.decode_batch([segment, cut(segment, 7)])
    stray = segment.codes.copy()
    stray[4, 1] = 16
    with pytest.warns(UserWarning, match="drawn with fill codes where sound should be"):
        assert len(late.decode(Segment("speech", codes=stray, info=segment.info))) == 3200
    for n in (0, 1, 2):  # no moment has all its codebooks
        assert len(late.decode(Segment("speech", codes=np.full((n, 3), 16)))) == 0


@pytest.mark.filterwarnings("ignore:.*clip 0 was")
def test_sampled_codes_decode(tokenizer, family):
    levels = tokenizer.signature.levels[0]
    for n in (0, 1, 5):
        codes = np.random.default_rng(n).integers(0, levels, (n, 3))
        n_frames = max(0, n - 2 * tokenizer.config.delay)
        sound = tokenizer.decode(Segment("speech", codes=codes))
        assert len(sound) == n_frames * FAMILIES[family] and np.isfinite(sound).all()


def test_folders_keep_the_checkpoint(tokenizer, family, checkpoints, tmp_path):
    tokenizer.save(tmp_path / "speech")
    moved = tmp_path / "elsewhere" / "speech"
    moved.parent.mkdir()
    (tmp_path / "speech").rename(moved)
    again = load(moved)
    assert type(again) is Codec and again.signature == tokenizer.signature
    assert again.config == tokenizer.config.kept_in(moved)
    assert again.config.takes == {"rate_hz": 24_000}
    assert np.array_equal(again.encode(noise(4000)).codes, tokenizer.encode(noise(4000)).codes)
    again.save(moved)  # onto itself
    again.save(tmp_path / "copy")
    assert tokenizer.config.load(tmp_path / "copy").signature == tokenizer.signature
    other = pickle.loads(pickle.dumps(tokenizer))  # for another process
    assert other.signature == tokenizer.signature
    assert from_plain(to_plain(tokenizer.config), PackageTokenizers, "speech") == tokenizer.config


def test_a_checkpoints_own_folder_is_opened(family, checkpoints):
    tokenizer = load(checkpoints[family])
    assert tokenizer.config.n_codebooks == 4 and not tokenizer.config.delay


def test_fingerprints_are_of_the_weights(checkpoints, make_codec, tmp_path):
    configs = [
        CodecConfig(str(checkpoints[family]), n_codebooks=3, delay=delay)
        for family in FAMILIES
        for delay in (False, True)
    ]
    configs.append(replace(configs[0], n_codebooks=2))
    marks = {config.build().signature.fingerprint for config in configs}
    assert len(marks) == len(configs)
    same = make_codec(tmp_path / "same", "dac")
    assert CodecConfig(str(same), 3).build().signature.fingerprint in marks
    other = shutil.copytree(checkpoints["dac"], tmp_path / "other")
    path = other / "model.safetensors"
    tensors = load_file(path)
    tensors["encoder.conv1.bias"][0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    assert CodecConfig(str(other), 3).build().signature.fingerprint not in marks


def load_file(path):
    from safetensors.torch import load_file

    return load_file(path)


def save_file(tensors, path, metadata):
    from safetensors.torch import save_file

    save_file(tensors, path, metadata)


def test_rates_and_signature_are_known_before_it_is_opened(family, checkpoints):
    config = CodecConfig(str(checkpoints[family]), n_codebooks=3)
    assert config.signature() == replace(config.build().signature, fingerprint="")
    expected = {
        "mimi": ["12.5 frames/s", "150 bit/s"],
        "dac": ["75 frames/s", "900 bit/s"],
        "encodec": ["75 frames/s", "900 bit/s"],
    }
    assert config.rate_texts(config.signature(), {}) == expected[family]
    late = replace(config, delay=True)
    assert late.rate_texts(late.signature(), {}) == [
        *expected[family],
        "delayed by up to 2 frames",
    ]
    assert CodecConfig("kyutai/mimi").signature() is None


def test_fidelity(checkpoints):
    pytest.importorskip("pystoi")
    figures = CodecConfig(str(checkpoints["dac"]), 3).build().fidelity([noise(48_000)])
    assert set(figures) == {"stoi", "kbps"} and figures["kbps"] == pytest.approx(0.9)


# ---- refusals


def refused(folder, match, **settings):
    with pytest.raises(UserError, match=match) as error:
        CodecConfig(str(folder), **{"n_codebooks": 3} | settings).build()
    assert "\n" not in str(error.value)


def test_other_models_and_missing_parts_are_refused(checkpoints, make_llama, tmp_path):
    make_llama(tmp_path / "llama")
    refused(tmp_path / "llama", "is no codec of speech: .* it names 'llama'")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is no codec of speech: .* there is none to read")
    refused(tmp_path / "nothing", "no checkpoint folder at")
    refused(checkpoints["mimi"], "n_codebooks is 5; this codec has 4", n_codebooks=5)


def test_codecs_without_a_decoder_are_refused(family, checkpoints, tmp_path):
    half = shutil.copytree(checkpoints[family], tmp_path / "half")
    tensors = load_file(half / "model.safetensors")
    encoder = {name: x for name, x in tensors.items() if not name.startswith("decoder")}
    save_file(encoder, half / "model.safetensors", metadata={"format": "pt"})
    refused(half, "have no decoder, or not all of it")
    if family == "mimi":
        config = json.loads((half / "config.json").read_text()) | {"decoder_config": None}
        (half / "config.json").write_text(json.dumps(config))
        refused(half, "have no decoder, or not all of it")
    (half / "model.safetensors").unlink()
    refused(half, "has no weights model.safetensors")


def test_damaged_checkpoints_are_refused(family, checkpoints, tmp_path):
    broken = shutil.copytree(checkpoints[family], tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    refused(broken, "cannot be read as a .* codec")
    config = json.loads((broken / "config.json").read_text())
    for wrong in ({"sampling_rate": "fast"}, {"codebook_size": -4}, {"sampling_rate": 0}):
        (broken / "config.json").write_text(json.dumps(config | wrong))
        refused(broken, "config.json")


def test_codecs_of_other_kinds_of_sound_are_refused(make_codec, tmp_path):
    stereo = make_codec(tmp_path / "stereo", "encodec", audio_channels=2)
    refused(stereo, "of 2 channels")
    chunked = make_codec(tmp_path / "chunked", "encodec", chunk_length_s=1.0, overlap=0.01)
    refused(chunked, "in chunks of its own")


@pytest.mark.parametrize(
    "settings, complaint",
    [({"n_codebooks": 0}, "at least 1"), ({"n_codebooks": 1, "delay": True}, "at least 2")],
)
def test_impossible_settings_are_refused(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        CodecConfig("x", **settings)


@pytest.mark.parametrize(
    "segment",
    [
        Segment("speech", codes=np.zeros((3, 4), int)),
        Segment("speech", codes=np.full((3, 3), 17)),
        Segment("speech", codes=np.full((3, 3), -1)),
        Segment("speech", latents=np.zeros((3, 3), np.float32)),
        Segment("speech", codes=np.zeros((3, 3), int), info={"rate_hz": 16_000}),
    ],
)
def test_codes_of_another_tokenizer_are_refused(tokenizer, segment):
    with pytest.raises(UserError):
        tokenizer.decode(segment)


def test_clips_that_do_not_fit_the_memory_are_refused(tokenizer):
    memory_budget.set_limit("10MB")
    try:
        with pytest.raises(UserError, match="the clip in the codec would take"):
            tokenizer.encode(noise(2_000_000))
    finally:
        memory_budget.set_limit(None)
