"""Videos as pictures in time: rows of whole pictures."""

import numpy as np
import pytest

from mmtok.core.segment import Segment, segment_of
from mmtok.errors import UserError
from mmtok.tokenizers import load
from mmtok.tokenizers.any_size import AnySizePatchesConfig
from mmtok.tokenizers.images import PixelsConfig, VQPatchesConfig
from mmtok.tokenizers.quantizers import VQ, ResidualVQ
from mmtok.tokenizers.video import VideoConfig
from mmtok.train.tokenizer_fit import fit_tokenizer

GREY = PixelsConfig(height=3, width=2, n_levels=256)


def videos(rng, *lengths, shape=(3, 2)):
    return [rng.integers(0, 256, (n, *shape), dtype=np.uint8) for n in lengths]


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back_and_each_picture_is_a_row(rng, channels):
    config = VideoConfig(PixelsConfig(height=3, width=2, channels=channels, n_levels=256))
    tokenizer = config.build()
    colours = (3,) if channels == 3 else ()
    signals = videos(rng, 1, 4, 2, shape=(3, 2, *colours))
    segments = tokenizer.encode_batch(signals)
    assert [len(s) for s in segments] == [n * (6 * channels + 1) for n in (1, 4, 2)]
    assert tokenizer.n_units(segments[1]) == 24 * channels
    for signal, again in zip(signals, tokenizer.decode_batch(segments), strict=True):
        assert np.array_equal(signal, again)
    alone = tokenizer.encode(signals[1])
    assert np.array_equal(alone.codes, segments[1].codes)
    assert tokenizer.fidelity(signals)["rms_error_grey"] == 0


def test_a_beginning_decodes_to_its_whole_pictures(rng):
    tokenizer = VideoConfig(GREY).build()
    (video,) = videos(rng, 3)
    codes = tokenizer.encode(video).codes
    for n, whole in ((6, 1), (7, 1), (13, 1), (14, 2), (20, 2)):
        found = tokenizer.decode(Segment("video", codes=codes[:n], truncated=True))
        black = n < 7
        assert len(found) == whole and np.array_equal(found[0], video[0] * (not black))
    assert tokenizer.decode(segment_of(tokenizer.signature)).shape == (1, 3, 2)
    with pytest.raises(UserError, match="rows of 6 codes"):
        tokenizer.decode(Segment("video", codes=codes[1:]))


def test_learned_patches_are_those_of_pictures_and_survive_saving(rng, tmp_path):
    picture = VQPatchesConfig(height=4, width=4, patch=2, quantizer=VQ(n_codes=8), steps=3)
    config = VideoConfig(picture)
    signals = videos(rng, 5, 7, shape=(4, 4))
    tokenizer = fit_tokenizer(config, signals, folder=tmp_path / "work")
    of_pictures = fit_tokenizer(picture, [p for v in signals for p in v], folder=tmp_path / "other")
    assert tokenizer.picture.signature == of_pictures.signature
    assert tokenizer.signature.columns == 4 and tokenizer.signature.levels == (8,)
    tokenizer.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.signature == tokenizer.signature and again.config == config
    a = tokenizer.encode(signals[0])
    b = again.encode(signals[0])
    assert np.array_equal(a.codes, b.codes)
    assert np.array_equal(tokenizer.decode(a), again.decode(b))


@pytest.mark.parametrize(
    "picture",
    [
        PixelsConfig(),
        AnySizePatchesConfig(),
        VQPatchesConfig(quantizer=ResidualVQ()),
    ],
)
def test_pictures_of_no_fixed_number_of_single_codes_are_refused(picture):
    with pytest.raises(UserError, match="without a fixed number of single codes"):
        VideoConfig(picture)


def test_what_is_no_video_is_refused(rng):
    tokenizer = VideoConfig(GREY).build()
    for wrong in (np.zeros((3, 2), np.uint8), np.zeros((0, 3, 2), np.uint8)):
        with pytest.raises(UserError, match="at least one picture"):
            tokenizer.encode(wrong)
    with pytest.raises(UserError, match="this tokenizer takes 3 x 2"):
        tokenizer.encode(np.zeros((2, 4, 2), np.uint8))
