"""A run's text model behind the three requests of language-model harnesses.

These are the log-likelihood of a continuation, that of a whole string, and generation. Names and
conventions are those of lm-evaluation-harness (Gao et al., zenodo 10256836), which
`scripts/lm_eval_run.py` connects. It need not be installed for this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment
from mmtok.errors import UserError
from mmtok.heads.sampling import Sampling
from mmtok.io.tally import Tally
from mmtok.model.lm import evaluating
from mmtok.run.run import Run

POSITIONS_PER_BATCH = 8_192
GENERATION_BATCH = 32
STATES_PER_SOFTMAX = 512  # a pretrained vocabulary has 128,000 ids
SUPPORTED = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
MAX_NEW_CODES = 256  # lm-evaluation-harness's own default
SHOWN_CHARS = 30  # of a request's text in a warning


@dataclass(frozen=True, eq=False)
class _Codes:
    """A scoring request in codes (n,): those that are given, and those whose log p is asked for."""

    context: np.ndarray
    continuation: np.ndarray

    def __len__(self) -> int:
        return len(self.context) + len(self.continuation)

    @property
    def joined(self) -> np.ndarray:
        return np.concatenate((self.context, self.continuation))


class Harness:
    """A run's text model as a harness asks it. All log-likelihoods are in nats.

    Args:
        run: A run that was trained on text alone, among other tasks.
        max_length: Codes that a request may have. A longer context loses its beginning, which is
            said with the count. Default: as trained, `train.seq_len` less the marks.

    Raises:
        UserError: The run has no text, or was never trained on text alone.
    """

    def __init__(self, run: Run, max_length: int | None = None):
        self.run = run
        if "text" not in run.tokenizers:
            raise UserError(f"{run.folder} knows no text, so there is nothing to ask it")
        self.tokenizer = run.tokenizers["text"]
        prompt = run.prompt([], "text")
        self.head = prompt.segments[:-1]
        n_marks = len(to_stream(run.vocabulary, prompt))
        self.max_length = max_length or max(1, run.recipe.train.seq_len - n_marks)

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Log p(continuation | context), and whether greedy decoding gives this continuation.

        Context and continuation are tokenised as one string. The continuation begins where its
        codes first differ from those of the context alone.

        Args:
            requests: (context, continuation) each.
        """
        with Tally("requests") as tally:
            rows = [self._split(context, continuation, tally) for context, continuation in requests]
        scored = self._log_p(rows)
        return [(float(log_p.sum()), bool(greedy.all())) for log_p, greedy in scored]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """Log p of whole strings, without their end mark.

        A string longer than `max_length` is scored in parts, each without the others as context.
        """
        no_context = np.zeros(0, int)
        parts_of = []
        with Tally("texts") as tally:
            for text in texts:
                tally.count()
                codes = self._encode(text)
                starts = range(0, len(codes), self.max_length)
                parts_of.append(
                    [_Codes(no_context, codes[start : start + self.max_length]) for start in starts]
                )
                if len(starts) > 1:
                    tally.add(
                        f"longer than {self.max_length} codes and scored in parts, each without"
                        " the others as context",
                        repr(text[:SHOWN_CHARS]),
                    )
        scored = iter(self._log_p([part for parts in parts_of for part in parts]))
        return [sum(float(next(scored)[0].sum()) for _ in parts) for parts in parts_of]

    def generate_until(
        self, requests: Sequence[tuple[str, Mapping[str, Any]]], seed: int = 0
    ) -> list[str]:
        """What comes after a context, cut before the first of the strings `until`.

        Args:
            requests: (context, settings) each. Settings: until, max_gen_toks (256), do_sample,
                temperature, top_k, top_p. Without do_sample or a temperature decoding is greedy.
                Others are ignored, with a warning.
            seed: Of the draws.
        """
        with Tally("requests") as tally:
            contexts = [self._generation_context(*request, tally) for request in requests]
        same_sampling: dict[Sampling, list[int]] = {}
        for i, (_, settings) in enumerate(requests):
            same_sampling.setdefault(_sampling(settings), []).append(i)
        answers = [""] * len(requests)
        for sampling, rows in same_sampling.items():
            prompts = [self.run.prompt([], "text", _text_segment(contexts[i])) for i in rows]
            samples = self.run.draw(prompts, sampling, seed, batch=GENERATION_BATCH)
            for i, sample in zip(rows, samples, strict=True):
                text = self._new_text(contexts[i], sample.segment.values[:, 0])
                answers[i] = _cut(text, requests[i][1].get("until") or ())
        return answers

    # ---- text <-> codes

    def _encode(self, text: str) -> np.ndarray:
        """The codes (n,) of a text."""
        return self.run.encode("text", [text])[0].values[:, 0].astype(np.int64)

    def _decode(self, codes: np.ndarray) -> str:
        return self.tokenizer.decode(_text_segment(codes))

    def _generation_context(
        self, context: str, settings: Mapping[str, Any], tally: Tally
    ) -> np.ndarray:
        """The codes (n,) of a context that leave room for what is to be generated."""
        tally.count()
        for name in settings.keys() - SUPPORTED:
            tally.add(
                f"asked with a setting that is not supported, {name}", repr(context[-SHOWN_CHARS:])
            )
        room = max(1, self.max_length - _sampling(settings).max_frames)
        return self._last_codes(self._encode(context), room, context, tally)

    def _last_codes(self, codes: np.ndarray, n_max: int, context: str, tally: Tally) -> np.ndarray:
        """The last `n_max` codes of a context, or all; tallied where it is cut."""
        if len(codes) <= n_max:
            return codes
        tally.add(
            f"cut to the end of its context: no more than {self.max_length} codes have room",
            repr(context[-SHOWN_CHARS:]),
        )
        return codes[len(codes) - n_max :]

    def _split(self, context: str, continuation: str, tally: Tally) -> _Codes:
        """A request's codes, split where they first differ from those of the context alone."""
        tally.count()
        codes = self._encode(context + continuation)
        context_codes = self._encode(context)
        n = min(len(codes), len(context_codes))
        differing = np.flatnonzero(codes[:n] != context_codes[:n])
        start = int(np.append(differing, n)[0])
        room = max(0, self.max_length - (len(codes) - start))
        return _Codes(self._last_codes(codes[:start], room, context, tally), codes[start:])

    def _new_text(self, context: np.ndarray, codes: np.ndarray) -> str:
        """The text that codes (n,), which begin with the context's, add to it."""
        before = self._decode(context)
        text = self._decode(codes)
        if text.startswith(before):
            return text[len(before) :]
        return self._decode(codes[len(context) :])

    # ---- log p of codes

    def _log_p(self, rows: Sequence[_Codes]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each code of the continuations: its log p, and whether it is the likeliest; both (n,).

        Rows of similar length share a batch.
        """
        results: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        while order:
            n = max(1, POSITIONS_PER_BATCH // (len(rows[order[0]]) + 8))
            batch = order[:n]
            order = order[n:]
            results.update(zip(batch, self._batch_log_p([rows[i] for i in batch]), strict=True))
        return [results[i] for i in range(len(rows))]

    def _batch_log_p(self, rows: Sequence[_Codes]) -> list[tuple[np.ndarray, np.ndarray]]:
        """`_log_p` of one batch."""
        v = self.run.vocabulary
        predict = (False,) * len(self.head) + (True,)
        segments = [_text_segment(row.joined, truncated=True) for row in rows]
        streams = [to_stream(v, Document((*self.head, segment), predict)) for segment in segments]
        # a truncated segment has no end mark, so the continuation is the end of the stream
        positions = [
            np.arange(len(stream) - len(row.continuation), len(stream))
            for stream, row in zip(streams, rows, strict=True)
        ]
        with evaluating(self.run.lm):
            log_p, greedy = self._target_log_p(streams, positions, rows)
        edges = np.cumsum([len(x) for x in positions])[:-1]
        return list(zip(np.split(log_p, edges), np.split(greedy, edges), strict=True))

    def _target_log_p(
        self, streams: Sequence[Any], positions: Sequence[np.ndarray], rows: Sequence[_Codes]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log p and "is the likeliest" of all rows' continuations, one after the other: (N,) each.

        A code's logits are those of the state before it.
        """
        lm = self.run.lm
        batch = pack(self.run.vocabulary, [[stream] for stream in streams]).to(lm.device)
        hidden = lm.hidden(batch)
        states = torch.cat(
            [
                h[torch.as_tensor(x - 1, device=lm.device)]
                for h, x in zip(hidden, positions, strict=True)
            ]
        )
        targets = np.concatenate([row.continuation for row in rows])
        target = torch.as_tensor(targets, device=lm.device)
        log_p = np.zeros(len(target))
        greedy = np.ones(len(target), bool)
        for start in range(0, len(target), STATES_PER_SOFTMAX):
            part = slice(start, start + STATES_PER_SOFTMAX)
            logits = lm.id_logits(states[part], "text")
            log_p[part] = _numpy(logits.log_softmax(-1).gather(1, target[part, None])[:, 0])
            greedy[part] = (logits.argmax(-1) == target[part]).cpu().numpy()
        return log_p, greedy


def _numpy(values: Tensor) -> np.ndarray:
    """Values in float64 on the CPU."""
    return values.cpu().double().numpy()


def _text_segment(codes: np.ndarray, truncated: bool = False) -> Segment:
    return Segment("text", codes=codes[:, None], truncated=truncated)


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    """A request's settings as a `Sampling`; temperature 0 is greedy."""
    temperature = float(settings.get("temperature") or 0.0)
    if settings.get("do_sample") and not temperature:
        temperature = 1.0
    if settings.get("do_sample") is False:
        temperature = 0.0
    return Sampling(
        temperature,
        top_k=int(settings.get("top_k") or 0),
        top_p=float(settings.get("top_p") or 1.0),
        max_frames=int(settings.get("max_gen_toks") or MAX_NEW_CODES),
    )


def _cut(text: str, until: str | Sequence[str]) -> str:
    """The text before the first occurrence of any of the strings."""
    stops = [until] if isinstance(until, str) else until
    found = [text.find(stop) for stop in stops if stop and stop in text]
    return text[: min(found, default=len(text))]
