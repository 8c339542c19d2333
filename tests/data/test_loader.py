"""The loader: the batch of step k is a pure function of (seed, k); every example comes once per
epoch; noise hides inputs only.
"""

import itertools
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from mmtok.core.batch import unpack
from mmtok.core.grammar import to_document
from mmtok.core.segment import Segment
from mmtok.data.loader import Loader, Mixture
from mmtok.data.tasks import InputMasking, Task
from mmtok.data.tokens import read_tokens, write_tokens
from mmtok.errors import UserError

TASKS = (
    Task(("caption",), ("image",), weight=0.2, cond_dropout=0.25),
    Task(("caption",), ("speech",), weight=0.5, infill=0.5),
    Task(("speech",), ("caption",), weight=0.1),
    Task((), ("jets",), weight=0.2),
)
CORRUPT = {
    "speech": InputMasking(
        drop_prob=0.1, span_prob=0.3, span_length=2, n_freq_masks=1, freq_mask_width=4
    ),
    "image": InputMasking(drop_prob=0.3),
}


@pytest.fixture
def files(tmp_path, vocabulary, segment, rng):
    """Two sources: 60 of caption and image; 90 of caption and speech, of which 30 have jets too."""

    def signature(**kinds):
        return {f: vocabulary.signatures[m] for f, m in kinds.items()}

    pairs = [
        {"caption": segment("text", rng.integers(1, 4)), "image": segment("image", 9)}
        for _ in range(60)
    ]
    clips = [
        {
            "caption": segment("text", rng.integers(1, 4)),
            "speech": segment("speech", rng.integers(1, 14)),
        }
        for _ in range(90)
    ]
    for row in clips[::3]:
        row["jets"] = segment("jets", rng.integers(1, 9))
    write_tokens(tmp_path / "pairs.parquet", signature(caption="text", image="image"), pairs)
    write_tokens(
        tmp_path / "clips.parquet", signature(caption="text", speech="speech", jets="jets"), clips
    )
    return [read_tokens(tmp_path / "pairs.parquet"), read_tokens(tmp_path / "clips.parquet")]


@pytest.fixture
def loader(vocabulary, files):
    """loader(tasks=..., ...) -> a fresh Loader over the toy files."""

    def make(tasks=TASKS, corrupt=CORRUPT, rows=4, seq_len=48, seed=0):
        return Loader(files, tasks, vocabulary, corrupt, rows, seq_len, seed)

    return make


def test_only_frames_that_a_row_asks_for_carry_loss(tmp_path, vocabulary, segment, rng):
    """A mask of the token file comes through to the batch, cut where the task cuts."""
    rows = [
        {"caption": replace(segment("text", n), predict=rng.random(n) < 0.4)}
        for n in rng.integers(1, 9, 40)
    ]
    write_tokens(tmp_path / "t.parquet", {"caption": vocabulary.signatures["text"]}, rows)
    file = read_tokens(tmp_path / "t.parquet")
    for most, n_asked in ((0, None), (3, 3)):
        task = Task((), ("caption",), max_target_frames=most)
        loader = Loader([file], (task,), vocabulary, {}, 2, 48, 0)
        for row in loader.items(0):
            for item in row:
                stream, _ = loader._document(item, 0)
                mask = rows[item.row]["caption"].predict[:n_asked]
                assert np.array_equal(stream.predict[2 : 2 + len(mask)], mask)


def tensors(batch):
    """Every tensor of a batch by name."""
    named = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "index"}
    inner = {f"{k}.{m}": x for k, v in named.items() if isinstance(v, dict) for m, x in v.items()}
    return {k: v for k, v in named.items() if isinstance(v, torch.Tensor)} | inner


def equal(a, b):
    a = tensors(a)
    b = tensors(b)
    return a.keys() == b.keys() and all(torch.equal(x, b[k]) for k, x in a.items())


def documents(loader, steps, **settings):
    """All documents of these steps, read back from the batches."""
    batches = [loader.batch(step) for step in steps]
    return [
        to_document(loader.vocabulary, s)
        for b in batches
        for row in unpack(loader.vocabulary, b)
        for s in row
    ]


# ---- a function of (seed, step)


def test_batches_do_not_depend_on_the_order_in_which_they_are_asked_for(loader):
    one = loader()
    other = loader()
    forwards = [one.batch(k) for k in range(80)]
    assert len(one._first_step) > 2, "the test should cross rounds"
    for k in np.random.default_rng(0).permutation(80):
        assert equal(other.batch(int(k)), forwards[k])
    assert equal(loader().batch(79), forwards[79])


def test_documents_that_are_kept_are_those_that_would_be_written_anew(loader, monkeypatch):
    kept = loader()
    monkeypatch.setattr("mmtok.data.loader.SHORT", 10**6)
    first = [kept.batch(step) for step in range(6)]
    again = [kept.batch(step) for step in range(6)]
    monkeypatch.setattr("mmtok.data.loader.MOST_KEPT", 0)
    anew = loader()
    for step in range(6):
        assert equal(first[step], anew.batch(step)) and equal(again[step], first[step])
    assert not anew._kept
    # only what is the same at every step: jets, of which nothing is hidden, infilled or left out
    assert {kept.tasks[item.task].targets for item in kept._kept} == {("jets",)}


def test_another_seed_is_another_order(loader):
    assert not equal(loader().batch(0), loader(seed=1).batch(0)) and equal(
        loader(seed=1).batch(3), loader(seed=1).batch(3)
    )


@pytest.mark.parametrize("world", [2, 3, 7])
def test_the_rows_of_all_processes_are_the_batch(loader, world):
    whole = loader()
    ranks = [loader() for _ in range(world)]
    for step in (0, 5, 40):
        batch = whole.batch(step)
        shares = [r.batch(step, rank, world) for rank, r in enumerate(ranks)]
        assert (
            sum(len(s.ids) for s in shares) == len(batch.ids)
            and max(len(s.ids) for s in shares) - min(len(s.ids) for s in shares) <= 1
        )
        for rank, share in enumerate(shares):
            for name in (
                "ids",
                "inputs",
                "document",
                "position",
                "predict",
                "may_end",
                "segment",
                "modality",
            ):
                assert torch.equal(getattr(share, name), getattr(batch, name)[rank::world])
        for m, x in batch.channels.items():
            rows = (batch.ids == whole.vocabulary.span(m)[0]).nonzero()[:, 0]
            for rank, share in enumerate(shares):
                mine = share.channels.get(m, x[:0])
                assert torch.equal(mine, x[rows % world == rank])
                assert torch.equal(
                    share.channel_mask.get(m, mine > 9), batch.channel_mask[m][rows % world == rank]
                )


def test_rows_are_full_enough_and_their_number_is_held(loader):
    one = loader()
    batches = [one.batch(k) for k in range(60)]
    assert all(4 <= len(b.ids) <= 5 for b in batches)
    assert np.mean([float((b.document >= 0).float().mean()) for b in batches]) > 0.9


# ---- what is read how often


def test_tasks_have_their_share_of_the_positions(loader):
    one = loader(corrupt={})
    count = Counter()
    for step in range(300):
        for row in one.items(step):
            for item in row:
                count[item.task] += len(one._document(item, step)[0])
    total = sum(count.values())
    for t, task in enumerate(TASKS):
        assert count[t] / total == pytest.approx(task.weight, abs=0.03), task


def test_every_example_comes_once_per_epoch(loader):
    one = loader()
    seen = {t: [] for t in range(len(TASKS))}
    n_rounds = 6
    for round in range(n_rounds):
        items = [item for row in one._plan(round) for item in row]
        for t in seen:
            seen[t].append(Counter((i.file, i.row) for i in items if i.task == t))
    for t, rounds in seen.items():
        total = sum(rounds, Counter())
        assert sum(total.values()) == n_rounds * one.per_round[t]
        assert (
            max(total.values()) - min(total[tuple(map(int, at))] for at in one.pools[t].rows) <= 1
        ), "no example twice before all came once"


def test_rows_without_a_tasks_fields_are_not_in_its_pool(loader, files):
    pools = loader().pools
    assert [len(pool.rows) for pool in pools] == [60, 90, 90, 30]
    assert all(files[f].has("jets")[row] for f, row in pools[3].rows)


def test_steps_of_a_round_share_its_rows_out(loader):
    one = loader()
    rows = [row for step in range(40) for row in one.items(step)]
    n_first = one._first_step[1]
    first = list(itertools.chain(*(one.items(step) for step in range(n_first))))
    assert len(first) == len(one._plan(0)) and Counter(map(tuple, first)) == Counter(
        map(tuple, one._plan(0))
    )
    assert all(sum(1 for _ in row) > 0 for row in rows)


# ---- conditions, infilling, corruption


def test_conditions_are_left_out_as_often_as_the_task_says(loader):
    found = [d for d in documents(loader(tasks=TASKS[:1]), range(60))]
    share = np.mean([d.segments[0] is None for d in found])
    assert len(found) > 500 and share == pytest.approx(0.25, abs=0.05)
    assert all(d.predict == (False, True) and d.segments[1].modality == "image" for d in found)


def test_predicted_conditions_are_not_when_they_are_left_out(loader):
    found = documents(
        loader(tasks=(replace(TASKS[0], loss_on_inputs=True, cond_dropout=0.5),)), range(10)
    )
    assert {d.predict for d in found} == {(True, True), (False, True)}
    assert all((d.segments[0] is None) == (not d.predict[0]) for d in found)


def test_infilling_comes_as_often_as_the_task_says_and_anywhere(loader):
    found = [d.target for d in documents(loader(tasks=TASKS[1:2]), range(60))]
    assert np.mean([bool(s.infill_spans) for s in found]) == pytest.approx(0.5, abs=0.06)
    spans = [(a / len(s), b / len(s)) for s in found for a, b in s.infill_spans]
    assert (
        min(a for a, _ in spans) == 0
        and max(b for _, b in spans) == 1
        and all(len(s.infill_spans) <= 1 for s in found)
    )


def test_corruption_hides_inputs_only_and_leaves_targets(loader, vocabulary):
    clean = loader(corrupt={})
    noisy = loader()
    hidden = set()
    for step in range(12):
        a = clean.batch(step)
        b = noisy.batch(step)
        for name, x in tensors(a).items():
            if name != "inputs" and not name.startswith("channel_mask"):
                assert torch.equal(x, tensors(b)[name]), name
        assert torch.equal(a.inputs, a.ids) and not any(x.any() for x in a.channel_mask.values())
        changed = b.inputs != b.ids
        assert changed.any() and (b.inputs[changed] == vocabulary.mask).all()
        hidden |= {list(vocabulary.signatures)[k] for k in b.modality[changed].tolist()}
        frames = {
            vocabulary.span(m)[i]
            for m in ("speech", "image")
            for i in range(len(vocabulary.span(m)))
        }
        assert {*b.ids[changed].tolist()} <= frames, "marks are never hidden"
        assert (
            b.channel_mask["speech"].any() and not b.channel_mask.get("jets", torch.zeros(1)).any()
        )
    assert hidden == {"speech", "image"}


def test_a_task_may_hide_its_targets_in_its_own_way(loader):
    """Inputs are hidden as the recipe says, targets as the task says; what is predicted stays."""
    task = next(task for task in TASKS if task.targets == ("speech",) and task.inputs)
    all_hidden = replace(task, target_masking=InputMasking(drop_prob=1.0), infill=0.0)
    clean = loader(tasks=(replace(task, infill=0.0),), corrupt={})
    own = loader(tasks=(all_hidden,), corrupt={})
    for step in range(3):
        a = clean.batch(step)
        b = own.batch(step)
        assert torch.equal(a.ids, b.ids) and torch.equal(a.predict, b.predict)
        is_speech = b.ids == own.vocabulary.span("speech")[0]
        assert is_speech.any()
        assert torch.equal(b.inputs != b.ids, is_speech)


def test_corruption_has_its_rates(loader):
    one = loader(tasks=TASKS[:1])
    batches = [one.batch(k) for k in range(40)]
    of_image = [(b.modality == 2) & (b.ids >= one.vocabulary.span("image")[0]) for b in batches]
    hidden = sum(int(((b.inputs != b.ids) & w).sum()) for b, w in zip(batches, of_image)) / sum(
        int(w.sum()) for w in of_image
    )
    assert hidden == pytest.approx(0.3, abs=0.02)


def test_bands_hide_neighbouring_channels_of_whole_documents_and_may_be_wider_than_all(
    loader,
):
    one = loader(
        tasks=TASKS[2:3], corrupt={"speech": InputMasking(n_freq_masks=1, freq_mask_width=99)}
    )
    widths = set()
    for step in range(5):
        batch = one.batch(step)
        owner = (batch.document + 1000 * torch.arange(len(batch.ids))[:, None])[
            batch.ids == one.vocabulary.span("speech")[0]
        ]
        for d in owner.unique():
            mask = batch.channel_mask["speech"][owner == d]
            assert (mask == mask[0]).all() and int(mask[0].int().diff().abs().sum()) <= 2
            widths.add(int(mask[0].sum()))
    assert widths == set(range(7))


def test_bands_hide_latents_as_they_hide_codes(tmp_path, vocabulary, segment):
    write_tokens(
        tmp_path / "t.parquet",
        {"voice": vocabulary.signatures["voice"]},
        [{"voice": segment("voice", 5)} for _ in range(20)],
    )
    one = Loader(
        [read_tokens(tmp_path / "t.parquet")],
        [Task((), ("voice",))],
        vocabulary,
        {"voice": InputMasking(n_freq_masks=1, freq_mask_width=2)},
        4,
        48,
        0,
    )
    batch = one.batch(0)
    mask = batch.channel_mask["voice"]
    assert mask.shape == batch.latents["voice"].shape and set(mask.sum(1).tolist()) == {0, 1, 2}


def test_noise_differs_between_steps_for_the_same_document(loader):
    one = loader(tasks=TASKS[:1])
    seen: dict = {}
    for step in range(60):
        batch = one.batch(step)
        for r, row in enumerate(one.items(step)):
            for d, item in enumerate(row):
                where = batch.document[r] == d
                seen.setdefault(item, set()).add(
                    tuple((batch.inputs[r][where] != batch.ids[r][where]).tolist())
                )
    assert np.mean([len(patterns) > 3 for patterns in seen.values()]) > 0.9


# ---- what is refused


def test_a_document_too_long_is_refused_naming_the_field_and_what_to_raise(loader):
    longest = max(int(pool.lengths.max()) for pool in loader().pools)
    with pytest.raises(UserError) as error:
        loader(seq_len=16)
    said = str(error.value)
    for part in (
        "caption -> speech",
        "'speech' of 13 frames",
        "--train.seq_len",
        f"at least {longest}",
    ):
        assert part in said
    assert "\n" not in said


def test_a_task_without_examples_is_refused(loader):
    with pytest.raises(UserError, match="no example has all fields of task image -> speech"):
        loader(tasks=(Task(("image",), ("speech",)),))


def test_infilling_an_ordered_set_is_refused_before_training(loader):
    with pytest.raises(UserError, match="infilling is not possible in jets"):
        loader(tasks=(Task(("caption",), ("jets",), infill=0.1),))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(targets=()),
        dict(weight=0.0),
        dict(weight=float("nan")),
        dict(cond_dropout=1.5),
        dict(infill=-0.1),
        dict(inputs="caption"),
    ],
)
def test_nonsense_tasks_are_refused(wrong):
    with pytest.raises(UserError, match=list(wrong)[0]):
        Task(**({"inputs": ("caption",), "targets": ("image",)} | wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(drop_prob=2.0),
        dict(span_prob=-1.0),
        dict(span_length=0),
        dict(apply_prob=1.1),
        dict(n_freq_masks=-1),
        dict(freq_mask_width=-2),
    ],
)
def test_nonsense_corruption_is_refused(wrong):
    with pytest.raises(UserError, match=f"^InputMasking: {next(iter(wrong))} is [^()]*$"):
        InputMasking(**wrong)


def test_a_truncated_segment_is_not_infilled(tmp_path, vocabulary, segment):
    rows = [{"speech": segment("speech", 5, truncated=True)} for _ in range(4)]
    write_tokens(tmp_path / "t.parquet", {"speech": vocabulary.signatures["speech"]}, rows)
    one = Loader(
        [read_tokens(tmp_path / "t.parquet")],
        [Task((), ("speech",), infill=1.0)],
        vocabulary,
        {},
        2,
        24,
        0,
    )
    assert all(
        s.truncated and not s.infill_spans for d in documents(one, range(3)) for s in d.segments
    )
    assert isinstance(rows[0]["speech"], Segment)


def test_first_reads_no_further_and_tells_no_end_there(loader, vocabulary):
    one = loader(tasks=(Task((), ("speech",), max_target_frames=5),), corrupt={})
    streams = [
        stream for step in range(4) for row in unpack(vocabulary, one.batch(step)) for stream in row
    ]
    segments = [to_document(vocabulary, stream).segments[0] for stream in streams]
    assert {len(s) for s in segments} <= {1, 2, 3, 4, 5}
    assert any(len(s) < 5 for s in segments) and any(len(s) == 5 for s in segments)
    assert all(
        s.truncated == (len(s) == 5) for s in segments
    )  # a segment of exactly five too: else p(end) there would be learned as 1
    assert all(
        len(stream) == 2 + len(s) + (not s.truncated) for stream, s in zip(streams, segments)
    )
    with pytest.raises(UserError, match="max_target_frames is -1"):
        Task((), ("speech",), max_target_frames=-1)


# ---- mixtures

CAPTIONS = Task((), ("caption",))


def position_shares(one, n_steps):
    """The share of each file among the positions of the documents of some steps."""
    n = np.zeros(len(one.files))
    for step in range(n_steps):
        for row in one.items(step):
            for item in row:
                n[item.file] += len(one.files[item.file].segment("caption", item.row)) + 3
    return n / n.sum()


@pytest.mark.parametrize(
    "mixture", [Mixture((2, 1)), Mixture((0.25, 1)), Mixture((1, 1), 4.0), Mixture((3, 1), 1e9)]
)
def test_a_mixture_reads_each_file_by_its_weight_and_size(files, vocabulary, mixture):
    one = Loader(files, (CAPTIONS,), vocabulary, {}, 4, 48, 0, mixture)
    sizes = np.array([(file.lengths("caption") + 3).sum() for file in files])
    expected = np.array(mixture.weights) * sizes ** (1 / mixture.temperature)
    np.testing.assert_allclose(position_shares(one, 96), expected / expected.sum(), rtol=0.02)


def test_a_mixture_of_equals_is_none(files, vocabulary):
    plain = Loader(files, (CAPTIONS,), vocabulary, {}, 4, 48, 0)
    mixed = Loader(files, (CAPTIONS,), vocabulary, {}, 4, 48, 0, Mixture((1.0, 1.0)))
    assert plain.items(5) == mixed.items(5)


def test_a_weight_of_0_leaves_a_file_out(files, vocabulary):
    one = Loader(files, (CAPTIONS,), vocabulary, {}, 4, 48, 0, Mixture((0, 1)))
    assert {item.file for step in range(20) for row in one.items(step) for item in row} == {1}
    with pytest.raises(UserError, match="caption: all sources that have its fields have"):
        Loader(files, (CAPTIONS,), vocabulary, {}, 4, 48, 0, Mixture((0, 0)))


def test_a_mixture_s_epochs_read_every_example_once(files, vocabulary):
    one = Loader(files, (CAPTIONS,), vocabulary, {}, 4, 48, 0, Mixture((5, 1)))
    first = [i for start in range(0, 60, 7) for i in one._examples(0, start, min(7, 60 - start))]
    assert sorted(first) == list(range(60))
