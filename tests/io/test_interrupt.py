"""Ctrl-C in the middle of an import waits for its end; before and after the command line it ends
the process without a word.
"""

import os
import signal
import subprocess
import sys
import time

SLOW = (
    "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.3)\ndone = True\n"
)


def run(tmp_path, code):
    (tmp_path / "slow_module.py").write_text(SLOW)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        timeout=60,
    )


def test_an_import_is_finished_first(tmp_path):
    done = run(
        tmp_path,
        "from mmtok.io.interrupt import raise_after_imports\nimport"
        " time\nraise_after_imports()\ntry:\n    import slow_module\n    time.sleep(5)\nexcept"
        " KeyboardInterrupt:\n    print(slow_module.done)",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_elsewhere_it_is_raised_at_once(tmp_path):
    done = run(
        tmp_path,
        "from mmtok.io.interrupt import raise_after_imports\nimport os,"
        " signal\nraise_after_imports()\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n   "
        " print('never')\nexcept KeyboardInterrupt:\n    print('here')",
    )
    assert (done.returncode, done.stdout) == (0, "here\n")


def test_what_ignores_it_goes_on_ignoring_it(tmp_path):
    done = run(
        tmp_path,
        "from mmtok.io.interrupt import raise_after_imports\nimport os,"
        " signal\nsignal.signal(signal.SIGINT,"
        " signal.SIG_IGN)\nraise_after_imports()\nos.kill(os.getpid(), signal.SIGINT)\nprint('on')",
    )
    assert (done.returncode, done.stdout) == (0, "on\n")


def test_a_process_is_interrupted_without_a_traceback_whenever_it_is():
    for wait in (0.15, 0.3, 0.8):  # while Python starts, no code of ours can help
        process = subprocess.Popen(
            [sys.executable, "-m", "mmtok", "show", "recipes/text.py"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (
            process.returncode in (0, 130, -signal.SIGINT)
            and "Traceback" not in err
            or "site.py" in err
        ), err
