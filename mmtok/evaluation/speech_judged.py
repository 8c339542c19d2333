"""Speech of held-out texts, judged: the run's samples beside the round trip and the recordings.

Of any clips with transcripts, words or sentences. Whatever judges are installed are asked, and the
run's own recogniser where it has one. Every figure that is a mean over clips has its bootstrap
interval: NAME_low and NAME_high.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np

from mmtok.commands.sample import NOTHING
from mmtok.data.subset import random_subset
from mmtok.evaluation.task import TaskEvaluation, share_ended
from mmtok.evaluation.text import read_signals
from mmtok.io.terminal import print_status
from mmtok.metrics.intervals import Estimate, mean_estimate
from mmtok.metrics.speech_panel import Panel, Recordings, distances, missing_note
from mmtok.metrics.speech_text import character_counts, word_counts
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run
from mmtok.tokenizers.other_vocoder import vocoder_name

N_JUDGED = 40  # held-out clips; each takes the judges some three seconds of a core in all
SHOWN_DISTANCES = ("stoi", "estoi", "pesq", "mcd_db")
SAMPLES = "samples"
ROUND_TRIP = "round_trip"
RECORDINGS = "recordings"

Columns = dict[str, dict[str, Any]]  # whose -> name -> figure; "vocoder": what spoke


def judged_speech(run: Run) -> dict[str, Columns]:
    """Task name + "_judged" -> figures of its samples, the round trip and the recordings.

    Of tasks that make speech from a text, with or without a voice, and from nothing. What is not
    installed is left out, with one line.
    """
    every = map(partial(TaskEvaluation, run), run.recipe.tasks)
    tasks = [task for task in every if _is_judged(task)]
    found: dict[str, Columns] = {}
    if not tasks:
        return found
    panel = Panel()
    if panel.missing:
        print_status(missing_note(panel.missing))
    for task in tasks:
        name = f"{task.name}_judged"
        judging = Judging(task, panel)
        if name not in found and judging.clips:
            print_status(f"judging {task}")
            found[name] = judging.columns()
    return found


def _is_judged(task: TaskEvaluation) -> bool:
    """Whether a task makes speech of a text or of nothing, to its end."""
    *inputs, target = task.modalities
    if target != "speech" or task.task.max_target_frames or len(task.task.targets) > 1:
        return False
    return inputs == [NOTHING] or (inputs.count("text") == 1 and set(inputs) <= {"text", "voice"})


class Judging:
    """One task under the judges: held-out examples, what is sampled for them, what is heard."""

    def __init__(self, task: TaskEvaluation, panel: Panel):
        self.task = task
        self.panel = panel
        self.rate_hz = task.target_tokenizer.config.takes["rate_hz"]

    @cached_property
    def examples(self) -> list[dict[str, Any]]:
        """N_JUDGED random held-out examples, of those that have all the task's fields."""
        task = self.task
        needed = {*task.task.inputs, task.target_field}
        rows = task.run.examples("heldout", *needed)
        return random_subset((row for row in rows if needed <= row.keys()), N_JUDGED, task.seed)

    @cached_property
    def clips(self) -> list[np.ndarray]:
        """The recordings (N_i,)."""
        return [example[self.task.target_field] for example in self.examples]

    @cached_property
    def texts(self) -> list[str] | None:
        """What is said in each; None of a task without a text."""
        fields = self.task.run.recipe.fields
        named = [field for field in self.task.task.inputs if fields[field] == "text"]
        if not named:
            return None
        return [example[named[0]] for example in self.examples]

    @property
    def letters(self) -> list[str] | None:
        """The texts where they are in letters; None of phonemes, which the judge cannot read."""
        preparation = self.task.run.recipe.preparation.get("text")
        if getattr(preparation, "phonemes", ""):
            return None
        return self.texts

    @cached_property
    def recognition(self) -> TaskEvaluation | None:
        """The run's own task speech -> text, where there are texts to compare with."""
        if self.texts is None:
            return None
        return recognition_of(self.task.run)

    def columns(self) -> Columns:
        """Whose -> figures."""
        tokenizer = self.task.target_tokenizer
        recordings = Recordings(self.panel, self.clips, self.rate_hz, self.letters)
        round_trip = tokenizer.decode_batch(tokenizer.encode_batch(self.clips))
        values = distances(self.clips, round_trip, self.rate_hz)
        near = {name: mean_estimate(values[name]) for name in SHOWN_DISTANCES if name in values}
        trip = (
            recordings.figures_of(round_trip)
            | self._voice_figures(recordings, round_trip)
            | near
            | self._read_figures(round_trip)
        )
        spoken = {}
        if spoken_by := vocoder_name(tokenizer):
            spoken["vocoder"] = spoken_by
        return {
            SAMPLES: {**spoken, **self._sample_figures(recordings)},
            ROUND_TRIP: {**spoken, **_named(trip)},
            RECORDINGS: {
                "n": len(self.clips),
                **_named(recordings.own_figures() | self._read_figures(self.clips)),
            },
        }

    def _sample_figures(self, recordings: Recordings) -> dict[str, float]:
        sampled = self._sampled()
        sounds = self.task.decode(sampled)
        figures = {
            "n": len(sounds),
            "stopped": share_ended(sampled),
            "silent": float(np.mean([not sound.any() for sound in sounds])),
        }
        if self.texts is None:  # not of the recordings' texts or voices
            scores = recordings.scores_of(sounds)
            estimates = {} if scores is None else {"mos": mean_estimate(scores)}
        else:
            estimates = recordings.figures_of(sounds) | self._read_figures(sounds)
            estimates |= self._voice_figures(recordings, sounds)
        return figures | _named(estimates)

    def _sampled(self) -> list[Sampled]:
        task = self.task
        if self.texts is None:
            sampled = task.sample_unconditional(len(self.clips))
            prompts = [NOTHING] * len(sampled)
        else:
            sampled = task.sample_examples(self.examples)
            prompts = self.texts
        task.save_samples(f"{task.name}_judged", prompts, sampled)
        return sampled

    def _read_figures(self, sounds: Sequence[np.ndarray]) -> dict[str, Estimate]:
        """Word and character errors of the run's own recogniser; {} without one."""
        if self.recognition is None or self.texts is None:
            return {}
        read = read_signals(self.recognition, sounds)
        return {
            "word_error": word_counts(self.texts, read).estimate(),
            "character_error": character_counts(self.texts, read).estimate(),
        }

    def _voice_figures(
        self, recordings: Recordings, sounds: Sequence[np.ndarray]
    ) -> dict[str, Estimate]:
        """How much nearer the voice is to its recording's than to those of other voices.

        {} without the judge, or where fewer than two voices are known.
        """
        voices = [getattr(example, "voice", "") for example in self.examples]
        if self.panel.voices is None or not all(voices) or len(set(voices)) < 2:
            return {}
        ours = recordings.vectors_of(sounds)
        theirs = recordings.vectors
        assert ours is not None and theirs is not None
        alike = ours @ theirs.T  # (n, n)
        others = np.array([[a != b for b in voices] for a in voices]) & np.isfinite(alike)
        n_others = others.sum(1)
        away = np.where(others, alike, 0).sum(1) / np.where(n_others, n_others, np.nan)
        return {"speaker_above_others": mean_estimate(np.diag(alike) - away)}


def recognition_of(run: Run) -> TaskEvaluation | None:
    """The run's task speech -> text, where it has one."""
    for task in run.recipe.tasks:
        recognition = TaskEvaluation(run, task)
        if recognition.modalities == ("speech", "text"):
            return recognition
    return None


def _named(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Figures and the ends of their intervals; what could not be measured is left out."""
    found: dict[str, float] = {}
    for name, estimate in estimates.items():
        found |= estimate.named(name)
    return found
