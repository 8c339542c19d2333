"""Who speaks, given by a clip: a condition of its own, named or refused in one line."""

import json

import numpy as np
import pytest

from mmtok.cli import main
from mmtok.commands.prompts import condition_segments, with_voice
from mmtok.errors import UserError


def test_a_voice_comes_where_the_task_reads_it(speaking_run, reference_clip):
    words = with_voice(speaking_run, ["Hello."], reference_clip)
    assert words == [f"voice={reference_clip}", "Hello."]
    voice, text = condition_segments(speaking_run, words)
    assert (voice.modality, text.modality) == ("voice", "text")
    assert voice.latents.shape == (1, 32)
    assert speaking_run.tokenizers["text"].decode(text) == "hello"  # the run's spoken form
    assert with_voice(speaking_run, ["Hello."], None) == ["Hello."]


def test_samples_in_a_voice_are_named_after_it(speaking_run, reference_clip, tmp_path):
    words = ["sample", speaking_run.folder, "--prompt", "Ben ran.", "--to", "speech", "-n", "2"]
    assert main([str(w) for w in [*words, "--voice", reference_clip, "--out", tmp_path]]) == 0
    rows = json.loads((tmp_path / "index.json").read_text())
    assert len(rows) == 2 and all("voice=clip" in row["file"] for row in rows)
    assert all(row["stop"] in ("end", "cap") for row in rows)


def test_a_voice_changes_what_is_likely(speaking_run, reference_clip):
    example = next(speaking_run.examples("heldout", "speech", "voice"))
    other = speaking_run.tokenizers["voice"].encode(example["voice"])
    speech = speaking_run.tokenizers["speech"].encode(example["speech"])
    text = speaking_run.encode("text", [example["caption"]])[0]
    documents = []
    for latents in (other.latents, -other.latents):
        from dataclasses import replace

        prompt = speaking_run.prompt([replace(other, latents=latents), text], "speech")
        documents.append(replace(prompt, segments=(*prompt.segments[:-1], speech), open_end=False))
    first, second = speaking_run.score_documents(documents)
    assert np.isfinite(first.total) and first.total != second.total


def test_voices_are_refused_in_one_line(speaking_run, reference_clip, tiny_run, said, tmp_path):
    line = said(
        ["sample", tiny_run, "--prompt", "low", "--voice", reference_clip, "--to", "speech"]
    )
    assert "this run reads no voices, only caption" in line
    missing = tmp_path / "missing.wav"
    words = ["sample", speaking_run.folder, "--prompt", "low", "--to", "speech", "--voice"]
    assert f"there is no file at {missing}" in said([*words, missing])
    assert "never trained on voice + speech -> text" in said(
        ["sample", speaking_run.folder, "--prompt", reference_clip, "--voice", reference_clip]
        + ["--to", "text"]
    )
    with pytest.raises(UserError, match="names a voice already"):
        with_voice(speaking_run, ["voice=a.wav", "low"], reference_clip)
    assert "it is a condition" in said(["sample", speaking_run.folder, "--to", "voice"])
