"""Write the report."""

from kfp import dsl


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def summarize(run: str, judged: list, report: dsl.Output[dsl.HTML], metrics: dsl.Output[dsl.Metrics]) -> str:
    """Publish the report and show it, and its headline figures, as artifacts; returns its URI."""
    from eosin import steps

    print(f"evaluations that are ok, by shard: {', '.join(judged)}")
    result = steps.as_step(steps.summarize, run)
    for name, value in result.headline.items():
        metrics.log_metric(name, value)
    return steps.as_step(steps.copy_report, run, report.path)
