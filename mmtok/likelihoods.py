"""How likely a run finds what is real: held-out scores beside those of models that know less, and naming by likelihood."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from mmtok.ask import customary, n_units
from mmtok.data.subset import random_subset
from mmtok.questions import MAX_CLASSES, Setting
from mmtok.run import Run
from mmtok.segment import Document, Segment

N_SCORED = 300  # held-out documents per modality


def held_out_scores(run: Run) -> dict[str, dict[str, float]]:
    """Per modality: held-out nats in the customary unit, given what the task gives (a caption, a signal to read).

    Beside them an untrained decoder's, a unigram model's of the training codes (which is given nothing), and, where the task was
    trained without its condition too, the decoder's own without it: that one is fair beside the unigram.
    """
    fields, untrained, figures = run.recipe.fields, run.untrained(), {}
    documents: dict[str, list[Document]] = defaultdict(list)
    without: dict[str, list[Document]] = defaultdict(list)
    for task in (t for t in run.recipe.tasks if not t.first):
        m = fields[task.make[-1]]
        names = (*task.given, *task.make)
        rows = random_subset(run.examples("heldout", *names), N_SCORED, run.recipe.train.seed)
        columns = [run.tokenizers[fields[f]].encode_batch([e[f] for e in rows]) for f in names]
        predict = (False,) * len(task.given) + (True,) * len(task.make)
        documents[m] += [Document(segments, predict) for segments in zip(*columns)]
        if task.drop_given and not task.predict_given:
            n = len(task.given)
            without[m] += [Document((None,) * n + segments[n:], predict) for segments in zip(*columns)]
    for m, docs in documents.items():
        last = [d.segments[-1] for d in docs]
        total = sum(n_units(run, segment) for segment in last)
        if not total:
            continue
        per_unit = lambda lm, docs=docs: sum(x.nats[-1] for x in run.score_documents(docs, lm)) / total
        key = customary(m, 0.0, 1)[1].replace("/", "_per_")
        values = {"": per_unit(None), "_untrained": per_unit(untrained), "_unigram": unigram_nats(run, m, last) / total}
        if len(without[m]) == len(docs):
            values["_without_condition"] = per_unit(None, without[m])
        figures[m] = {key + suffix: customary(m, x, 1)[0] for suffix, x in values.items()}
    return figures


def unigram_nats(run: Run, modality: str, segments: Sequence[Segment]) -> float:
    """-log p of segments when every channel of every frame, and every end, is drawn on its own at its training frequency."""
    signature = run.vocabulary.signatures[modality]
    counts = [np.ones(k) for k in signature.levels]  # add-one smoothing
    n_ends = n_frames = 1
    made = {f for task in run.recipe.tasks for f in task.make}
    for file in run.token_files():
        for f in file.fields:
            if file.signatures[f].modality == modality and f in made:
                for i in np.flatnonzero(file.has(f)):
                    segment = file.segment(f, i)
                    n_frames, n_ends = n_frames + len(segment), n_ends + (not segment.truncated)
                    for c, column in enumerate(segment.codes.T):
                        counts[c] += np.bincount(column, minlength=len(counts[c]))
    log_p = [np.log(k / k.sum()) for k in counts]
    nats = -sum(float(log_p[c][column].sum()) for s in segments for c, column in enumerate(s.codes.T))
    if signature.frames is None:
        end = n_ends / (n_ends + n_frames)
        nats -= sum(len(s) * np.log(1 - end) + (not s.truncated) * np.log(end) for s in segments)
    return nats


def zero_shot(s: Setting) -> dict[str, float]:
    """Name held-out images by the caption under which they are likeliest."""
    names, images = s.examples("heldout")
    classes = sorted(set(s.examples("train")[0]))
    if len(classes) > MAX_CLASSES:
        return {}
    captions = s.tokenizer(s.given).encode_batch(classes)
    encoded = s.tokenizer(s.made).encode_batch(images)
    documents = [Document((caption, image), (False, True)) for image in encoded for caption in captions]
    nats = np.array([x.nats[-1] for x in s.run.score_documents(documents)]).reshape(len(images), len(classes))
    return {"accuracy": float(np.mean([classes[k] == name for k, name in zip(nats.argmin(1), names)])), "n": len(images)}
