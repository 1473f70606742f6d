"""Write the report."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def summarize(
    run: str, statuses: list, report: dsl.Output[dsl.HTML], metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Publish the report and show it, and its headline figures, as artifacts; returns its URI."""
    from pathlib import Path

    from eosin import steps
    from eosin.layout import RunLayout
    from eosin.storage import join_uri, open_store

    print(f"{statuses.count('ok')} of {len(statuses)} evaluations are ok")
    result = steps.as_step(steps.summarize, run)
    for name, value in result.headline.items():
        metrics.log_metric(name, value)
    Path(report.path).write_bytes(open_store(run).get(RunLayout.SUMMARY_HTML))
    return join_uri(run, RunLayout.SUMMARY_HTML)
