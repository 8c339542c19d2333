"""Checkpoints: whole or not at all, damage found out, the one before it used."""

import errno
import json
import os
import shutil
from collections import OrderedDict

import pytest
import torch

from mmtok.errors import UserError
from mmtok.train import checkpoint as room
from mmtok.train.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    tidy,
)


def of(step, **more):
    generator = torch.Generator().manual_seed(step)
    weights = {
        "a.weight": torch.randn(4, 3, generator=generator),
        "b": torch.randn(5, generator=generator),
    }
    return Checkpoint(
        {"weights": weights, "optimizer": {"b:step": torch.tensor(float(step))}},
        {"step": step, "vocabulary": "abc", **more},
    )


def same(a, b):
    """Equal states, and tensors equal bit for bit."""
    assert a.state == b.state and a.tensors.keys() == b.tensors.keys()
    for stem, tensors in a.tensors.items():
        assert tensors.keys() == b.tensors[stem].keys() and all(
            torch.equal(x, b.tensors[stem][k]) for k, x in tensors.items()
        )
    return True


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    made = of(7, window=[{"loss": 0.1 + 0.2, "parts": {"text": [1e-17, 3]}}])
    path = save_checkpoint(tmp_path / "deep" / "checkpoints", made)
    assert path.name == "step-000007" and same(load_checkpoint(path.parent), made)
    assert names(path) == ["optimizer.safetensors", "state.json", "weights.safetensors"]


def test_shared_and_strided_tensors_keep_their_values(tmp_path):
    x = torch.arange(6.0).view(2, 3)
    save_checkpoint(tmp_path, Checkpoint({"weights": OrderedDict(turned=x.T)}, {"step": 1}))
    assert torch.equal(load_checkpoint(tmp_path).tensors["weights"]["turned"], x.T)


def test_nothing_yet(tmp_path):
    assert load_checkpoint(tmp_path) is None and load_checkpoint(tmp_path / "none") is None


def test_the_newest_two_are_kept_also_past_a_million_steps(tmp_path):
    for step in (8, 90, 999_999, 1_000_000):
        save_checkpoint(tmp_path, of(step))
        assert same(load_checkpoint(tmp_path), of(step))
    assert names(tmp_path) == ["step-1000000", "step-999999"]


@pytest.mark.parametrize("fails", ["save_tensors", "_sync", "digest", "rename"])
def test_a_crash_while_writing_leaves_the_one_before(tmp_path, monkeypatch, fails):
    save_checkpoint(tmp_path, of(1))

    def crash(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        (
            patch.setattr(os, "rename", crash)
            if fails == "rename"
            else patch.setattr(room, fails, crash)
        )
        with pytest.raises(OSError):
            save_checkpoint(tmp_path, of(2))
    assert names(tmp_path) == ["step-000001"] and same(load_checkpoint(tmp_path), of(1))
    save_checkpoint(tmp_path, of(2))
    assert same(load_checkpoint(tmp_path), of(2))


def test_what_a_killed_process_left_behind_is_ignored_and_swept_away(tmp_path):
    save_checkpoint(tmp_path, of(1))
    shutil.copytree(tmp_path / "step-000001", tmp_path / ".step-000002.tmp")
    assert same(load_checkpoint(tmp_path), of(1))
    save_checkpoint(tmp_path, of(3))
    assert names(tmp_path) == ["step-000001", "step-000003"]


def test_what_a_killed_process_had_not_removed_goes_and_damaged_later_ones_keep_no_sound_one_out(
    tmp_path,
):
    for step in (1, 2, 3, 4, 5):
        save_checkpoint(tmp_path, of(step), keep=9)
    (tmp_path / "step-000001" / "weights.safetensors").unlink()
    tidy(tmp_path, 3)
    assert names(tmp_path) == ["step-000002", "step-000003", "step-000004", "step-000005"]
    for step in (4, 5):
        damage(tmp_path / f"step-{step:06d}", "cut")
    shutil.rmtree(tmp_path / "step-000003")
    save_checkpoint(tmp_path, of(3))
    with pytest.warns(UserWarning, match="is damaged"):
        assert same(load_checkpoint(tmp_path), of(3))


def damage(path, how):
    files = {
        "cut": "weights.safetensors",
        "flip": "optimizer.safetensors",
        "gone": "weights.safetensors",
    }
    target = path / files.get(how, "state.json")
    content = target.read_bytes()
    match how:
        case "cut":
            target.write_bytes(content[: len(content) // 2])
        case "flip":
            target.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "gone":
            target.unlink()
        case "no state":
            target.unlink()
        case "empty state":
            target.write_bytes(b"")
        case "not JSON":
            target.write_bytes(b"\xff\x00")
        case "a list":
            target.write_text("[]")
        case "another step":
            target.write_bytes(content.replace(b'"step": 2', b'"step": 1'))
        case "no files":
            target.write_text(json.dumps({"step": 2}))


HOWS = [
    "cut",
    "flip",
    "gone",
    "no state",
    "empty state",
    "not JSON",
    "a list",
    "another step",
    "no files",
]


@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_one_is_said_and_the_one_before_is_used(tmp_path, how):
    for step in (1, 2):
        save_checkpoint(tmp_path, of(step))
    damage(tmp_path / "step-000002", how)
    with pytest.warns(
        UserWarning, match=r"step-000002 is damaged .*; using the one before it"
    ) as said:
        assert same(load_checkpoint(tmp_path), of(1))
    assert len(said) == 1 and "\n" not in str(said[0].message)
    save_checkpoint(tmp_path, of(2))  # the resumed run reaches that step again
    assert same(load_checkpoint(tmp_path), of(2))


@pytest.mark.filterwarnings("ignore:checkpoint")
def test_none_readable_is_refused(tmp_path):
    for step, how in ((1, "cut"), (2, "no state")):
        save_checkpoint(tmp_path, of(step))
        damage(tmp_path / f"step-{step:06d}", how)
    with pytest.raises(
        UserError, match="none of the checkpoints in .* can be read; remove the folder"
    ):
        load_checkpoint(tmp_path)


def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError) as error:
        save_checkpoint(tmp_path, of(1))
    assert (
        error.value.errno == errno.ENOSPC
        and error.value.filename.endswith("weights.safetensors")
        and names(tmp_path) == []
    )


def test_an_optimiser_comes_back_bit_for_bit():
    def made():
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return (
            layer,
            torch.optim.AdamW(layer.parameters(), fused=True),
            {p: n for n, p in layer.named_parameters()},
        )

    def step(layer, optimizer, seed):
        layer(
            torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        ).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    layer, optimizer, by = made()
    step(layer, optimizer, 1)
    other, fresh, names_of = made()
    other.load_state_dict(layer.state_dict())
    restore_optimizer(
        fresh, names_of, {k: v.clone() for k, v in optimizer_tensors(optimizer, by).items()}
    )
    step(layer, optimizer, 2)
    step(other, fresh, 2)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters()))
