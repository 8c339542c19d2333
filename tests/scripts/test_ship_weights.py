"""Weights that come with the package: small, with a card, in the wheel, and the same sound."""

import importlib.util
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest

from mmtok.errors import UserError
from mmtok.nn.audio import MelSpec
from mmtok.nn.convnext import ConvNeXtConfig
from mmtok.tokenizers import dequantiser, istft
from mmtok.tokenizers.dequantiser import DequantiserConfig, DequantiserDescription
from mmtok.tokenizers.istft import ISTFTConfig, ISTFTDescription
from mmtok.tokenizers.speech import DMelConfig
from mmtok.tokenizers.vocoder_base import SHIPPED

ROOT = Path(__file__).parents[2]
CARD = "# A vocoder\n\n## Data\n\nNone.\n\n## Licence\n\nMIT.\n\n## Figures\n\nNone.\n"
SMALL = ConvNeXtConfig(width=16, depth=1)


@pytest.fixture(scope="module")
def script():
    path = ROOT / "scripts" / "ship_weights.py"
    spec = importlib.util.spec_from_file_location("ship_weights", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_in(folder):
    voice = ISTFTDescription(MelSpec(), SMALL)
    istft.WEIGHTS.write(folder / "vocoder", voice, voice.make())
    cells = DequantiserDescription(MelSpec(), dequantiser.Cells(), 1, SMALL)
    dequantiser.WEIGHTS.write(folder / "dequantiser", cells, cells.make())
    return folder


def test_shipped_weights_make_the_same_sound_and_are_half_as_large(script, tmp_path, monkeypatch):
    run = run_in(tmp_path / "run")
    (tmp_path / "card.md").write_text(CARD)
    out = tmp_path / "weights"
    words = [str(run), "dmel-80hz", "--card", str(tmp_path / "card.md"), "--out", str(out)]
    assert script.main(words) == 0
    sizes = [folder.stat().st_size for folder in sorted(out.rglob("*.safetensors"))]
    assert len(sizes) == 2
    assert sizes[1] < 0.6 * (run / "vocoder" / "weights.safetensors").stat().st_size
    monkeypatch.setattr("mmtok.tokenizers.vocoder_base.SHIPPED", out)
    path = str(run)
    own = DMelConfig(vocoder=ISTFTConfig(path), dequantiser=DequantiserConfig(path)).build()
    shipped = DMelConfig(vocoder=ISTFTConfig(), dequantiser=DequantiserConfig()).build()
    segment = own.encode(0.1 * np.random.default_rng(0).standard_normal(4000).astype(np.float32))
    assert np.abs(own.decode(segment) - shipped.decode(segment)).max() < 0.01


def test_they_are_the_default_of_the_hops_that_are_named(script, tmp_path, monkeypatch):
    run = run_in(tmp_path / "run")
    (tmp_path / "card.md").write_text(CARD)
    monkeypatch.setattr("mmtok.tokenizers.vocoder_base.SHIPPED", tmp_path / "out")
    words = [str(run), "x", "--card", str(tmp_path / "card.md"), "--out", str(tmp_path / "out")]
    for hops, is_default in ([], True), (["--hops", "200"], True), (["--hops", "400"], False):
        assert script.main([*words, *hops]) == 0
        assert ISTFTConfig.shipped(MelSpec()) is not None
        assert ISTFTConfig.is_default(MelSpec()) == is_default
    assert not ISTFTConfig.is_default(MelSpec(hop_samples=400))  # of which there are none


def test_what_is_not_fit_to_be_shipped_is_refused(script, tmp_path, monkeypatch):
    run = run_in(tmp_path / "run")
    (tmp_path / "card.md").write_text("# A vocoder\n\n## Data\n")
    words = [str(run), "x", "--card", str(tmp_path / "card.md"), "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match="lacks the headings Licence, Figures"):
        script.main(words)
    (tmp_path / "card.md").write_text(CARD)
    with pytest.raises(UserError, match="holds neither a vocoder nor a de-quantiser"):
        script.main([str(tmp_path), *words[1:]])
    monkeypatch.setattr(script, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="at most 1,000 are shipped"):
        script.main(words)


def test_all_that_is_shipped_is_small_has_a_card_and_is_in_the_wheel(script):
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = data["package-data"]["mmtok"]
    assert any(fnmatch("weights/dmel-80hz-vocoder/weights.safetensors", p) for p in patterns)
    for path in SHIPPED.glob("*/*.safetensors"):
        assert path.stat().st_size <= script.MOST_BYTES
        assert not script.missing_headings((path.parent / "CARD.md").read_text())
