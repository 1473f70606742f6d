"""What a person sees of a running pipeline."""

import io
import json

from eosin.kubeflow.local_run import PipelineView


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def event(**fields: object) -> str:
    return json.dumps({"time": "2026-01-01T00:00:00.000+00:00", **fields})


def test_each_step_is_announced_once() -> None:
    out = io.StringIO()
    view = PipelineView(out)
    view.feed("12:00:00 - INFO - Executing task \x1b[96m'index-shard'\x1b[0m\n")
    view.feed("12:00:01 - INFO - Executing task \x1b[96m'index-shard'\x1b[0m\n")
    view.feed("12:00:02 - INFO - Executing task \x1b[96m'train'\x1b[0m\n")
    assert out.getvalue().splitlines() == ["▸ index · read slide headers and find tissue", "▸ train"]


def test_noise_of_the_pipeline_is_not_shown() -> None:
    out = io.StringIO()
    view = PipelineView(out)
    for line in ["[KFP Executor 2026 INFO]: Looking for component", "{", '"a": 1', "}", "----", "{not json}"]:
        view.feed(line)
    assert out.getvalue() == ""


def test_progress_without_a_terminal_is_thinned_but_ends() -> None:
    out = io.StringIO()
    view = PipelineView(out)
    for step in range(1, 101):
        view.feed("    " + event(source="train", event="step", step=step, num_steps=100, loss=6.0, eta_s=3.0))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2 and "step 100/100" in lines[-1] and "loss 6" in lines[-1]


def test_progress_on_a_terminal_rewrites_one_line() -> None:
    out = Terminal()
    view = PipelineView(out)
    for done in (1, 2):
        view.feed(event(source="index-00000", event="progress", done=done, total=2, unit="slides"))
    view.finish()
    assert out.getvalue().count("\n") == 1 and "2/2 slides" in out.getvalue()


def test_warnings_are_shown_and_errors_kept() -> None:
    out = io.StringIO()
    view = PipelineView(out)
    view.feed(event(source="train", event="patch-redrawn", slide="a.svs", reason="corrupt tile"))
    view.feed(json.dumps({"event": "error", "message": "no bucket", "hint": "make it", "exit_code": 2}))
    assert "a.svs" in out.getvalue() and view.error is not None and view.error["exit_code"] == 2


def test_a_task_that_is_run_again_is_said() -> None:
    out = io.StringIO()
    view = PipelineView(out)
    view.feed("12:00:00 - INFO - Task train failed (attempt 1/3). Retrying in 10.0s...\n")
    view.feed(json.dumps({"event": "error", "message": "s3 does not answer", "hint": "", "exit_code": 75}))
    assert out.getvalue().splitlines() == [
        "  train failed; it is run again in 10 s",
        "  s3 does not answer; trying again",
    ]


def test_a_slide_whose_name_breaks_the_line_stays_on_one() -> None:
    out = io.StringIO()
    PipelineView(out).feed(event(source="index", event="slide-not-used", slide="a\nb\x1b[2J.svs"))
    assert out.getvalue() == "  index: slide-not-used · slide a\\nb\\x1b[2J.svs\n"
