"""Time series, a modality that the package does not know: `examples/series`, and nothing else."""

import gzip
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from mmtok.cli import main
from mmtok.core.segment import Document
from mmtok.errors import UserError
from mmtok.evaluation.evaluate import evaluate
from mmtok.run.build import train
from mmtok.run.recipe import load_recipe
from mmtok.run.run import open_run

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "examples" / "series" / "series_recipe.py"
CHANNELS = ("level [m]", "flow [m3/s]")
SMALL = {"trunk.depth": 1, "train.steps": 60, "train.log_every": 60, "n_samples": 4}
SMALL |= {"sources.0.window": 16, "tokenizers.series.window": 16, "train.seq_len": 76}


def module(name):
    """A module of the example, as the recipe imports it."""
    _load()
    return sys.modules[name]


@cache
def _load():
    load_recipe(RECIPE)


def process(n, seed=0):
    """A made-up series (n, 2): a VAR(1) about (3, 100)."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 2))
    for t in range(1, n):
        x[t] = x[t - 1] @ [[0.8, 0.3], [0.0, 0.5]] + rng.normal(size=2) * [0.1, 1.0]
    return x + [3.0, 100.0]


def write(path, values, times=None):
    rows = enumerate(values) if times is None else zip(times, values, strict=True)
    lines = ["time [s],level [m],flow [m3/s]"]
    lines += [f"{t},{','.join(map(str, row))}" for t, row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module", params=[0, 32], ids=["numbers", "bins"])
def folder(tmp_path_factory, request):
    home = tmp_path_factory.mktemp("series")
    write(home / "all.series.csv", process(1000))
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    if request.param:
        words += ["--n_bins", "32", "--model.heads", '{"series": {"kind": "Chained"}}']
    train(load_recipe(RECIPE, ["--path", str(home / "all.series.csv"), *words]), home / "run")
    return home / "run"


# ---- the run


def test_round_trips_are_within_the_stated_error(folder):
    tokenizer = open_run(folder, RECIPE).tokenizers["series"]
    values = process(16, seed=1)
    back = tokenizer.decode_batch(tokenizer.encode_batch([values]))[0]
    bound = 1e-6 * tokenizer.scale
    if tokenizer.config.n_bins:
        bound = tokenizer.bin_widths / 2
    assert (np.abs(back - values) <= bound * (1 + 1e-6)).all()
    with pytest.raises(UserError, match="expected finite numbers"):
        tokenizer.encode(values * np.nan)
    with pytest.raises(UserError, match="17 rows, and a window has 16"):
        tokenizer.encode(process(17))


def test_densities_are_in_the_channels_units(folder):
    """In another unit of a channel, ten times smaller, every frame has log 10 more."""
    run = open_run(folder, RECIPE)
    figures = module("series_figures")
    tokenizer = run.tokenizers["series"]
    segments = tokenizer.encode_batch([process(16, seed=2)])
    nats = run.score_documents([Document((segments[0],), (True,))])[0]
    assert np.isfinite(nats.nats[0]) and nats.frames[0] == 16
    other = type(tokenizer)(tokenizer.config, tokenizer.mean * 10, tokenizer.scale * 10)
    if not tokenizer.config.n_bins:
        assert np.allclose(np.array(other.signature.scales), tokenizer.scale * 10)
        return
    assert np.log(other.bin_widths / tokenizer.bin_widths).sum() == pytest.approx(2 * np.log(10))
    assert figures.ORDER == 4


def test_the_verbs_serve_it(folder, capsys, tmp_path):
    own = ["--recipe", str(RECIPE)]
    begin = write(tmp_path / "begin.series.csv", process(8, seed=3))
    words = ["sample", str(folder), *own, "--prompt", str(begin), "--to", "series", "-n", "3"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    (path,) = map(Path, capsys.readouterr().out.splitlines())
    with pytest.warns(UserWarning, match="2 of 48 rows were after a gap"):
        drawn = list(module("series_reader").read_series(path, {"channels": CHANNELS}))
    assert [x.shape for x in drawn] == [(16, 2)] * 3
    tokenizer = open_run(folder, RECIPE).tokenizers["series"]
    bound = tokenizer.bin_widths / 2 if tokenizer.config.n_bins else 1e-5 * tokenizer.scale
    assert (np.abs(drawn[0][:8] - process(8, seed=3)) <= bound * 1.001).all()
    assert main(["score", str(folder), *own, str(path)]) == 0
    assert capsys.readouterr().out.count("16 frames") == 3
    fitted = str(folder / "tokenizers" / "series")
    tokens = str(tmp_path / "t.parquet")
    assert main(["tokenize", "series", str(path), *own, "--tokenizer", fitted, "-o", tokens]) == 0
    again = tmp_path / "again"
    assert main(["detokenize", tokens, *own, "--tokenizer", fitted, "-o", str(again)]) == 0
    assert (again / path.name).read_text()[:40] == path.read_text()[:40]


def test_figures_have_a_gaussian_process_beside_them(folder):
    figures = evaluate(open_run(folder, RECIPE), force=True)["series_from_nothing"]
    assert figures["nats_per_frame_var_low"] < figures["nats_per_frame_var"]
    for name in ("nats_p", "crps", "crps_var", "crps_p"):
        assert np.isfinite(figures[name]).all(), name
    assert figures["crps"][1] < 5  # of a flow whose deviation is about 1


# ---- the baseline


def test_var_is_exact_and_finds_its_own_process():
    figures = module("series_figures")
    windows = np.stack([process(400, seed=k) for k in range(40)])
    fitted = figures.Autoregression.fit(windows, order=1)
    assert np.allclose(fitted.coefficients[1:], [[0.8, 0.3], [0.0, 0.5]], atol=0.05)
    assert np.allclose(np.sqrt(np.diag(fitted.covariance)), [0.1, 1.0], rtol=0.05)
    x = windows[0, :3]
    mean = fitted.coefficients[0] + x[:-1] @ fitted.coefficients[1:]
    expected = -sum(
        multivariate_normal(m, fitted.covariance).logpdf(y)
        for m, y in zip(mean, x[1:], strict=True)
    )
    assert fitted.nats(x[None])[0] == pytest.approx(expected, rel=1e-9)


def test_draws_of_var_have_its_moments():
    figures = module("series_figures")
    coefficients = np.array([[1.0, -2.0], [0.5, 0.2], [0.0, 0.3], [0.1, 0.0], [0.0, 0.1]])
    var = figures.Autoregression(coefficients, np.array([[1.0, 0.3], [0.3, 0.5]]))
    begin = np.tile(np.array([[[1.0, 2.0], [3.0, -1.0]]]), (20_000, 1, 1))
    drawn = var.draw(begin, 1, seed=0)[:, 0]
    row = np.array([1.0, 3.0, -1.0, 1.0, 2.0])
    assert np.allclose(drawn.mean(0), row @ coefficients, atol=0.04)
    assert np.allclose(np.cov(drawn.T), var.covariance, atol=0.04)


# ---- the reader


def test_gaps_and_missing_values_cut_a_series_and_are_said(tmp_path):
    times = [0, 1, 2, 3, 10, 11, 12.02, 13, 13.2, 14.2]
    values = process(len(times))
    path = write(tmp_path / "a.csv", values, times)
    path.write_text(path.read_text().replace(str(values[1, 1]), "NaN"))
    with pytest.warns(UserWarning) as said:
        pieces = module("series_reader").read_pieces(path, CHANNELS)
    assert [len(x) for _, x in pieces] == [1, 2, 4, 2]
    said = "\n".join(str(warning.message) for warning in said)
    for part in ("left out, as a value is missing", "after a gap", "sooner than", "a little off"):
        assert part in said
    assert f"{path}: line 6" in said  # the row after the gap


def test_dates_compression_and_one_channel(tmp_path):
    values = process(5)
    days = [f"2024-02-2{k}T00:00:00" for k in range(5, 10)]
    write(tmp_path / "a.csv", values, days)
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    ((_, found),) = module("series_reader").read_pieces(packed, CHANNELS[1:])
    assert np.array_equal(found, values[:, 1:])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("time,level [m],flow [m3/s]\n0,1,2\n0,1,2\n", "line 3: its time is not after"),
        ("time,level [cm],flow [m3/s]\n0,1,2\n", r"there as 'level \[cm\]', not as 'level \[m\]'"),
        ("time,flow [m3/s]\n0,2\n", r"has no column 'level \[m\]'"),
        ("time,level [m],flow [m3/s]\n0,1,two\n", "line 2: flow .*'two' is no number"),
        ("time,level [m],flow [m3/s]\nmonday,1,2\n", "line 2: time: 'monday' is no number"),
    ],
)
def test_what_is_no_series_is_refused_in_a_line(tmp_path, text, match):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=match) as error:
        module("series_reader").read_pieces(tmp_path / "a.csv", CHANNELS)
    assert "\n" not in str(error.value)


def test_the_end_of_the_time_is_held_out(tmp_path):
    path = write(tmp_path / "a.csv", np.arange(200.0).reshape(100, 2))
    source = module("series_reader").SeriesFile(str(path), CHANNELS, window=16)
    with pytest.warns(UserWarning, match="4 of 100 rows were left out, as they fill no window"):
        parts = {s: [e["series"] for e in source.examples(s, tmp_path)] for s in source.splits}
    assert [len(x) for x in parts.values()] == [5, 1]
    assert parts["train"][-1].max() < parts["heldout"][0].min()
