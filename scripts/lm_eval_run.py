"""lm-eval on a run.

    .venv/bin/python scripts/lm_eval_run.py RUN --tasks lambada_openai --limit 100 --out out.json

Needs the extra `harness`. `run_model(run)` is the model for your own calls of
`lm_eval.simple_evaluate`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from mmtok.commands.arguments import Arg, parse
from mmtok.errors import UserError, missing_extra
from mmtok.io.files import write_text


def run_model(run: Any, longest: int | None = None) -> Any:
    """An opened run as an `lm_eval.api.model.LM`.

    Raises UserError where lm-eval is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise missing_extra("lm-eval", "harness") from None
    from mmtok.evaluation.lm_harness import Harness

    class RunModel(LM):
        def __init__(self):
            super().__init__()
            self.harness = Harness(run, longest)

        def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
            answers = self.harness.loglikelihood([r.args for r in requests])
            return self._cached("loglikelihood", requests, answers)

        def loglikelihood_rolling(self, requests: list) -> list[float]:
            answers = self.harness.loglikelihood_rolling([r.args[0] for r in requests])
            return self._cached("loglikelihood_rolling", requests, answers)

        def generate_until(self, requests: list) -> list[str]:
            answers = self.harness.generate_until([r.args for r in requests])
            return self._cached("generate_until", requests, answers)

        def _cached(self, what: str, requests: list, answers: list) -> list:
            """Adds the answers to lm-eval's cache, where it keeps one."""
            for request, answer in zip(requests, answers, strict=True):
                self.cache_hook.add_partial(what, request.args, answer)
            return answers

    return RunModel()


def lm_eval_run(
    run: Annotated[Path, Arg("a run's folder", "RUN")],
    *,
    tasks: Annotated[Sequence[str], Arg("names of lm-eval's tasks", "TASK")],
    include: Annotated[Path | None, Arg("a folder with tasks of your own", "DIR")] = None,
    fewshot: Annotated[int | None, Arg("examples before each question", "N")] = None,
    limit: Annotated[int | None, Arg("questions per task", "N")] = None,
    longest: Annotated[
        int | None, Arg("most text codes of a question (default: as trained)", "N")
    ] = None,
    out: Annotated[Path | None, Arg("where the results go as JSON", "FILE", "-o")] = None,
) -> None:
    """Evaluates a run on tasks of lm-eval, and prints the figures of each."""
    from mmtok.run.run import open_run

    model = run_model(open_run(run), longest)
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(include) if include else None)
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=tasks,
        num_fewshot=fewshot,
        limit=limit,
        task_manager=manager,
        log_samples=False,
    )
    for task, figures in results["results"].items():
        for name, value in figures.items():
            if isinstance(value, float):
                print(f"{task:<28} {name:<32} {value:.4f}")
    if out is not None:
        shown = {key: results[key] for key in ("results", "versions", "n-shot")}
        write_text(out, json.dumps(shown, indent=1, default=str) + "\n")


if __name__ == "__main__":
    try:
        lm_eval_run(**parse(lm_eval_run, sys.argv[1:], "python scripts/lm_eval_run.py"))
    except UserError as error:
        print(f"lm_eval_run: {error}", file=sys.stderr)
        sys.exit(2)
