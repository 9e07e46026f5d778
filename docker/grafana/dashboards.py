"""Writes the Grafana dashboards beside it: one JSON file each, to be imported or provisioned.

    python docker/grafana/dashboards.py

Needs `grafana-foundation-sdk`, Grafana's own types of a dashboard.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, timeseries
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import StackingMode, TooltipDisplayMode, VisibilityMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

FOLDER = Path(__file__).parent
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
OF = 'model=~"$model",version=~"$version"'
"""What the two variables at the top choose."""
WHO, ROLE = "{{model}} {{version}}", "{{model}} {{version}} {{role}}"
VERSION, BY_ROLE = "model, version", "model, version, role"
ANSWERED = 'role=~"split|pinned|fallback"'
"""Roles whose answers clients see as predictions."""
WIDTH, HEIGHT = 8, 8
Query = tuple[str, str]
"""Expression, and the legend of its series."""


def rate(name: str, more: str = "", of: str = OF) -> str:
    return f"rate({name}{{{','.join(filter(None, (of, more)))}}}[$__rate_interval])"


def total(name: str, by: str = VERSION, more: str = "", of: str = OF) -> str:
    """The rate of a counter, summed over instances."""
    return f"sum by ({by}) ({rate(name, more, of)})"


def mean(name: str, by: str = VERSION, more: str = "") -> str:
    """Of what a histogram observed."""
    return f"{total(f'{name}_sum', by, more)} / {total(f'{name}_count', by, more)}"


def quantile(share: float, name: str, by: str = VERSION, more: str = "") -> str:
    return f"histogram_quantile({share}, {total(f'{name}_bucket', f'{by}, le', more)})"


def quantiles(name: str, more: str = "", by: str = VERSION, legend: str = WHO) -> list[Query]:
    return [(quantile(share, name, by, more), f"p{share * 100:g} {legend}") for share in (0.5, 0.95, 0.99)]


def now(name: str, by: str = VERSION, of: str = OF) -> str:
    """A state, summed over instances."""
    return f"sum by ({by}) ({name}{{{of}}})"


def panel(title: str, unit: str, queries: Sequence[Query], text: str = "", *, stacked: bool = False) -> Any:
    """A panel of lines over time. `unit`: Grafana's name of it. `text`: what to read from it."""
    made = (
        timeseries.Panel()
        .title(title)
        .description(text)
        .unit(unit)
        .min(0)
        .span(WIDTH)
        .height(HEIGHT)
        .datasource(SOURCE)
        .fill_opacity(30 if stacked else 5)
        .show_points(VisibilityMode.NEVER)
        .legend(common.VizLegendOptions().show_legend(True))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if stacked:
        made = made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for place, (expression, name) in enumerate(queries):
        query = prometheus.Dataquery().expr(expression).legend_format(name).ref_id(chr(ord("A") + place))
        made = made.with_target(query.datasource(SOURCE).exemplar("_bucket" in expression))
    return made


def variable(name: str, query: str) -> Any:
    """A choice at the top, of all by default."""
    made = build.QueryVariable(name).datasource(SOURCE).query(query).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    return made.multi(True).include_all(True).all_value(".*")


def dashboard(uid: str, title: str, text: str, rows: dict[str, list[Any]], further: Sequence[Any] = ()) -> str:
    """One dashboard's JSON."""
    made = (
        build.Dashboard(title)
        .uid(uid)
        .description(text)
        .tags(["marctl"])
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .with_variable(build.DatasourceVariable("datasource").type("prometheus").label("Data source"))
        .with_variable(variable("model", "label_values(gateway_attempts_total, model)"))
        .with_variable(variable("version", 'label_values(gateway_attempts_total{model=~"$model"}, version)'))
    )
    for each in further:
        made = made.with_variable(each)
    ids = count(1)
    for name, panels in rows.items():
        made = made.with_row(build.Row(name).id(next(ids)))
        for each in panels:
            made = made.with_panel(each.id(next(ids)))
    return JSONEncoder(indent=1, sort_keys=True).encode(made.build()) + "\n"


STAGE = "handler_stage_seconds"
UNSURE, SHADOW = 'le="0.5"', 'role="shadow"'
ATTEMPTS, FAILURES, TIMES = "gateway_attempts_total", "gateway_failures_total", "gateway_attempt_seconds"

SERVICE = {
    "Golden signals": [
        panel(
            "Traffic", "reqps", [(total(ATTEMPTS, more=ANSWERED), WHO)], "Requests that clients sent, by who got them."
        ),
        panel(
            "Errors",
            "percentunit",
            [(f"{total(FAILURES, more=ANSWERED)} / {total(ATTEMPTS, more=ANSWERED)}", WHO)],
            "Share of attempts that failed. A fallback may have answered all the same.",
        ),
        panel("Latency", "s", quantiles(TIMES, ANSWERED), "From the gateway's sending to the answer's end."),
        panel(
            "Saturation",
            "percentunit",
            [(f"{now('batcher_queue_size')} / {now('batcher_queue_limit')}", WHO)],
            "How full the queues are; from 100 % on requests get 503.",
        ),
        panel(
            "Workers",
            "short",
            [(now("marctl_workers_ready"), f"ready {WHO}"), (now("marctl_workers_wanted"), f"wanted {WHO}")],
        ),
        panel(
            "Where the time goes",
            "s",
            [
                (mean("gateway_sending_seconds", "model", ANSWERED), "gateway {{model}}"),
                (mean(STAGE, "model, stage", f'{ANSWERED},stage!="total"'), "{{stage}} {{model}}"),
            ],
            "Mean of a request, by stage.",
            stacked=True,
        ),
    ],
    "Error budget": [
        panel(
            "Availability: burn rate",
            "short",
            [
                (f'slo:gateway_errors:ratio_rate{window}{{model=~"$model"}} / 0.001', f"{window} {{{{model}}}}")
                for window in ("5m", "1h", "6h", "3d")
            ],
            "1 uses the budget of 99.9 % up in exactly 30 days, 14.4 in two.",
        ),
        panel(
            "Latency: burn rate",
            "short",
            [
                (f'slo:gateway_slow:ratio_rate{window}{{model=~"$model"}} / 0.01', f"{window} {{{{model}}}}")
                for window in ("5m", "1h", "6h", "3d")
            ],
            "Of the 1 % of answers that may take longer than 0.5 s.",
        ),
        panel(
            "Error budget left",
            "percentunit",
            [
                (
                    '1 - avg_over_time(slo:gateway_errors:ratio_rate1h{model=~"$model"}[30d]) / 0.001',
                    "availability {{model}}",
                ),
                ('1 - avg_over_time(slo:gateway_slow:ratio_rate1h{model=~"$model"}[30d]) / 0.01', "latency {{model}}"),
            ],
            "Over the last 30 days, as far as figures are kept; every hour with traffic counts alike.",
        ),
    ],
}

TRAFFIC = {
    "Who is asked": [
        panel("Attempts by role", "reqps", [(total(ATTEMPTS, BY_ROLE), ROLE)], stacked=True),
        panel(
            "Answers by status",
            "reqps",
            [(total(ATTEMPTS, "model, version, code"), f"{{{{code}}}} {WHO}")],
            stacked=True,
        ),
        panel(
            "Failures by kind",
            "reqps",
            [(total(FAILURES, "model, version, kind"), f"{{{{kind}}}} {WHO}")],
            stacked=True,
        ),
    ],
    "Shadow and fallback": [
        panel("Copies to shadows", "reqps", [(total(ATTEMPTS, more=SHADOW), WHO)]),
        panel(
            "Shadow: latency beside the live version's",
            "s",
            [(quantile(0.95, TIMES, BY_ROLE, 'role=~"split|shadow"'), f"p95 {ROLE}")],
        ),
        panel(
            "Shadow: failures",
            "percentunit",
            [(f"{total(FAILURES, more=SHADOW)} / {total(ATTEMPTS, more=SHADOW)}", WHO)],
        ),
        panel("Answers of a fallback", "reqps", [(total(ATTEMPTS, more='role="fallback"'), WHO)]),
        panel("Requests that another version had failed", "reqps", [(total("handler_fallbacks_total"), WHO)]),
        panel("Last known answers served", "reqps", [(total("handler_cache_stale_total"), WHO)]),
    ],
    "Predictions": [
        panel(
            "What is predicted",
            "percentunit",
            [
                (
                    f"{total('handler_predictions_total', 'model, version, prediction')} / ignoring (prediction) "
                    f"group_left () {total('handler_predictions_total')}",
                    f"{{{{prediction}}}} {WHO}",
                )
            ],
            "Shares of the classes, or of the places of the chosen answers.",
            stacked=True,
        ),
        panel("Confidence", "percentunit", quantiles("handler_prediction_confidence_ratio")),
        panel(
            "Unsure answers",
            "percentunit",
            [
                (
                    f"{total('handler_prediction_confidence_ratio_bucket', more=UNSURE)} / "
                    f"{total('handler_prediction_confidence_ratio_count')}",
                    WHO,
                )
            ],
            "Share of answers with a confidence of at most 0.5.",
        ),
        panel(
            "Errors by kind",
            "reqps",
            [(total("handler_errors_total", "model, version, kind"), f"{{{{kind}}}} {WHO}")],
            stacked=True,
        ),
    ],
}

WORKERS = {
    "Stages of a request": [
        panel(
            f"{title}",
            "s",
            [(quantile(share, STAGE, more=f'stage="{stage}"'), f"p{share * 100:g} {WHO}") for share in (0.5, 0.99)],
        )
        for stage, title in {
            "queue": "Queue",
            "batch_wait": "Wait for the batch",
            "features": "Features",
            "cache": "Cache",
            "inference": "Inference",
            "encoding": "Encoding",
            "total": "Total",
        }.items()
    ]
    + [panel("Gateway", "s", quantiles("gateway_sending_seconds"), "Until a request was sent to its version.")],
    "Batching": [
        panel(
            "Batch size",
            "short",
            [(mean("batcher_batch_size"), WHO)],
            "Mean of the requests that a worker gets at once.",
        ),
        panel("Batches", "ops", [(total("handler_batches_total"), WHO)]),
        panel("Model time of a batch", "s", quantiles("batcher_inference_time_seconds")),
        panel("Requests that wait", "short", [(now("batcher_queue_size"), WHO)]),
        panel("Batches under way", "short", [(now("batcher_inflight_batches"), WHO)]),
    ],
    "Autoscaling": [
        panel(
            "Workers",
            "short",
            [
                (now("marctl_autoscaler_workers_wanted"), f"wanted {WHO}"),
                (now("marctl_autoscaler_workers_ready"), f"ready {WHO}"),
                (now("marctl_autoscaler_workers_demanded"), f"in demand {WHO}"),
            ],
            "Empty where no autoscaler runs. In demand: what the load alone takes, before bounds and room.",
        ),
        panel(
            "Changes",
            "short",
            [
                (
                    f"sum by (model, version, direction) (increase(marctl_autoscaler_changes_total{{{OF}}}[1h]))",
                    f"{{{{direction}}}} {WHO}",
                )
            ],
            "Over an hour.",
        ),
        panel(
            "Reason",
            "short",
            [(now("marctl_autoscaler_reason", "model, version, reason"), f"{{{{reason}}}} {WHO}")],
            "Why there are so many: memory, cores and gpu say that there is no room for more.",
        ),
        panel(
            "Start of a worker", "s", [(f"max by ({VERSION}) (marctl_autoscaler_worker_start_seconds{{{OF}}})", WHO)]
        ),
    ],
    "Cache": [
        panel(
            "Hit ratio",
            "percentunit",
            [
                (
                    f"{total('handler_cache_hits_total')} / "
                    f"({total('handler_cache_hits_total')} + {total('handler_cache_misses_total')})",
                    WHO,
                )
            ],
        ),
        panel(
            "Questions",
            "ops",
            [
                (total(f"handler_cache_{name}_total", "model"), f"{name} {{{{model}}}}")
                for name in ("hits", "misses", "computed", "stale", "errors")
            ],
        ),
        panel(
            "Redis is asked",
            "short",
            [(f"min by (model, version) (handler_cache_asking{{{OF}}})", WHO)],
            "0 while a worker leaves it alone.",
        ),
    ],
    "Explanations": [
        panel("Explanations", "ops", [(total("handler_explanations_total"), WHO)]),
        panel(
            "Incomplete ones",
            "ops",
            [(total("handler_explanations_incomplete_total"), WHO)],
            "Whose scores do not sum to the change that they explain.",
        ),
        panel(
            "Time of one",
            "s",
            [(f"{total('handler_explanation_seconds_total')} / {total('handler_explanations_total')}", WHO)],
        ),
    ],
    "Features": [
        panel("Texts cut", "ops", [(total("handler_truncated_total"), WHO)], "Longer than the model reads."),
        panel("Values filled in", "ops", [(total("handler_imputed_total"), WHO)], "Missing in the question."),
    ],
    "Prediction log": [
        panel(
            "Records",
            "ops",
            [
                (total(f"handler_log_{name}_total", "model"), f"{name} {{{{model}}}}")
                for name in ("written", "spilled", "dropped")
            ],
        ),
        panel(
            "Not in files yet",
            "short",
            [
                ("sum(marctl_log_undrained_records)", "in Redis"),
                ("sum(marctl_log_missing_records)", "on their way or lost"),
            ],
        ),
        panel(
            "Kept",
            "bytes",
            [("sum(marctl_log_kept_bytes)", "in files"), ("sum(marctl_log_spilled_bytes)", "in spill files")],
        ),
    ],
}

CPU = "handler_process_cpu_seconds_total"
ALL_CPU = " + ".join(f"sum(rate({name}_process_cpu_seconds_total[$__rate_interval]))" for name in ("marctl", "handler"))
ANSWERS = "sum(rate(handler_requests_total[$__rate_interval]))"
MILLION_HOURS = "1e6 / 3600 * $core_hour_price"
MACHINE = {
    "Workers": [
        panel("Processors in use", "short", [(total(CPU), WHO)], "By the workers of a version.", stacked=True),
        panel("Memory", "bytes", [(now("handler_process_resident_memory_bytes"), WHO)], stacked=True),
        panel(
            "Starts",
            "short",
            [(f"sum by ({VERSION}) (increase(handler_process_starts_total{{{OF}}}[1h]))", WHO)],
            "Over an hour.",
        ),
    ],
    "Other processes": [
        panel("Up", "short", [("min by (part) (marctl_part_up)", "{{part}}")]),
        panel(
            "Processors in use",
            "short",
            [("sum by (part) (rate(marctl_process_cpu_seconds_total[$__rate_interval]))", "{{part}}")],
            stacked=True,
        ),
        panel("Memory", "bytes", [("sum by (part) (marctl_process_resident_memory_bytes)", "{{part}}")], stacked=True),
        panel("Open files", "short", [("sum by (part) (marctl_process_open_fds)", "{{part}}")]),
    ],
    "Batch jobs": [
        panel("Jobs", "short", [("sum by (status) (marctl_batch_jobs)", "{{status}}")], "Not over yet.", stacked=True),
        panel(
            "Jobs that ended",
            "short",
            [("sum by (status) (increase(marctl_batch_jobs_ended_total[1h]))", "{{status}}")],
            "Over an hour.",
        ),
        panel("Rows per second", "short", [("sum(marctl_batch_rows_per_second)", "rows")]),
        panel("Rows left", "short", [("sum(marctl_batch_rows_left)", "rows")], "Of jobs that run."),
    ],
    "Host": [
        panel(
            "Processors",
            "short",
            [
                ('sum by (mode) (rate(marctl_host_cpu_seconds_total{mode!="idle"}[$__rate_interval]))', "{{mode}}"),
                ("sum(marctl_host_cpus)", "there are"),
                ("sum(marctl_host_load1)", "load"),
            ],
        ),
        panel(
            "Memory",
            "bytes",
            [("sum(marctl_host_memory_available_bytes)", "available"), ("sum(marctl_host_memory_bytes)", "all")],
        ),
        panel("Disk", "percentunit", [("1 - marctl_disk_free_bytes / marctl_disk_size_bytes", "used {{instance}}")]),
        panel(
            "Certificate ends in",
            "s",
            [("gateway_certificate_expiry_timestamp_seconds - time()", "{{instance}}")],
            "Empty where the gateway speaks plain HTTP.",
        ),
    ],
    "GPU": [
        panel("GPUs", "short", [("sum(marctl_gpus)", "GPUs")]),
        panel("Utilisation", "percentunit", [("marctl_gpu_utilization_ratio", "{{gpu}} {{instance}}")]),
        panel(
            "Memory",
            "bytes",
            [
                ("marctl_gpu_memory_used_bytes", "used {{gpu}} {{instance}}"),
                ("marctl_gpu_memory_bytes", "all {{gpu}} {{instance}}"),
                (now("handler_process_gpu_memory_bytes"), WHO),
            ],
        ),
        panel("Power", "watt", [("marctl_gpu_power_watts", "{{gpu}} {{instance}}")]),
        panel("Temperature", "celsius", [("marctl_gpu_temperature_celsius", "{{gpu}} {{instance}}")]),
    ],
    "Cost": [
        panel(
            "Processor time of a prediction",
            "s",
            [(f"{total(CPU)} / {total('handler_requests_total')}", WHO)],
            "Of the workers alone.",
        ),
        panel(
            "Cost of a million predictions",
            "none",
            [
                (f"{MILLION_HOURS} * ({ALL_CPU}) / {ANSWERS}", "of the processor time in use"),
                (f"{MILLION_HOURS} * sum(marctl_host_cpus) / {ANSWERS}", "of the machines as a whole"),
            ],
            "In the currency of core_hour_price. The difference is what idles.",
        ),
    ],
}


def files() -> dict[str, str]:
    """File name to content."""
    price = build.TextBoxVariable("core_hour_price").label("Price of a core for an hour").default_value("0.048")
    texts = {
        "service": dashboard("marctl-service", "Service", "Golden signals by version, and the error budget.", SERVICE),
        "traffic": dashboard(
            "marctl-traffic", "Traffic", "Who is asked, who stands in, and what is predicted.", TRAFFIC
        ),
        "workers": dashboard(
            "marctl-workers", "Workers", "Stages, batches, cache, explanations, features, log.", WORKERS
        ),
        "machine": dashboard("marctl-machine", "Machine", "Processes, host, GPU, cost.", MACHINE, [price]),
    }
    return {f"{name}.json": text for name, text in texts.items()}


def main() -> None:
    for name, text in files().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
