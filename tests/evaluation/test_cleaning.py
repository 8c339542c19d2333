"""Pile-up removed by draws: what the figures say of draws that are known, and a whole run."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.evaluation.cleaning import Cleaned, _figures, cleaned_path
from mmtok.evaluation.evaluate import evaluate
from mmtok.heads.set_diffusion import SetDiffusion
from mmtok.model.lm import DecoderConfig
from mmtok.nn.denoisers import DiTConfig
from mmtok.nn.transformer import TransformerConfig
from mmtok.report.report import write_report
from mmtok.run.build import train
from mmtok.run.recipe import Recipe
from mmtok.sources.base import Source
from mmtok.tokenizers.jet_latents import JetLatentsConfig
from mmtok.train.config import TrainConfig


@dataclass(frozen=True)
class Doubled(Source):
    """Jets of two particles with two soft ones more, and without."""

    mu: float = 1.0

    @property
    def fields(self) -> dict[str, str]:
        return {"jets": "jets", "clean_jets": "jets"}

    def check(self) -> None:
        pass

    def examples(self, split: str, cache: Path) -> Iterator[dict]:
        rng = np.random.default_rng(len(split))
        for _ in range(16 if split == "heldout" else 60):
            angle = rng.uniform(0.1, 0.4)
            clean = np.array([[90.0, angle, 0.0], [80.0, -angle, 0.0]], np.float32)
            soft = np.column_stack(([3.0, 2.0], rng.uniform(-0.7, 0.7, (2, 2))))
            yield {
                "jets": np.concatenate((clean, soft)).astype(np.float32),
                "clean_jets": clean,
            }


def test_figures_of_draws_that_are_known(rng):
    """Draws of the true posterior are calibrated; the others' errors have the widths they were
    made with.
    """
    data = rng.normal(100, 10, 1500)
    truth = data + rng.normal(0, 3, 1500)
    draws = data[:, None] + rng.normal(0, 3, (1500, 99))
    others = {
        "raw": {"mass": 2 * truth},
        "soft_drop": {"mass": truth * (1 + rng.normal(0, 0.2, 1500))},
        "puppi": {"mass": truth},
    }
    found = _figures(Cleaned({"mass": truth}, {"mass": draws}, others), "mass", 0)
    assert found["width_run"] == pytest.approx(0.03, rel=0.15)
    assert found["width_soft_drop"] == pytest.approx(0.2, rel=0.1)
    assert found["width_soft_drop_low"] < 0.2 < found["width_soft_drop_high"]
    assert found["width_puppi"] == found["width_raw"] == 0 and found["bias_raw"] == 1
    assert found["gain_soft_drop"] > 0.1 > found["gain_soft_drop_p"]
    assert found["gain_puppi"] < 0
    assert found["pit_ks_p"] > 0.001 and found["coverage_68"] == pytest.approx(0.68, abs=0.04)


def test_a_run_is_evaluated_and_its_report_has_the_curves(tmp_path, monkeypatch):
    monkeypatch.setattr("mmtok.evaluation.cleaning.N_DRAWS", 4)
    recipe = Recipe(
        name="cleaning",
        sources=(Doubled(),),
        tokenizers={"jets": JetLatentsConfig(max_constituents=6)},
        tasks=(Task(("jets",), ("clean_jets",)),),
        model=DecoderConfig(
            TransformerConfig(1, 16, 2, 2, 24),
            heads={
                "jets": SetDiffusion(
                    network=DiTConfig(1, 16, 2), steps=3, ode_steps=4, max_frames=6, context=True
                )
            },
        ),
        train=TrainConfig(steps=4, batch_size=4, seq_len=32, warmup=1),
        n_samples=8,
    )
    run = train(recipe, tmp_path / "run", device="cpu")
    figures = evaluate(run)["jets_from_jets"]
    assert figures.keys() == {"mass", "tau21"} and figures["mass"]["n"] == 8
    stored = Cleaned.load(cleaned_path("jets_from_jets", run.folder))
    assert stored.draws["mass"].shape == (8, 4)
    assert stored.errors("mass", "puppi").shape == (8,)
    assert json.loads((run.folder / "evaluation.json").read_text())["jets_from_jets"] == figures
    np.savez(tmp_path / "half.npz", **{"truth/mass": stored.truth["mass"]})
    with pytest.raises(UserError, match="half.npz: cannot be read as observables of jets"):
        Cleaned.load(tmp_path / "half.npz")
    page = write_report(run).read_text()
    assert "mass, errors of estimates: this run" in page and "PIT of 8 truths" in page
