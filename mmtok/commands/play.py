"""Samples streamed while they are drawn: speech to a player or as WAV, text to stdout."""

from __future__ import annotations

import shlex
import shutil
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from mmtok.commands.best_of import draw_best
from mmtok.commands.long_texts import (
    PAUSE_S,
    completed_sentences,
    piped_text,
    prompts_by_sentence,
    spoken_only,
)
from mmtok.commands.prompts import prompts_in, with_voice
from mmtok.commands.recordings import is_long_recording, read_samples
from mmtok.commands.sample import prompt_document, target_modality
from mmtok.commands.sample import sample as sample_to_files
from mmtok.core.segment import Document, segment_of
from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling
from mmtok.io import terminal
from mmtok.io.terminal import print_status
from mmtok.model.sampling import Sampled
from mmtok.run.run import Run
from mmtok.tokenizers.streaming import SoundStream

STDOUT = Path("-")
PIPED = "-"  # the word of a prompt that stands for standard input
PLAYERS = {  # program -> arguments with which it plays raw samples from its standard input
    "ffplay": "-loglevel error -nodisp -autoexit -f s16le -sample_rate {rate} -i -",
    "aplay": "-q -t raw -f S16_LE -c 1 -r {rate} -",
    "play": "-q -t raw -e signed -b 16 -L -c 1 -r {rate} -",
}
UNKNOWN = 0xFFFFFFFF  # the length in the header of a WAV stream

# (rows, frames (len(rows), C)) after each step, as `Run.stream` yields them
Steps = Generator[tuple[np.ndarray, np.ndarray], None, list[Sampled]]
# (row, its next frames (k, C)), all of a row before the next row
RowFrames = Generator[tuple[int, np.ndarray], None, list[Sampled]]


def sample(
    run: Run,
    prompt: Sequence[str],
    to: str,
    n: int | None = None,
    out: Path | None = None,
    seed: int = 0,
    infill: str | None = None,
    play: str | None = None,
    voice: Path | None = None,
    best_of: int = 1,
    timestamps: bool = False,
    prompts: Path | None = None,
    **changes: Any,
) -> list[Path]:
    """As `mmtok.commands.sample.sample`, and optionally streamed.

    Raises UserError for what cannot be streamed.

    Args:
        run: as there.
        prompt: as there.
        to: as there.
        n: None is 8, or 1 with a file of prompts or when streaming.
        out: as there; "-" writes one sample to standard output and no file, speech as WAV, text as
            it is.
        play: play speech too, one sample after the other, as it is drawn. "" takes a player that is
            found. Else it is a command that reads raw 16-bit mono samples, low byte first; {rate}
            in it becomes their rate in Hz.
        seed: as there.
        infill: as there; cannot be streamed.
        voice: a clip of who is to speak, of a run that reads voices.
        best_of: keep of so many draws the likeliest; cannot be streamed.
        timestamps: as there; they go to files only.
        prompts: a text file with a prompt on each line, to files only; without `prompt`.
        changes: as there.
    """
    streamed = play is not None or out == STDOUT
    several = None if best_of == 1 else partial(draw_best, run, best_of=best_of)
    if prompts is not None:
        if prompt or streamed or infill is not None:
            raise UserError(
                "sample: --prompts takes the place of --prompt, and gives files only; leave out"
                " --prompt, --play, --out - and --infill"
            )
        lines = [with_voice(run, [line], voice) for line in prompts_in(prompts)]
        return sample_to_files(
            run, (), to, n or 1, out, seed, None, several, timestamps, lines, **changes
        )
    prompt = with_voice(run, prompt, voice)
    modality = target_modality(run, to)
    speaks = modality in STREAMED and STREAMED[modality].is_sound
    if PIPED in prompt and not (out == STDOUT and speaks):
        prompt = ["".join(piped_text()).strip() if word == PIPED else word for word in prompt]
    if not streamed:
        return sample_to_files(
            run, prompt, to, n or 8, out, seed, infill, several, timestamps, **changes
        )
    _check_streamed(best_of, timestamps, infill)
    if out == STDOUT:
        if (n or 1) != 1 or play is not None:
            raise UserError(
                "sample: --out - is for one sample, which is not played too; leave out -n and"
                " --play"
            )
        _to_stdout(run, prompt, modality, run.sampling(modality, **changes), seed)
        return []
    if not speaks:
        raise UserError(f"sample: --play plays speech, and {to} makes no sound; leave it out")
    with Player(play or "", SoundStream(run.tokenizers[modality]).spec.rate_hz) as player:

        def draw(prompts: Sequence[Document], sampling: Sampling, seed: int) -> list[Sampled]:
            return draw_and_play(run, prompts, sampling, seed, player)

        return sample_to_files(run, prompt, to, n or 1, out, seed, draw=draw, **changes)


def _check_streamed(best_of: int, timestamps: bool, infill: str | None) -> None:
    """Raise UserError for what cannot be streamed."""
    if best_of != 1 or timestamps:
        raise UserError(
            "sample: --best-of compares whole samples, and --timestamps have a file of their own,"
            " so they come as files only; leave out --play and --out -"
        )
    if infill is not None:
        raise UserError(
            "sample: what is infilled is not drawn from front to back, so it comes as files only;"
            " leave out --play and --out -"
        )


def _to_stdout(
    run: Run, prompt: Sequence[str], modality: str, sampling: Sampling, seed: int
) -> None:
    """One sample to standard output: of a long recording by windows, else as it is drawn."""
    if modality == "text":
        document = prompt_document(run, prompt, modality)
        if is_long_recording(run, document):
            recording_to_stdout(run, document, sampling, seed)
            return
    to_stdout(run, modality, documents_to_stream(run, prompt, modality), sampling, seed)


# ---- a player


class Player:
    """A program that plays what is written to it, started with the first samples.

    At the end it is waited for; after an error it is stopped. If it exits early, or fails, only the
    sound is lost: that is a warning. Raises UserError if there is no such program.
    """

    def __init__(self, command: str, rate_hz: int) -> None:
        self.words = _player_words(command, rate_hz)
        self.process: subprocess.Popen[bytes] | None = None
        self.exited_early = False

    def write(self, samples: np.ndarray) -> None:
        """Play samples (n,) within [-1, 1]; blocks while the player's buffer is full."""
        if self.exited_early or not len(samples):
            return
        try:
            if self.process is None:
                self.process = subprocess.Popen(self.words, stdin=subprocess.PIPE)
            pipe = _pipe_into(self.process)
            pipe.write(pcm(samples))
            pipe.flush()
        except BrokenPipeError:
            self.exited_early = True

    def __enter__(self) -> Player:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.process is None:
            return
        try:
            if kind is None:
                self._finish(self.process)
        finally:
            if self.process.poll() is None:  # Ctrl-C, or an error of our own
                self.process.kill()
                self.process.wait()
            with suppress(BrokenPipeError):
                _pipe_into(self.process).close()

    def _finish(self, process: subprocess.Popen[bytes]) -> None:
        try:
            _pipe_into(process).close()
        except BrokenPipeError:
            self.exited_early = True
        code = process.wait()
        if not code and not self.exited_early:
            return
        how = "ended before the sound did"
        if code:
            how = f"failed with exit code {code}"
        warnings.warn(
            f"the player {how} ({shlex.join(self.words)}); the samples are in their files all the"
            " same",
            stacklevel=3,
        )


def _pipe_into(process: subprocess.Popen[bytes]) -> IO[bytes]:
    """The standard input of a process that was started with a pipe there."""
    assert process.stdin is not None
    return process.stdin


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


def draw_and_play(
    run: Run, prompts: Sequence[Document], sampling: Sampling, seed: int, player: Player
) -> list[Sampled]:
    """The samples that `run.draw` returns, played while they are drawn.

    Says when the first sound came.
    """
    run.lm  # noqa: B018 - loads the decoder, so that the time below is that of drawing
    start = time.monotonic()
    first_sound: tuple[float, int, int] | None = None  # seconds, frames, row
    steps = run.stream(prompts, sampling, seed)
    tokenizer = run.tokenizers[prompts[0].target.modality]
    pieces = sounds(tokenizer, in_turn(steps, [p.target.values for p in prompts]))
    while True:
        try:
            row, n_frames, piece = next(pieces)
        except StopIteration as end:
            samples: list[Sampled] = end.value
            break
        player.write(piece)
        if first_sound is None and piece.any():  # not the pause after a sample of no frames
            first_sound = time.monotonic() - start, n_frames, row
    if first_sound is not None:
        seconds, n_frames, row = first_sound
        print_status(
            f"first sound {seconds:.2f} s after drawing began, at frame {n_frames} of"
            f" {len(samples[row].segment)}"
        )
    elif not any(len(s.segment) for s in samples):
        what = "the sample ends" if len(samples) == 1 else f"all {len(samples)} samples end"
        warnings.warn(
            f"there was nothing to play: {what} before the first sound; draw again with another"
            " --seed",
            stacklevel=3,
        )
    return samples


# ---- from steps of a batch to one signal after the other


def in_turn(steps: Steps, known: Sequence[np.ndarray]) -> RowFrames:
    """Rows drawn together, one after the other: (row, its next frames (k, C)).

    The first row's frames come while they are drawn; a later row's are kept until those before it
    are done. Each row comes at least once. The generator returns the samples.

    Args:
        steps: what `Run.stream` gives.
        known: the frames (k, C) that each row's prompt has of it. They come first.
    """
    kept = [[frames] for frames in known]
    current = 0

    def take(row: int) -> tuple[int, np.ndarray]:
        frames = np.concatenate(kept[row])
        kept[row] = [known[row][:0]]
        return row, frames

    while True:
        try:
            rows, frames = next(steps)
        except StopIteration as end:
            samples: list[Sampled] = end.value
            break
        for row, frame in zip(rows, frames, strict=True):
            kept[row].append(frame[None])
        yield take(current)
        while current + 1 < len(known) and current not in rows:  # a row without a frame is done
            current += 1
            yield take(current)
    for row in range(current, len(known)):
        yield take(row)
    return samples


def sounds(
    tokenizer: Any, row_frames: RowFrames
) -> Generator[tuple[int, int, np.ndarray], None, list[Sampled]]:
    """The sound of each row, with a pause before the first frame of a later one.

    The end of a row's sound comes as soon as the next row is named, with or without frames.
    Yields (row, how many of its frames are decoded, samples (n,)); n may be 0. Returns what
    `row_frames` does.
    """
    current = 0
    sound = SoundStream(tokenizer)
    pause = np.zeros(int(PAUSE_S * sound.spec.rate_hz), np.float32)
    n_pauses = 0  # that are due
    while True:
        try:
            row, frames = next(row_frames)
        except StopIteration as end:
            yield current, sound.n_frames, sound.finish()
            return end.value
        if row != current:
            yield current, sound.n_frames, sound.finish()
            current = row
            sound = SoundStream(tokenizer)
            n_pauses += 1
        piece = sound.push(frames)
        if len(frames):
            piece = np.concatenate([*[pause] * n_pauses, piece])
            n_pauses = 0
        yield current, sound.n_frames, piece


# ---- to standard output


def documents_to_stream(run: Run, prompt: Sequence[str], modality: str) -> Iterator[Document]:
    """The documents of a prompt: one, or those of a text's sentences.

    A word - stands for standard input, whose sentences come as soon as they are whole.
    """
    if PIPED not in prompt:
        parts = prompts_by_sentence(run, prompt, modality)
        # the first now: what is wrong with a prompt is said before anything is written
        first = prompt_document(run, parts[0], modality)
        return chain([first], (prompt_document(run, part, modality) for part in parts[1:]))
    i = prompt.index(PIPED)
    return (
        prompt_document(run, [*prompt[:i], sentence, *prompt[i + 1 :]], modality)
        for sentence in spoken_only(completed_sentences(piped_text()))
    )


def recording_to_stdout(run: Run, document: Document, sampling: Sampling, seed: int) -> None:
    """Read a recording by windows and write its text, once they are joined.

    Raises UserError as `to_stdout` does.
    """
    write = stdout_writer(is_sound=False)

    def draw(documents: Sequence[Document], seed: int) -> list[Sampled]:
        """Readings of windows."""
        return run.draw(documents, sampling, seed)

    (found,) = read_samples(run, document, 1, seed, draw, with_times=False)
    write(run.tokenizers["text"].decode(found.segment).encode() + b"\n")


def one_after_the_other(
    run: Run, documents: Iterable[Document], sampling: Sampling, seed: int
) -> RowFrames:
    """The frames of documents, as `in_turn` gives them: each is drawn when those before it are.

    Document i has the seed `seed` + i. After its last frame comes the next row without frames.
    """
    samples = []
    for i, document in enumerate(documents):
        frames = in_turn(run.stream([document], sampling, seed + i), [document.target.values])
        while True:
            try:
                _, piece = next(frames)
            except StopIteration as end:
                samples += end.value
                break
            yield i, piece
        yield i + 1, document.target.values[:0]  # the sound of this one is complete
    return samples


def to_stdout(
    run: Run, modality: str, documents: Iterable[Document], sampling: Sampling, seed: int
) -> None:
    """Draw the continuations of documents and write them to standard output as they come.

    A text is UTF-8 and ends with a newline; speech is WAV. On a terminal control characters of a
    text are shown as escapes, except newlines and tabs. Raises UserError for other modalities, for
    speech on a terminal, and if standard output is closed.
    """
    streamed = STREAMED.get(modality)
    if streamed is None:
        raise UserError(
            f"sample: --out - is for speech and text; {modality} goes to files, name a folder"
        )
    write = stdout_writer(streamed.is_sound)
    run.lm  # noqa: B018 - opened before a pipe is waited for, not when its first sentence is there
    row_frames = one_after_the_other(run, documents, sampling, seed)
    n_written = 0
    for piece, length in streamed.pieces(run.tokenizers[modality], row_frames):
        write(piece)
        n_written += length
    if not n_written:
        warnings.warn(
            f"the sample ended before its first frame, so that this {modality} is empty; draw"
            " again with another --seed",
            stacklevel=2,
        )


def stdout_writer(is_sound: bool) -> Callable[[bytes], None]:
    """The function that writes a sample's next bytes to standard output.

    Raises UserError if standard output cannot take them.
    """
    if "stdout" in terminal.closed:
        raise UserError("sample: --out - writes to standard output, which is closed; name a folder")
    if not sys.stdout.isatty():
        return terminal.write_raw
    if is_sound:
        raise UserError(
            "sample: --out - writes speech as WAV, which is nothing for a terminal; send it into a"
            " file or a pipe, or take --play"
        )

    def write_text(piece: bytes) -> None:
        terminal.print_answer_piece(piece.decode())

    return write_text


def text_pieces(tokenizer: Any, row_frames: Iterator[tuple[int, np.ndarray]]) -> Iterator[str]:
    """A text, piece by piece; a letter of several bytes comes once all of them are there."""
    values: list[np.ndarray] = []
    shown = ""
    for _, frames in row_frames:
        values.append(frames)
        text = tokenizer.decode(segment_of(tokenizer.signature, np.concatenate(values)))
        ready = text.rstrip("\ufffd")  # the next code may complete it
        if ready.startswith(shown):
            yield ready[len(shown) :]
            shown = ready
    if values:
        yield text[len(shown) :]


def text_bytes(tokenizer: Any, row_frames: RowFrames) -> Iterator[tuple[bytes, int]]:
    """A text as UTF-8, piece by piece, each with its letters; a newline at the end."""
    for piece in text_pieces(tokenizer, row_frames):
        yield piece.encode(), len(piece)
    yield b"\n", 0


def wav_bytes(tokenizer: Any, row_frames: RowFrames) -> Iterator[tuple[bytes, int]]:
    """A sound as WAV, piece by piece, each with its samples; the header first."""
    yield wav_header(SoundStream(tokenizer).spec.rate_hz), 0
    for _, _, samples in sounds(tokenizer, row_frames):
        yield pcm(samples), len(samples)


def wav_header(rate_hz: int) -> bytes:
    """The header of a WAV stream of 16-bit mono samples.

    Its length is not known yet, so the header has the largest that it can hold.
    """
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    length = struct.pack("<I", UNKNOWN)
    return b"RIFF" + length + b"WAVE" + form + b"data" + length


@dataclass(frozen=True)
class Streamed:
    """How a sample goes to standard output while it is drawn.

    Attributes:
        pieces: a function (tokenizer, frames) -> its bytes, piece by piece, each with how many
            letters or samples it has.
        is_sound: whether it can be played, and is nothing for a terminal.
    """

    pieces: Callable[[Any, RowFrames], Iterator[tuple[bytes, int]]]
    is_sound: bool


STREAMED = {  # by modality; all others go to files
    "text": Streamed(text_bytes, is_sound=False),
    "speech": Streamed(wav_bytes, is_sound=True),
}
