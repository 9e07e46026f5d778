"""The `marctl` command.

Every command takes `--state DIR` and `--json`. Its result goes to standard output: text for people, or with `--json`
one line of JSON. Progress and warnings go to standard error. A failure that the operator can mend is told as
`error: ...` on standard error, and with `--json` also as {"error": <short name>, "detail": <text>} on standard output.

Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted.
"""

from __future__ import annotations

from typing import Any

import click

from marctl.cli.group import LazyGroup
from marctl.cli.output import WANTS_JSON, emit_json
from marctl.core.errors import UserError, short_name

COMMANDS = {
    "Set up": {
        "init": "marctl.cli.starter:init",
        "doctor": "marctl.cli.doctor:doctor",
        "completion": "marctl.cli.completion:completion",
    },
    "Build": {
        "build": "marctl.cli.archive:build",
        "inspect": "marctl.cli.archive:inspect",
        "sign": "marctl.cli.signing:sign",
        "verify": "marctl.cli.signing:verify",
        "keys": "marctl.cli.signing:keys",
        "export": "marctl.cli.export:export",
    },
    "Serve": {
        "up": "marctl.cli.server:up",
        "down": "marctl.cli.server:down",
        "drain": "marctl.cli.server:drain",
        "register": "marctl.cli.models:register",
        "unregister": "marctl.cli.models:unregister",
        "default": "marctl.cli.models:default",
        "scale": "marctl.cli.models:scale",
        "autoscale": "marctl.cli.capacity:autoscale",
        "state": "marctl.cli.state:state",
        "history": "marctl.cli.history:history",
        "rollback": "marctl.cli.history:rollback",
    },
    "Traffic": {
        "route": "marctl.cli.route:route",
        "shadow": "marctl.cli.shadow:shadow",
    },
    "Predict": {
        "api": "marctl.cli.api:api",
        "ask": "marctl.cli.ask:ask",
        "batch": "marctl.cli.batch:batch",
        "features": "marctl.cli.features:features",
    },
    "Observe": {
        "status": "marctl.cli.server:status",
        "check": "marctl.cli.server:check",
        "logs": "marctl.cli.logs:logs",
        "log": "marctl.cli.log:log",
        "cache": "marctl.cli.cache:cache",
        "cost": "marctl.cli.capacity:cost",
    },
    "Train": {
        "train": "marctl.cli.training:train",
        "eval": "marctl.cli.training:evaluate",
        "calibrate": "marctl.cli.calibration:calibrate",
        "quantize": "marctl.cli.quantization:quantize",
    },
}
"""By section, in the order of the help; `module:function`, imported when it is needed."""


class Marctl(LazyGroup):
    """Turns expected failures into messages."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as err:
            click.echo(f"error: {err}", err=True)
            if ctx.meta.get(WANTS_JSON):
                emit_json({"error": short_name(err), "detail": str(err)})
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)


@click.command(
    cls=Marctl,
    places=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="torchserve-marctl", prog_name="marctl")
def main() -> None:
    """Build model archives, serve them with TorchServe, and change what is served without a gap.

    Example: marctl up
    """
