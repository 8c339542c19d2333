"""TensorBoard's files hold what the log holds, no step twice, also after a run was cut."""

import sys

import pytest

from mmtok.cli import main
from mmtok.train.log import read_log
from mmtok.train.tensorboard import TensorBoardWriter, scalars
from mmtok.train.trainer import Trainer

LINE = {
    "step": 3,
    "loss": 0.5,
    "nats": {"text": 1.0, "jets": None},
    "customary": {"text": {"bits/byte": 2.0}},
}


def read_back(folder):
    """Tag -> [(step, value)] of all events on the disk."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    files = list(folder.glob("events.out.tfevents.*"))
    assert len(files) == 1 and len(list(folder.iterdir())) == 1
    events = reader.EventAccumulator(str(files[0]), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_numbers_are_named_by_their_place_in_the_line():
    assert dict(scalars(LINE)) == {"loss": 0.5, "nats/text": 1.0, "customary/text/bits/byte": 2.0}


def test_a_line_is_on_the_disk_at_once_and_a_new_board_begins_anew(tmp_path):
    pytest.importorskip("tensorboard")
    with TensorBoardWriter(tmp_path / "b") as board:
        board.add(LINE)
        assert read_back(tmp_path / "b") == {
            "loss": [(3, 0.5)],
            "nats/text": [(3, 1.0)],
            "customary/text/bits/byte": [(3, 2.0)],
        }
    with TensorBoardWriter(tmp_path / "b", [LINE, {"step": 4, "loss": 0.25}]):
        assert read_back(tmp_path / "b")["loss"] == [(3, 0.5), (4, 0.25)]


def test_a_run_that_was_cut_and_goes_on_has_every_step_once(
    tiny_words, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("tensorboard")
    words = [
        "train",
        *tiny_words,
        "--out",
        str(tmp_path / "run"),
        "--tensorboard",
    ]
    whole_checkpoint = Trainer.checkpoint

    def checkpoint(trainer):
        if trainer.step == 20:
            raise KeyboardInterrupt
        return whole_checkpoint(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "checkpoint", checkpoint)
        assert main(words) == 130
    assert [step for step, _ in read_back(tmp_path / "run" / "tensorboard")["loss"]] == [8, 16]
    assert main(words) == 0 and "resuming at step 10" in capsys.readouterr().err
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [line["step"] for line in log] == [8, 16, 24]
    expected = {}
    for line in log:
        for name, value in scalars(line):
            expected.setdefault(name, []).append((line["step"], pytest.approx(value, rel=1e-6)))
    found = read_back(tmp_path / "run" / "tensorboard")
    assert found == expected
    assert {
        "customary/image/bits/code",
        "customary/jets/nats/particle",
        "matrix_share",
        "gradient_norm",
        "learning_rate",
    } < found.keys()

    for file in (tmp_path / "run" / "tensorboard").iterdir():
        file.unlink()
    assert main(words) == 0 and "nothing to do" in capsys.readouterr().err
    assert read_back(tmp_path / "run" / "tensorboard") == expected


def test_without_the_package_one_line_names_the_extra_and_nothing_is_written(
    tiny_words, tmp_path, monkeypatch, said
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    line = said(["train", *tiny_words, "--out", str(tmp_path / "run"), "--tensorboard"])
    assert "needs the extra" in line and "[tensorboard]" in line and not (tmp_path / "run").exists()
