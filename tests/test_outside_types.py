"""Code from outside the package passes mypy as the package itself does: `py.typed` ships."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "outside_head"


@pytest.mark.slow  # mypy reads torch: 20 s
def test_a_head_of_ones_own_passes_the_type_check(tmp_path, monkeypatch):
    api = pytest.importorskip("mypy.api")
    monkeypatch.chdir(FOLDER.parent.parent)  # where mypy finds its settings
    monkeypatch.setenv("MYPYPATH", str(FOLDER))
    words = ["--cache-dir", str(tmp_path), "--follow-imports", "silent"]
    said, _, status = api.run([*words, str(FOLDER / "normal_recipe.py")])
    assert not status, said
