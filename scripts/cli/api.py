"""`marctl api`."""

from __future__ import annotations

from pathlib import Path

import click

from marctl.cli.output import json_option, recipes_option, result


@click.command()
@json_option
@recipes_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file instead.")
def api(recipes: Path, out: Path | None) -> None:
    """Show what the gateway answers, as a page made from the types of the recipes' models.

    With --json it is the OpenAPI document, from which clients are generated. Nothing needs to run.

    Example: marctl api --out API.md
    """
    from marctl.build.build import declared
    from marctl.build.recipe import find_versions
    from marctl.core.errors import UserError
    from marctl.core.files import write_atomically
    from marctl.gateway import batch
    from marctl.gateway.openapi import document
    from marctl.gateway.reference import reference
    from marctl.gateway.settings import GatewaySettings

    found = find_versions(recipes)
    if not found:
        raise UserError(f"no recipe in {recipes}; expected MODEL/VERSION/model.yaml")
    served: dict[str, list[str]] = {}
    for version in found:
        served.setdefault(version.model, []).append(version.version)
    told = {version.model: declared(version.task) for version in found}
    made = document(served, told, batch.sections(GatewaySettings(batch="127.0.0.1:1")))
    page = reference(made)
    if out is None:
        result(made, page.rstrip())
        return
    write_atomically(out, page)
    result({"written": str(out), "paths": len(made["paths"])}, f"{out}: {len(made['paths'])} paths")
