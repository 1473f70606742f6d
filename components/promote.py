"""Make a run's teacher the current model of the registry, if it is the better one."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def promote(
    run: str, registry: str, name: str, judge_by: list, margin: float, alpha: float, report: str,
    metrics: dsl.Output[dsl.Metrics], verdict: dsl.Output[dsl.Markdown],
) -> str:  # fmt: skip
    """Promote the newest teacher of a run whose report is there; returns promoted, refused or unchanged."""
    from pathlib import Path

    from eosin import steps

    print(f"judged in {report}")
    result = steps.as_step(steps.promote, registry, name, run, metrics=judge_by, margin=margin, alpha=alpha)
    metrics.log_metric("current version", result.version)
    Path(verdict.path).write_text(f"```\n{result}\n```\n")
    return result.status
