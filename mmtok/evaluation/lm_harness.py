"""A run's text, asked in the three ways of language-model harnesses: log p of a continuation, of a
whole string, and what comes next.

Named and counted as in lm-evaluation-harness (Gao et al., zenodo 10256836), which
`scripts/lm_eval_run.py` connects; without need of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mmtok.core.batch import pack
from mmtok.core.grammar import to_stream
from mmtok.core.segment import Document, Segment
from mmtok.errors import UserError
from mmtok.io.tally import Tally
from mmtok.model.lm import evaluating
from mmtok.model.sampling import Sampling
from mmtok.run.run import Run

POSITIONS_PER_BATCH = 8_192
HEEDED = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
SHOWN = 30  # characters of a question in what is said of it
STATES_PER_SOFTMAX = 512  # a pretrained vocabulary has 128,000 ids


class Harness:
    """One run, asked for text that is given nothing but its own beginning. Log p is in nats.

    longest: the most codes that a question may have; what goes beyond is dropped from the front of
    a context, and it is said of how many
    that was. Default: as trained, `train.seq_len` less the marks. Raises UserError when the run was
    never trained on text alone.
    """

    def __init__(self, run: Run, longest: int | None = None):
        self.run, self.tokenizer = run, run.tokenizers.get("text")
        if self.tokenizer is None:
            raise UserError(f"{run.folder} knows no text, so there is nothing to ask it")
        prompt = run.prompt([], "text")
        self.head = prompt.segments[:-1]
        self.longest = longest or max(
            1, run.recipe.train.seq_len - len(to_stream(run.vocabulary, prompt))
        )

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(context, continuation) -> log p(continuation | context), and whether greedy decoding
        gives just this.

        The string is tokenised as a whole, and the continuation begins where its codes first differ
        from the context's alone.
        """
        with Tally("questions") as tally:
            rows = [self._pair(context, continuation, tally) for context, continuation in pairs]
        return [
            (float(log_p.sum()), bool(greedy.all())) for log_p, greedy in self._codes_log_p(rows)
        ]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """Log p of whole strings, their end not counted.

        A string beyond `longest` is scored in parts, of which none sees the others.
        """
        cut = lambda codes: [
            codes[a : a + self.longest] for a in range(0, len(codes), self.longest)
        ]
        parts = [[(np.zeros(0, int), part) for part in cut(self._codes(text))] for text in texts]
        with Tally("texts") as tally:
            for text, pieces in zip(texts, parts):
                tally.count()
                if len(pieces) > 1:
                    tally.add(
                        f"longer than {self.longest} codes and scored in parts of which none sees"
                        " the others",
                        repr(text[:SHOWN]),
                    )
        scored = iter(self._codes_log_p([part for text in parts for part in text]))
        return [sum(float(next(scored)[0].sum()) for _ in text) for text in parts]

    def generate_until(
        self, asked: Sequence[tuple[str, Mapping[str, Any]]], seed: int = 0
    ) -> list[str]:
        """(context, settings) -> what comes next, cut before the first of the strings `until`.

        Settings that are heeded: until, max_gen_toks (256), do_sample, temperature, top_k, top_p;
        without do_sample or a temperature it is greedy. Of others it is said that they are not.
        """
        with Tally("questions") as tally:
            known = [self._room_for(context, settings, tally) for context, settings in asked]
        wanted: dict[Sampling, list[int]] = {}
        for i, (_, settings) in enumerate(asked):
            wanted.setdefault(_sampling(settings), []).append(i)
        answers = [""] * len(asked)
        for sampling, rows in wanted.items():
            fronts = [known[i] for i in rows]
            prompts = [
                self.run.prompt([], "text", Segment("text", codes=codes[:, None]))
                for codes in fronts
            ]
            for i, codes, drawn in zip(
                rows, fronts, self.run.draw(prompts, sampling, seed, batch=32)
            ):
                answers[i] = _cut(
                    self._new_text(codes, drawn.segment.codes[:, 0]), asked[i][1].get("until") or ()
                )
        return answers

    # ---- codes

    def _codes(self, text: str) -> np.ndarray:
        return self.run.encode("text", [text])[0].codes[:, 0].astype(np.int64)

    def _room_for(self, context: str, settings: Mapping[str, Any], tally: Tally) -> np.ndarray:
        """The codes (n,) of a context that leave room for what is to be generated."""
        tally.count()
        for name in settings.keys() - HEEDED:
            tally.add(
                f"asked with a setting that is not heeded here, {name}", repr(context[-SHOWN:])
            )
        return self._end(
            self._codes(context),
            max(1, self.longest - _sampling(settings).max_frames),
            context,
            tally,
        )

    def _end(self, codes: np.ndarray, room: int, context: str, tally: Tally) -> np.ndarray:
        """The last codes (n,), n at most `room`."""
        if len(codes) > room:
            tally.add(
                f"cut to the end of its context: no more than {self.longest} codes have room",
                repr(context[-SHOWN:]),
            )
        return codes[max(0, len(codes) - room) :]

    def _pair(
        self, context: str, continuation: str, tally: Tally | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        tally = tally or Tally()
        tally.count()
        whole, alone = self._codes(context + continuation), self._codes(context)
        n = min(len(whole), len(alone))
        differ = np.flatnonzero(whole[:n] != alone[:n])
        at = int(differ[0]) if len(differ) else n
        room = max(0, self.longest - (len(whole) - at))
        return self._end(whole[:at], room, context, tally), whole[at:]

    def _new_text(self, known: np.ndarray, whole: np.ndarray) -> str:
        say = lambda codes: self.tokenizer.decode(Segment("text", codes=codes[:, None]))
        before, after = say(known), say(whole)
        return after[len(before) :] if after.startswith(before) else say(whole[len(known) :])

    def _codes_log_p(
        self, rows: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(known codes, codes) -> of each of the codes log p and whether it is the likeliest, both
        (n,). Rows of a length go together.
        """
        found: list[Any] = [None] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
        while order:
            n = max(1, POSITIONS_PER_BATCH // (sum(map(len, rows[order[0]])) + 8))
            batch, order = order[:n], order[n:]
            for i, result in zip(batch, self._batch_log_p([rows[i] for i in batch])):
                found[i] = result
        return found

    def _batch_log_p(
        self, rows: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        lm, v = self.run.lm, self.run.vocabulary
        predict = (False,) * len(self.head) + (True,)
        segments = [
            Segment("text", codes=np.concatenate(row)[:, None], truncated=True) for row in rows
        ]
        streams = [to_stream(v, Document((*self.head, segment), predict)) for segment in segments]
        at = [
            np.arange(len(s) - len(row[1]), len(s)) for s, row in zip(streams, rows)
        ]  # without an end mark the codes come last
        sizes = [len(x) for x in at]
        log_p, greedy = np.zeros(sum(sizes)), np.ones(sum(sizes), bool)
        with evaluating(lm):
            batch = pack(v, [[s] for s in streams]).to(lm.device)
            states = torch.cat(
                [h[torch.as_tensor(x - 1, device=lm.device)] for h, x in zip(lm.hidden(batch), at)]
            )
            target = torch.as_tensor(np.concatenate([row[1] for row in rows]), device=lm.device)
            for a in range(0, len(target), STATES_PER_SOFTMAX):
                part = slice(a, a + STATES_PER_SOFTMAX)
                logits = lm.id_logits(states[part], "text")
                log_p[part] = (
                    logits.log_softmax(-1)
                    .gather(1, target[part, None])[:, 0]
                    .cpu()
                    .double()
                    .numpy()
                )
                greedy[part] = (logits.argmax(-1) == target[part]).cpu().numpy()
        edges = np.cumsum(sizes)[:-1]
        return list(zip(np.split(log_p, edges), np.split(greedy, edges)))


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    temperature = float(settings.get("temperature") or 0.0)
    if settings.get("do_sample") and not temperature:
        temperature = 1.0
    if settings.get("do_sample") is False:
        temperature = 0.0
    top_k, top_p = int(settings.get("top_k") or 0), float(settings.get("top_p") or 1.0)
    return Sampling(temperature, top_k, top_p, max_frames=int(settings.get("max_gen_toks") or 256))


def _cut(text: str, until: str | Sequence[str]) -> str:
    """The text before the first place where any of the strings stands."""
    stops = [until] if isinstance(until, str) else until
    return text[
        : min([text.find(stop) for stop in stops if stop and stop in text], default=len(text))
    ]
