"""An opened run: the orders it was trained on, the prompts it makes, and its draws."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmtok.core.segment import Segment
from mmtok.data.tasks import Task
from mmtok.errors import UserError
from mmtok.run.run import Run, open_run


def test_orders_that_were_trained(tiny_run):
    run = open_run(tiny_run)
    assert str(run.task_for(["text"], "image")) == "caption -> image"
    assert str(run.task_for([], "image")) == "caption -> image", (
        "without its condition, as cond_dropout allows"
    )
    for given, to in (
        (["image"], "speech"),
        ([], "speech"),
        (["text", "text"], "image"),
        (["text"], "text"),
    ):
        with pytest.raises(UserError) as error:
            run.task_for(given, to)
        for order in (
            "text -> image",
            "image -> text",
            "text -> jets",
            "speech -> text",
            "nothing -> image",
            "nothing -> jets",
        ):
            assert order in str(error.value)
        assert f"never trained on {' + '.join(given) or 'nothing'} -> {to}" in str(error.value)


def test_a_task_that_makes_several_fields_was_trained_on_each_given_those_before(
    tiny_run, tiny_recipe
):
    run = Run(
        tiny_run,
        replace(
            tiny_recipe,
            tasks=(
                Task((), ("caption", "image")),
                Task(("caption",), ("image", "jets"), cond_dropout=0.1),
            ),
        ),
    )

    def asked(given, to):
        return str(run.task_for(given, to))

    assert asked([], "text") == asked(["text"], "image") == "nothing -> caption + image"
    assert asked(["text", "image"], "jets") == asked([], "image") == "caption -> image + jets"
    with pytest.raises(
        UserError, match="nothing -> text, text -> image, text [+] image -> jets, nothing -> image$"
    ):
        run.task_for(["text"], "jets")


def test_prompts_carry_the_null_mark_where_the_condition_is_left_out(tiny_run):
    run = open_run(tiny_run)
    assert run.prompt([], "jets").segments[0] is None and run.prompt([], "jets").open_end
    text = run.tokenizers["text"].encode("dark")
    assert (
        run.prompt([text], "image").segments[0] is text
        and len(run.prompt([text], "image").segments[1]) == 0
    )


def test_the_untrained_decoder_is_the_recipes_whatever_was_drawn_before(tiny_run):
    run = open_run(tiny_run)
    torch.manual_seed(5)
    a = run.untrained().state_dict()
    torch.manual_seed(6)
    assert all(torch.equal(x, a[k]) for k, x in run.untrained().state_dict().items())


def test_nothing_to_draw(tiny_run):
    run = open_run(tiny_run)
    assert run.draw([], run.sampling("image"), 0) == []


def test_draws_do_not_depend_on_the_batches_other_prompts_only_on_the_seed(tiny_run):
    run = open_run(tiny_run)
    prompts = [run.prompt([run.tokenizers["text"].encode("dark")], "image")] * 4

    def codes(seed):
        return np.stack([d.segment.codes for d in run.draw(prompts, run.sampling("image"), seed)])

    assert np.array_equal(codes(1), codes(1)) and not np.array_equal(codes(1), codes(2))
    assert isinstance(run.draw(prompts, run.sampling("image"), 1)[0].segment, Segment)


def test_what_is_streamed_is_what_is_drawn(tiny_run):
    run = open_run(tiny_run)
    prompts = [
        run.prompt([run.tokenizers["text"].encode(word)], "speech")
        for word in ("low", "high", "low")
    ]
    way = run.sampling("speech")
    steps = run.stream(prompts, way, 7)
    got = [[] for _ in prompts]
    while True:
        try:
            rows, frames = next(steps)
        except StopIteration as end:
            streamed = end.value
            break
        for row, frame in zip(rows, frames):
            got[row].append(frame)
    for row, sampled, drawn in zip(got, streamed, run.draw(prompts, way, 7)):
        assert np.array_equal(np.array(row).reshape(-1, 80), drawn.segment.codes)
        assert (
            np.array_equal(sampled.segment.codes, drawn.segment.codes)
            and sampled.stop == drawn.stop
        )
    with pytest.raises(UserError, match="guidance 2.0 needs a run trained with cond_dropout"):
        next(run.stream(prompts, run.sampling("speech", guidance=2.0), 0))


def test_guidance_is_off_where_nothing_is_given(tiny_run, monkeypatch):
    """It would change nothing, and cost twice as much; one prompt that gives something turns it on
    for all.
    """
    run = open_run(tiny_run)
    used = []
    monkeypatch.setattr(
        "mmtok.run.run.generate",
        lambda lm, prompts, sampling, *_, **__: used.append(sampling.guidance) or [],
    )
    nothing = run.prompt([], "image")
    dark = run.prompt([run.tokenizers["text"].encode("dark")], "image")
    for prompts in ([nothing] * 2, [dark], [nothing, dark]):
        run.draw(prompts, run.sampling("image", guidance=2.0), 0)
    assert used == [1.0, 2.0, 2.0]


def test_guidance_needs_a_run_trained_with_the_null_condition(tiny_run):
    run = open_run(tiny_run)
    prompt = [run.prompt([run.tokenizers["text"].encode("low")], "speech")]
    with pytest.raises(
        UserError,
        match="guidance 2.0 needs a run trained with cond_dropout > 0 on a task text -> speech",
    ):
        run.draw(prompt, run.sampling("speech", guidance=2.0), 0)
    assert run.draw(
        [run.prompt([run.tokenizers["text"].encode("dark")], "image")],
        run.sampling("image", guidance=2.0),
        0,
    )


def test_tasks_are_named(tiny_recipe):
    assert (
        str(Task((), ("text",))) == "nothing -> text"
        and str(tiny_recipe.tasks[0]) == "caption -> image"
    )


def test_a_run_is_opened_without_commands_evaluation_and_report():
    rooms = ("commands", "evaluation", "report")
    code = (
        "import sys, mmtok.run.run, mmtok.run.build, mmtok.run.distributed;"
        f"rooms = tuple('mmtok.' + r for r in {rooms});"
        "sys.exit(any(name.startswith(rooms) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
