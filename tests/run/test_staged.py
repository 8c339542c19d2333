"""Stages: the batch of a step is that of a loader over the parts that the record says."""

from dataclasses import replace

import pytest
import torch

from mmtok.data import parts as parts_room
from mmtok.data import tokenise as tokenise_room
from mmtok.data.stages import Stage, read_stages, write_stages
from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.run.build import fit, tokenise
from mmtok.run.staged import StagedLoader
from mmtok.run.training import loader_of
from mmtok.sources import pictures, screen
from mmtok.train.distributed import SINGLE_PROCESS


class Given:
    """Token files that a test says are made."""

    def __init__(self, *made):
        self.made = list(made)
        self.complete = [False] * len(made)
        self.then = []

    @property
    def is_complete(self):
        return all(self.complete)

    def poll(self):
        pass

    def text(self, parts):
        return str(list(parts))

    def wait(self, is_met, line):
        while not is_met() and not self.is_complete:
            self.made = self.then.pop(0)


@pytest.fixture
def run(tiny_recipe, tmp_path, monkeypatch):
    """A run over pictures of 5 parts, all of them made."""
    for room in (pictures, screen, tokenise_room):
        monkeypatch.setattr(room, "CHUNK", 3)
    monkeypatch.setattr(parts_room, "CHUNKS", 1)
    recipe = replace(
        tiny_recipe,
        sources=tiny_recipe.sources[:1],
        tokenizers={m: tiny_recipe.tokenizers[m] for m in ("text", "image")},
        tasks=(Task(("caption",), ("image",), cond_dropout=0.2, infill=0.3),),
        model=replace(tiny_recipe.model, heads={}),
        sampling={},
    )
    made = fit(recipe, tmp_path / "run")
    tokenise(made)
    return made


def staged(run, stream, check=bool):
    return StagedLoader(run, SINGLE_PROCESS, stream, loader_of, check)


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(vars(a).values(), vars(b).values()) if torch.is_tensor(x)
    )


def test_the_first_stage_has_the_batches_of_a_loader_over_its_parts(run):
    write_stages(run.folder / "tokens", [Stage(0, (2,)), Stage(40, (5,))])
    loader = staged(run, Given(5))
    plain = loader_of(run, run.token_files((2,)))
    assert all(same(loader.batch(k), plain.batch(k)) for k in (0, 3, 39))


def test_a_later_stage_has_its_own_order_and_the_noise_of_the_true_step(run):
    write_stages(run.folder / "tokens", [Stage(0, (2,)), Stage(40, (5,))])
    later = loader_of(run, run.token_files((5,))).as_stage(1, 40)
    resumed = staged(run, Given(5))
    assert same(resumed.batch(47), later.batch(47))
    all_along = staged(run, Given(5))
    first = loader_of(run, run.token_files((2,)))
    expected = {39: first, 40: later, 47: later}
    assert all(same(all_along.batch(k), loader.batch(k)) for k, loader in expected.items())
    plain = loader_of(run, run.token_files())
    assert not same(plain.batch(47), later.batch(47)) and later.items(40) != plain.items(0)
    read = {item.row for k in range(40, 60) for row in later.items(k) for item in row}
    assert read == set(range(len(plain.files[0])))
    # the noise: documents of equal rows at other steps differ
    item = later.items(40)[0][0]
    assert len({str(later._document(item, k)) for k in range(40, 60)}) > 1


def test_a_stage_begins_with_a_round_once_there_are_parts_enough_and_is_recorded_first(run):
    stream = Given(2)
    checked = []
    loader = staged(run, stream, lambda files: checked.append(len(files()[0])))
    tokens = run.folder / "tokens"
    loader.batch(0)
    assert read_stages(tokens, 1) == [Stage(0, (2,))]
    stream.made = [3]
    steps = iter(range(1, 1000))
    begun = next(k for k in steps if loader.batch(k) and len(read_stages(tokens, 1)) == 2)
    assert loader_of(run, run.token_files((2,))).begins_round(begun)
    stream.made = [4]  # a third more: too few for another stage
    for _ in range(100):
        loader.batch(next(steps))
    assert read_stages(tokens, 1) == [Stage(0, (2,)), Stage(begun, (3,))]
    stream.made = [5]
    stream.complete = [True]
    for _ in range(100):
        loader.batch(next(steps))
    assert [stage.parts for stage in read_stages(tokens, 1)] == [(2,), (3,), (5,)]
    assert checked == [6, len(run.token_files()[0])]


def test_what_is_all_there_makes_one_stage_whose_batches_are_those_of_the_run_without(run):
    stream = Given(5)
    stream.complete = [True]
    loader = staged(run, stream)
    plain = loader_of(run, run.token_files())
    assert all(same(loader.batch(k), plain.batch(k)) for k in range(80))
    assert read_stages(run.folder / "tokens", 1) == [Stage(0, (5,))]


def test_training_waits_for_the_first_part(run):
    stream = Given(0)
    stream.then = [[0], [1], [2]]
    loader = staged(run, stream)
    loader.batch(0)
    assert loader.stages == [Stage(0, (1,))]


def test_parts_that_the_record_says_and_that_will_never_come_are_refused(run):
    write_stages(run.folder / "tokens", [Stage(0, (7,))])
    stream = Given(5)
    stream.complete = [True]
    with pytest.raises(UserError, match="train into another --out"):
        staged(run, stream).batch(0)


def test_a_document_that_is_longer_than_a_row_is_refused_before_the_stage_is_recorded(run):
    run.recipe = replace(run.recipe, train=replace(run.recipe.train, seq_len=20))
    with pytest.raises(UserError, match=r"raise --train\.seq_len"):
        staged(run, Given(2)).batch(0)
    assert read_stages(run.folder / "tokens", 1) == []
