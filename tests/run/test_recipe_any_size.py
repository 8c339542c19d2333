"""The recipe of pictures of any size, on a folder of small ones: from the files to the report."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmtok.cli import main
from mmtok.core.rows import of_rows
from mmtok.data.image_preparation import read_image
from mmtok.run.run import open_run

RECIPE = Path(__file__).parents[2] / "recipes" / "any_size.py"
SMALL = (
    "--tokenizers.image.steps 3 --tokenizers.image.height 8 --tokenizers.image.width 8 --patch 4"
    " --image.quantizer.n_codes 6 --image.autoencoder.width 8"
    " --trunk.depth 1 --trunk.width 32 --trunk.n_heads 2 --n_kv_heads 2 --feed_forward 32"
    " --train.steps 3 --batch_size 4 --log_every 1 --image.max_frames 12 --image.max_pixels 256"
    " --heldout_share 0.3 --n_samples 4 --seq_len 64"
)
SIZES = ((8, 8), (5, 16), (13, 6), (4, 4), (40, 20))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures of several sizes, grey, in colours and transparent."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 160)):
        (folder / name).mkdir()
        for i in range(12):
            size = SIZES[i % len(SIZES)]
            channels = ((), (3,), (4,))[i % 3]
            pixels = rng.integers(low, low + 90, (*size, *channels), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", str(RECIPE), "--path", str(pictures), "-o", str(folder), *SMALL.split()]
    assert main(words) == 0
    return folder


def test_tokens_are_grids_of_the_pictures_own_sizes(run):
    (file,) = open_run(run).token_files()
    sizes = set()
    for i in range(len(file)):
        ((segment, _),) = file.segments("image", i)
        rows, columns = of_rows(segment.codes[:, 0], 6).shape
        height = segment.info["height"]
        width = segment.info["width"]
        assert (rows, columns) == (-(-height // 4), -(-width // 4))
        assert height * width <= 256
        sizes.add((height, width))
    assert sizes <= {*SIZES[:4], (22, 11)} and len(sizes) > 3  # 40 x 20 is scaled down


def test_a_drawn_picture_has_whole_rows_of_patches(run, tmp_path):
    words = ["--prompt", "dark", "--to", "image", "-n", "6", "-o", str(tmp_path)]
    assert main(["sample", str(run), *words]) == 0
    index = json.loads((tmp_path / "index.json").read_text())
    assert len(index) == 6
    for row in index:
        height, width = read_image(tmp_path / row["file"]).shape[:2]
        n_codes = (height // 4) * (width // 4 + 1)
        assert height % 4 == width % 4 == 0
        if row["stop"] == "end":
            assert n_codes == row["frames"]
        else:  # the row that the cap cut off is left out
            assert row["frames"] == 12 and n_codes - 1 <= 12


def test_a_size_is_drawn_as_it_is_asked_for(run, tmp_path, capsys):
    words = ["sample", str(run), "--prompt", "dark", "--to", "image", "-n", "2"]
    size = ["--rows", "2", "--columns", "4"]
    assert main([*words, *size, "-o", str(tmp_path)]) == 0
    assert [read_image(p).shape for p in tmp_path.glob("*.png")] == [(8, 16, 3)] * 2
    assert main([*words, "--rows", "9", "--columns", "4", "-o", str(tmp_path)]) != 0
    assert "take 46 frames, more than max_frames 12" in capsys.readouterr().err
    assert main(["sample", str(run), "--prompt", "dark", "--to", "text", "--rows", "2"]) != 0
    assert "text" in capsys.readouterr().err


def test_a_picture_comes_back_in_its_size(run, pictures, tmp_path, capsys):
    tokens = tmp_path / "pictures.parquet"
    tokenizer = str(run / "tokenizers" / "image")
    path = pictures / "dark" / "1.png"  # 5 x 16
    chosen = ["--tokenizer", tokenizer]
    assert main(["tokenize", "image", str(path), *chosen, "-o", str(tokens)]) == 0
    assert main(["detokenize", str(tokens), *chosen, "-o", str(tmp_path / "made")]) == 0
    made = [p for p in tmp_path.rglob("*.png")]
    assert [read_image(p).shape for p in made] == [(5, 16, 3)]


def test_it_reads_and_scores_and_refuses_below_a_patch(run, pictures, tmp_path, capsys):
    assert main(["score", str(run), str(pictures / "dark" / "2.png"), "--condition", "dark"]) == 0
    assert "over 12 frames" in capsys.readouterr().out  # 13 x 6: four rows of two and a mark
    tiny = tmp_path / "tiny.png"
    Image.fromarray(np.zeros((3, 9), np.uint8)).save(tiny)
    assert main(["score", str(run), str(tiny), "--condition", "dark"]) != 0
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "tiny.png: a picture of 3 x 9 (height x width) is less than a patch of 4 x 4" in said
    infill = f"{pictures / 'dark' / '1.png'}:0:2"
    assert main(["sample", str(run), "--to", "image", "--infill", infill]) != 0
    assert "--infill: image needs a run trained with infill" in capsys.readouterr().err


def test_what_cannot_be_is_refused_before_training(pictures, tmp_path, capsys):
    def refused(*more):
        words = ["train", str(RECIPE), "--path", str(pictures), "-o", str(tmp_path / "run")]
        assert main([*words, *SMALL.split(), *more]) != 0
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "fit is 'crop', but the tokenizer takes pictures of any size" in refused(
        "--preparation.image.fit", "crop"
    )
    assert "--train.seq_len" in refused("--seq_len", "24")
    assert "infilling is not possible in image, which is of any size" in refused(
        "--tasks.0.infill", "0.5"
    )


def test_it_is_evaluated_and_reported(run, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    assert main(["evaluate", str(run)]) == 0
    figures = json.loads((run / "evaluation.json").read_text())
    text = json.dumps(figures)
    assert "judge_round_trip" in text and "copies" in text and "frechet" in text
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Pixels are compared at 8 x 8" in page
