"""An export that is cut or killed at any moment leaves a former one as it was; and what becomes of
what else lies in its folder.
"""

import os
import shutil
import signal
import sys
import traceback

import pytest

from mmtok.commands.export import export
from mmtok.errors import UserError
from mmtok.io import files
from mmtok.io.files import recover_folder
from mmtok.run.run import open_run

pytest.importorskip("transformers")


def raises(kind):
    raise kind


def cuts(run, folder, monkeypatch):
    """An export, interrupted before its k-th change of names, for k = 0, 1, ...

    as long as there is one.
    """
    change = {name: getattr(os, name) for name in ("rename", "link", "mkdir")}
    for k in range(99):
        left = iter(range(k))

        def stop(name, left=left):
            return lambda *a, **n: (
                change[name](*a, **n) if next(left, None) is not None else raises(KeyboardInterrupt)
            )

        with monkeypatch.context() as patch:
            for name in change:
                patch.setattr(os, name, stop(name))
            try:
                export(run, folder)
                return
            except KeyboardInterrupt:
                pass
        yield k


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("former", [True, False])
def test_an_export_that_is_cut_leaves_the_former_one_or_nothing(
    one_channel, former, exchange, tmp_path, contents, monkeypatch
):
    run = open_run(one_channel)
    folder = tmp_path / "llama"
    if not exchange:
        monkeypatch.setattr("mmtok.io.files._exchange", cannot_exchange)
    whole = contents(export(run, tmp_path / "whole"))
    if former:
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "tokenizer_config.json").write_text("{}")
        (folder / "README.md").write_text("mine")
    before = contents(tmp_path)
    for n_cuts in cuts(run, folder, monkeypatch):  # noqa: B007  the last one counts
        # as the next call does: here the renaming that undoes the first half is cut too
        recover_folder(folder)
        left = {
            name: what for name, what in contents(tmp_path).items() if not name.endswith(".lock")
        }
        assert left == before or not former and left == before | {"llama": None}
    assert n_cuts >= 6 and contents(folder) == whole | ({"README.md": b"mine"} if former else {})


def test_what_else_lies_in_a_former_export_goes_along(one_channel, tmp_path, contents, monkeypatch):
    run = open_run(one_channel)
    folder = tmp_path / "llama"
    whole = contents(export(run, folder))
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")
    (folder / "link").symlink_to("notes/a.txt")
    (folder / "config.json").chmod(0o600)
    (tmp_path / "other").symlink_to(folder)
    for place in (folder, tmp_path / "other"):
        export(run, place)
        assert (
            contents(folder) == whole | {"notes": None, "notes/a.txt": b"mine", "link": b"mine"}
            and (folder / "link").is_symlink()
        )
    assert (tmp_path / "other").is_symlink() and {p.name for p in tmp_path.iterdir()} == {
        "llama",
        "other",
    }
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="call it from outside"):
        export(run, ".")


def test_what_a_killed_export_left_is_swept_away(one_channel, tmp_path, contents):
    left = tmp_path / ".llama.999999999.tmp"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / ".lock").write_text("process 999999999 on this machine")
    assert contents(export(open_run(one_channel), tmp_path / "llama")) == contents(
        export(open_run(one_channel), tmp_path / "whole")
    )
    assert not left.exists()


@pytest.mark.parametrize("exchange", [True, False])
def test_an_export_killed_before_any_of_its_changes_leaves_the_former_one(
    one_channel, exchange, tmp_path, contents
):
    """Where folders cannot be exchanged, the next call brings a former one back that was just set
    aside.
    """
    run = open_run(one_channel)
    folder = tmp_path / "home" / "llama"
    export(run, folder)
    (folder / "tokenizer_config.json").write_text(
        "{}"
    )  # so that the former one is told from the new
    (folder / "README.md").write_text("mine")
    run.lm, run.vocabulary  # noqa: B018 - opened once, before the forks
    former = contents(folder)
    aside = folder.with_name(".llama.former")
    for k in range(99):
        code = forked(run, folder, k, exchange)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        if aside.exists() and not folder.exists():
            recover_folder(folder)
        found = {name: what for name, what in contents(folder).items() if name != ".lock"}
        assert found == former or (
            found.keys() == former.keys() and found["tokenizer_config.json"] != b"{}"
        ), k
        assert found["README.md"] == b"mine"
        if found != former:  # it was killed after the exchange
            (folder / "tokenizer_config.json").write_text("{}")
    assert (
        k > 8
        and contents(folder)["tokenizer_config.json"] != b"{}"
        and set(contents(folder)) == set(former)
    )
    assert [path.name for path in folder.parent.iterdir()] == ["llama"]


def cannot_exchange(_folder, _other):
    """What `files._exchange` says where a file system cannot exchange two folders."""
    return False


def forked(run, folder, last, exchange):
    """The exit status of an export that is killed before change number `last` of the place."""
    child = os.fork()
    if child == 0:
        n = 0
        changes = {
            "open",
            "os.rename",
            "os.remove",
            "os.mkdir",
            "os.rmdir",
            "os.link",
            "os.chmod",
        }

        def watch(event, args):
            nonlocal n
            if event not in changes or event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
                return
            within = (
                event in ("os.remove", "os.rmdir") and args[1] != -1
            )  # of a folder that is open, which is being removed
            if not (within or str(args[0]).startswith(f"{folder.parent}/")):
                return
            if n == last:
                os.kill(os.getpid(), signal.SIGKILL)
            n += 1

        code = 99
        try:
            if not exchange:
                files._exchange = cannot_exchange
            sys.addaudithook(watch)
            export(run, folder)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
