"""Samples while they are drawn: speech to a player or as a WAV stream, text as it is written."""

from __future__ import annotations

import shlex
import shutil
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mmtok.commands.sample import asked, modality_to
from mmtok.commands.sample import sample as sample_to_files
from mmtok.core.segment import Document, segment_of
from mmtok.errors import UserError
from mmtok.io import terminal
from mmtok.io.terminal import print_status
from mmtok.model.sampling import Sampled, Sampling
from mmtok.run.run import Run
from mmtok.tokenizers.streaming import SoundStream

STDOUT = Path("-")
PAUSE_S = 0.3  # between two samples
PLAYERS = {  # what to call it with, so that it plays raw samples from its standard input
    "ffplay": "-loglevel error -nodisp -autoexit -f s16le -sample_rate {rate} -i -",
    "aplay": "-q -t raw -f S16_LE -c 1 -r {rate} -",
    "play": "-q -t raw -e signed -b 16 -L -c 1 -r {rate} -",
}
UNKNOWN = 0xFFFFFFFF  # the length of a WAV stream that is still being made

Steps = Generator[tuple[np.ndarray, np.ndarray], None, list[Sampled]]  # what `Run.stream` gives
Turns = Generator[tuple[int, np.ndarray], None, list[Sampled]]


def sample(
    run: Run,
    prompt: Sequence[str],
    to: str,
    n: int | None = None,
    out: Path | None = None,
    seed: int = 0,
    infill: str | None = None,
    play: str | None = None,
    **changes: float | int | str | None,
) -> list[Path]:
    """As `mmtok.commands.sample.sample`, and, where asked, while it is drawn.

    play: speech is played too, one sample after the other, from before the first is whole: "" by a
    player that is found, else by this command, which takes raw 16-bit mono samples, low byte first;
    {rate} in it is their rate in Hz. out: "-" writes nothing but one sample to standard output,
    speech as WAV, text as it is. n: 8 where it is None, 1 with either. Raises UserError for what is
    no such thing.
    """
    alone = play is not None or out == STDOUT
    n = n or (1 if alone else 8)
    if not alone:
        return sample_to_files(run, prompt, to, n, out, seed, infill, **changes)
    modality = modality_to(run, to)
    if infill is not None:
        raise UserError(
            "sample: what fills a hole is not drawn from front to back, so it comes as files only;"
            " leave out --play and --out -"
        )
    if out == STDOUT:
        if n != 1 or play is not None:
            raise UserError(
                "sample: --out - is for one sample, which is not played too; leave out -n and"
                " --play"
            )
        to_stdout(run, asked(run, prompt, modality), run.sampling(modality, **changes), seed)
        return []
    if modality != "speech":
        raise UserError(f"sample: --play plays speech, and {to} makes no sound; leave it out")
    with Player(play, SoundStream(run.tokenizers[modality]).spec.rate_hz) as player:
        heard = lambda prompts, sampling, seed: _played(run, prompts, sampling, seed, player)
        return sample_to_files(run, prompt, to, n, out, seed, draw=heard, **changes)


# ---- a player


class Player:
    """A program that plays what is written to it, started with the first samples.

    It is waited for at the end, and stopped where something goes wrong; one that goes away early,
    or fails, costs only the sound: a warning. Raises UserError where there is no such program.
    """

    def __init__(self, command: str, rate_hz: int):
        self.words, self.process, self.gone = _player_words(command, rate_hz), None, False

    def write(self, samples: np.ndarray) -> None:
        """Samples (n,) within [-1, 1]. Waits while the player has more than it takes."""
        if self.gone or not len(samples):
            return
        try:
            if self.process is None:
                self.process = subprocess.Popen(self.words, stdin=subprocess.PIPE)
            self.process.stdin.write(pcm(samples))
            self.process.stdin.flush()
        except BrokenPipeError:
            self.gone = True

    def __enter__(self) -> Player:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.process is None:
            return
        try:
            if kind is None:
                self._end()
        finally:
            if self.process.poll() is None:  # Ctrl-C, or an error of our own
                self.process.kill()
                self.process.wait()
            with suppress(BrokenPipeError):
                self.process.stdin.close()

    def _end(self) -> None:
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            self.gone = True
        code = self.process.wait()
        if code or self.gone:
            how = f"failed with exit code {code}" if code else "ended before the sound did"
            warnings.warn(
                f"the player {how} ({shlex.join(self.words)}); the samples are in their files all"
                " the same",
                stacklevel=3,
            )


def _player_words(command: str, rate_hz: int) -> list[str]:
    if not command:
        found = next((name for name in PLAYERS if shutil.which(name)), None)
        if found is None:
            raise UserError(
                "sample: --play finds no player; install ffplay (ffmpeg), aplay (alsa-utils) or"
                " play (sox), or name a command that takes raw 16-bit samples, as in --play 'aplay"
                " -f S16_LE -r {rate}'"
            )
        command = f"{found} {PLAYERS[found]}"
    try:
        words = shlex.split(command.replace("{rate}", str(rate_hz)))
    except ValueError as error:
        raise UserError(f"sample: --play {command!r} is no command: {error}") from None
    if not words or shutil.which(words[0]) is None:
        raise UserError(
            f"sample: --play finds no program {command!r} to run; name one that takes raw 16-bit"
            " samples, or leave the name out"
        )
    return words


def pcm(samples: np.ndarray) -> bytes:
    """Samples (n,) within [-1, 1] as 16-bit integers, low byte first."""
    return (samples * 32767).round().astype("<i2").tobytes()


def _played(
    run: Run, prompts: Sequence[Document], sampling: Sampling, seed: int, player: Player
) -> list[Sampled]:
    """What `run.draw` draws, played while it is drawn; says when the first sound came."""
    run.lm  # noqa: B018 - opening it is not part of the drawing
    begun, heard = time.monotonic(), None
    turns = in_turn(run.stream(prompts, sampling, seed), [p.segments[-1].values for p in prompts])
    pieces = sounds(run.tokenizers["speech"], turns)
    while True:
        try:
            row, n_frames, piece = next(pieces)
        except StopIteration as end:
            drawn = end.value
            break
        player.write(piece)
        if heard is None and piece.any():  # not the pause after a sample of no frames
            heard = time.monotonic() - begun, n_frames, row
    if heard is not None:
        seconds, n_frames, row = heard
        print_status(
            f"first sound {seconds:.2f} s after drawing began, at frame {n_frames} of"
            f" {len(drawn[row].segment)}"
        )
    elif not any(len(d.segment) for d in drawn):
        what = "the sample ends" if len(drawn) == 1 else f"all {len(drawn)} samples end"
        warnings.warn(
            f"there was nothing to play: {what} before the first sound; draw again with another"
            " --seed",
            stacklevel=3,
        )
    return drawn


# ---- from steps of a batch to one signal after the other


def in_turn(steps: Steps, known: Sequence[np.ndarray]) -> Turns:
    """Rows drawn together, one after the other: (row, its next frames (k, C)), the first row's
    while they are drawn.

    known: per row the frames (k, C) that its prompt has of it, which come first. Each row comes up
    at least once, and a later one once those before it are done; at the end the samples are
    returned.
    """
    waiting, now = [[frames] for frames in known], 0

    def taken(row: int) -> tuple[int, np.ndarray]:
        frames, waiting[row] = np.concatenate(waiting[row]), [known[row][:0]]
        return row, frames

    while True:
        try:
            rows, frames = next(steps)
        except StopIteration as end:
            drawn = end.value
            break
        for row, frame in zip(rows, frames):
            waiting[row].append(frame[None])
        yield taken(now)
        while now + 1 < len(known) and now not in rows:  # a row that got no frame is done
            now += 1
            yield taken(now)
    for row in range(now, len(known)):
        yield taken(row)
    return drawn


def sounds(
    tokenizer: Any, turns: Turns
) -> Generator[tuple[int, int, np.ndarray], None, list[Sampled]]:
    """The samples of each row, with a pause between two: (row, how many frames of it are there,
    samples (n,)); n may be 0.
    """
    now, sound = 0, SoundStream(tokenizer)
    pause = np.zeros(int(PAUSE_S * sound.spec.rate_hz), np.float32)
    while True:
        try:
            row, frames = next(turns)
        except StopIteration as end:
            yield now, sound.n_frames, sound.finish()
            return end.value
        if row != now:
            yield now, sound.n_frames, np.concatenate([sound.finish(), pause])
            now, sound = row, SoundStream(tokenizer)
        piece = sound.push(frames)
        yield now, sound.n_frames, piece


# ---- to standard output


def to_stdout(run: Run, document: Document, sampling: Sampling, seed: int) -> None:
    """Draw what a prompt asks and write it to standard output as it comes: a text in UTF-8 and a
    newline, or speech as WAV.

    Into a pipe or a file that is exact; on a terminal a text's characters of control are shown as
    escapes, but newlines and tabs. Raises UserError for what is neither, for speech on a terminal,
    and where there is no standard output.
    """
    known = document.segments[-1]
    if known.modality not in ("speech", "text"):
        raise UserError(
            f"sample: --out - is for speech and text; {known.modality} goes to files, name a folder"
        )
    out = stdout_of_samples(known.modality)
    tokenizer = run.tokenizers[known.modality]
    turns = in_turn(run.stream([document], sampling, seed), [known.values])
    n_written = 0
    if known.modality == "text":
        for piece in written(tokenizer, turns):
            out(piece.encode())
            n_written += len(piece)
        out(b"\n")
    else:
        out(wav_header(SoundStream(tokenizer).spec.rate_hz))
        for _, _, piece in sounds(tokenizer, turns):
            out(pcm(piece))
            n_written += len(piece)
    if not n_written:
        warnings.warn(
            f"the sample ended before its first frame, so that this {known.modality} is empty; draw"
            " again with another --seed",
            stacklevel=2,
        )


def stdout_of_samples(modality: str) -> Callable[[bytes], None]:
    """What writes a sample's next bytes.

    Raises UserError where standard output cannot take them.
    """
    if "stdout" in terminal.closed:
        raise UserError("sample: --out - writes to standard output, which is closed; name a folder")
    if not sys.stdout.isatty():
        return terminal.write_raw
    if modality != "text":
        raise UserError(
            "sample: --out - writes speech as WAV, which is nothing for a terminal; send it into a"
            " file or a pipe, or take --play"
        )
    return lambda piece: terminal.print_answer_piece(piece.decode())


def written(tokenizer: Any, turns: Iterator[tuple[int, np.ndarray]]) -> Iterator[str]:
    """A text, piece by piece; a letter of several bytes comes once it is whole."""
    values, shown = [], ""
    for _, frames in turns:
        values.append(frames)
        text = tokenizer.decode(segment_of(tokenizer.signature, np.concatenate(values)))
        ready = text.rstrip("\ufffd")  # what the next code may complete
        if ready.startswith(shown):
            yield ready[len(shown) :]
            shown = ready
    if values:
        yield text[len(shown) :]


def wav_header(rate_hz: int) -> bytes:
    """Of a stream of 16-bit mono samples that ends where it ends, with the longest lengths that a
    header can say.
    """
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    return (
        b"RIFF" + struct.pack("<I", UNKNOWN) + b"WAVE" + form + b"data" + struct.pack("<I", UNKNOWN)
    )
