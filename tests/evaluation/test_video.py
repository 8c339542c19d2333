"""Videos through every verb: a dot that moves over a small canvas, and is continued."""

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.data.tasks import Task
from mmtok.evaluation.evaluate import evaluate
from mmtok.evaluation.video import N_KNOWN
from mmtok.heads.sampling import Sampling
from mmtok.model.lm import DecoderConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.report.samples import Sample
from mmtok.report.video import video_section
from mmtok.run.build import train
from mmtok.run.recipe import Recipe
from mmtok.run.run import open_run
from mmtok.sources.video_files import read_video, write_video
from mmtok.sources.videos import VideoFolder, bounced
from mmtok.tokenizers.images import PixelsConfig
from mmtok.tokenizers.text import BytesConfig
from mmtok.tokenizers.video import VideoConfig
from mmtok.train.config import TrainConfig

N_PICTURES = 6
GREYS = {"d": 120, "b": 240}  # dim, bright


def dot(grey, start, direction):
    """A dot on a canvas of 2 x 3 that moves along the lower row."""
    video = np.zeros((N_PICTURES, 2, 3), np.uint8)
    video[np.arange(N_PICTURES), 1, bounced(start, direction, 3, N_PICTURES)] = grey
    return video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("video")
    for name, grey in GREYS.items():
        (home / "data" / name).mkdir(parents=True)
        for i in range(24):
            video = dot(grey, i % 3, 1 if i % 2 else -1)
            write_video(home / "data" / name / f"{i}.gif", video)
    recipe = Recipe(
        name="dots",
        sources=(VideoFolder(str(home / "data"), heldout_share=0.25),),
        tokenizers={
            "text": BytesConfig(),
            "video": VideoConfig(PixelsConfig(height=2, width=3, n_levels=18)),
        },
        tasks=(Task(("caption",), ("video",), cond_dropout=0.5),),
        model=DecoderConfig(trunk=TransformerConfig(2, 32, 2, 2, 64)),
        train=TrainConfig(
            steps=300, batch_size=4, seq_len=120, optimizer="muon", learning_rate=1e-2, warmup=10,
            ema_decay=0.0, precision="float32", log_every=300,
        ),
        n_samples=8,
        sampling={"video": Sampling(temperature=0.0, max_frames=60)},
    )  # fmt: skip
    train(recipe, home / "run")
    return home / "run"


def test_a_beginning_is_continued_as_the_dot_moves(folder, tmp_path, capsys):
    video = dot(GREYS["b"], 0, 1)
    write_video(tmp_path / "begin.gif", video[:N_KNOWN])
    words = ["sample", str(folder), "--prompt", str(tmp_path / "begin.gif"), "--to", "video"]
    assert main([*words, "-n", "1", "-o", str(tmp_path / "out")]) == 0
    (path,) = capsys.readouterr().out.split()
    drawn = np.stack(read_video(path).pictures)
    assert np.array_equal(drawn, video)


def test_figures_say_how_videos_go_on(folder):
    figures = evaluate(open_run(folder), force=True)["video_from_text"]
    assert figures["frame_accuracy"] > 0.9 and figures["judge_heldout"] == 1
    assert figures["judge_accuracy"] > 0.9 and figures["length_right"] > 0.9
    assert figures["continued_psnr_db"] > figures["repeated_psnr_db"] + 3
    assert figures["round_trip_psnr_db"] > 30
    scores = evaluate(open_run(folder))["score"]["video"]
    assert scores["bits_per_code"] < 0.5 * scores["bits_per_code_unigram"]
    (section, *_) = video_section(
        open_run(folder), {"b": [Sample(p, "b") for p in (folder / "samples").rglob("b-*.gif")]}
    )
    assert "data:image/gif;base64," in section


def test_files_are_scored_and_become_tokens_and_files_again(folder, tmp_path, capsys):
    video = dot(GREYS["d"], 2, -1)
    write_video(tmp_path / "a.gif", video)
    assert main(["score", str(folder), str(tmp_path / "a.gif"), "--condition", "d"]) == 0
    assert "over 36 codes (exact)" in capsys.readouterr().out
    tokens = str(tmp_path / "t.parquet")
    own = ["--tokenizer", str(folder / "tokenizers" / "video")]
    assert main(["tokenize", "video", str(tmp_path / "a.gif"), *own, "-o", tokens, "--check"]) == 0
    assert "psnr_db" in capsys.readouterr().out
    assert main(["detokenize", tokens, *own, "-o", str(tmp_path / "again")]) == 0
    again = np.stack(read_video(tmp_path / "again" / "a.gif").pictures)
    assert np.abs(again.astype(int) - video).max() <= 8  # half a level
    assert main(["tokenize", "video", str(tmp_path / "a.gif"), "-o", tokens + "2.parquet"]) == 2
    assert "no tokenizer without training" in capsys.readouterr().err
