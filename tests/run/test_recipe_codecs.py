"""Runs on the codes of a pretrained codec, and on stacked frames: from training to sound and
scores, also once the checkpoint that the recipe names is gone.
"""

import json
import math
import shutil
from dataclasses import replace

import pytest

from mmtok.commands import sample as sampling
from mmtok.commands import score as scoring
from mmtok.commands.show import describe_path
from mmtok.data.speech_preparation import read_sound
from mmtok.data.tasks import Task
from mmtok.heads.categorical import Chained, Parallel
from mmtok.run.build import train
from mmtok.run.recipe import Recipe
from mmtok.run.run import open_run
from mmtok.tokenizers.codecs import CodecConfig
from mmtok.tokenizers.speech import DMelConfig


@pytest.fixture
def make_run(tiny_recipe, tmp_path):
    """make_run(config, head) -> a run of two steps that makes speech from text, and its recipe."""

    def make(config, head):
        recipe = replace(
            tiny_recipe,
            sources=tiny_recipe.sources[1:2],
            tokenizers={"text": tiny_recipe.tokenizers["text"], "speech": config},
            preparation={},
            tasks=(Task(("caption",), ("speech",)),),
            input_masking={},
            model=replace(tiny_recipe.model, heads={"speech": head}),
            train=replace(tiny_recipe.train, steps=2, seq_len=128),
            sampling={"speech": tiny_recipe.sampling["speech"]},
        )
        return train(recipe, tmp_path / "run"), recipe

    return make


@pytest.mark.filterwarnings("ignore:.*clip")
@pytest.mark.parametrize("delay, head", [(False, Chained(8)), (True, Parallel())])
def test_a_run_on_a_codec_keeps_it(make_run, make_codec, tiny_data, tmp_path, delay, head):
    pytest.importorskip("transformers")
    checkpoint = make_codec(tmp_path / "codec", "encodec")
    run, recipe = make_run(CodecConfig(str(checkpoint), 3, delay), head)
    shutil.rmtree(checkpoint)
    assert Recipe.from_json(recipe.to_json()) == recipe
    run = open_run(run.folder)
    sound = tiny_data / "sounds" / "03.wav"  # 4,300 samples at 16 kHz are 6,450 at 24 kHz
    (scored,) = scoring.score(run, [str(sound)], ["low"])
    n_frames = math.ceil(6450 / 320)
    assert (scored.frames, scored.units) == (n_frames + 2 * delay, n_frames)
    assert (scored.kind, scored.unit) == ("exact", "nats/frame")
    sampling.sample(run, ["low"], "speech", 8, tmp_path / "out", max_frames=12)
    rows = json.loads((tmp_path / "out" / "index.json").read_text())
    lengths = {row["file"]: 320 * max(0, row["frames"] - 2 * delay) for row in rows}
    assert any(lengths.values())
    for file, n_samples in lengths.items():
        if n_samples:  # a file without samples cannot be read
            assert len(read_sound(tmp_path / "out" / file, 24_000)) == n_samples
    assert "CodecConfig, 3 x" in (text := describe_path(run.folder))
    assert "75 frames/s, 900 bit/s" in text


def test_scores_of_stacked_frames_are_per_frame_of_the_spectrogram(make_run, tiny_data):
    run, _ = make_run(replace(DMelConfig.dmel_40hz(), reduction_factor=4), Parallel())
    sound = tiny_data / "sounds" / "03.wav"
    (scored,) = scoring.score(run, [str(sound)], ["low"])
    n_frames = DMelConfig.dmel_40hz().mel.n_frames(4300)
    assert (scored.frames, scored.units) == (math.ceil(n_frames / 4), n_frames)
    assert scored.value == pytest.approx(scored.nats / n_frames)
    assert "10 frames/s of 4 spectra, 12800 bit/s" in describe_path(run.folder)
