"""`marctl build` and `inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from marctl.cli.output import json_option, keys_option, note, recipes_option, result, store_option
from marctl.core.errors import UserError

if TYPE_CHECKING:
    from marctl.build.recipe import Version
    from marctl_handlers.core.settings import Settings

BRIEF = 200


@click.command()
@json_option
@click.argument("model", required=False)
@click.argument("version", required=False)
@recipes_option
@store_option
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, path_type=Path),
    help="Folder written by save_pretrained, or a model's file: write a recipe for it and build that.",
)
@click.option("--name", help="With --from: the model's name.")
@click.option("--version", "new_version", help="With --from: its version.")
@click.option(
    "--samples",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --from: JSONL of requests to check it with.",
)
@click.option(
    "--features",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --from FILE: the feature specification of a model for tables, in YAML or JSON.",
)
@click.option(
    "--background",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --from FILE: CSV or Parquet of training rows; explanations compare with a sample of them.",
)
@click.option("--explain", is_flag=True, help="With --from: with explainer workers, too.")
@click.option(
    "--task", help="With --from: its task, or ./a_file.py [default: multiple_choice for a folder, tabular for a file]."
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="With --from: a setting of the task, in YAML."
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "int8"]),
    help="With --from: arithmetic [default: auto].",
)
@click.option(
    "--sign",
    "key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="KEY",
    help="Sign what is built with this private key; what it has not signed yet is built anew.",
)
@click.option("--record", is_flag=True, help="First record anew what the samples of MODEL VERSION are answered.")
@click.option("--force", is_flag=True, help="Build even if nothing changed; with --from, replace the recipe.")
def build(
    model: str | None,
    version: str | None,
    recipes: Path,
    store: Path,
    source: Path | None,
    name: str | None,
    new_version: str | None,
    samples: Path | None,
    features: Path | None,
    background: Path | None,
    explain: bool,
    task: str | None,
    settings: tuple[str, ...],
    precision: str | None,
    key: Path | None,
    record: bool,
    force: bool,
) -> None:
    """Build the archives of all recipes with `autostart`, of one MODEL, or of one VERSION.

    Only what changed is built. Every archive is packed reproducibly, loaded again from the finished file, and asked its
    sample questions; one that answers otherwise than expected is not kept.

    \b
    Example: marctl build
             marctl build mcqa 2.0 --sign release.key
             marctl build my-qa 1.0 --record
             marctl build --from ./my_model --name my-qa --version 1.0
             marctl build --from model.json --features features.yaml --name risk --version 1.0
    """
    if record and not (model and version):
        raise click.UsageError("--record rewrites a recipe; name its MODEL and VERSION")
    from marctl.build.adopt import adopt, default_task, read_samples, refuse_place
    from marctl.build.build import Builds
    from marctl.build.lone_file import ModelFile
    from marctl.build.reader import read_archive
    from marctl.cli.signing import unlock

    signer = unlock(key) if key else None
    if source is not None:
        if not name or not new_version or model:
            raise click.UsageError("--from takes --name and --version, and no MODEL; see the example in --help")
        refuse_place(recipes, name, new_version, force=force)
        requests = read_samples(samples, task or default_task(source)) if samples else []
        own = dict(map(setting, settings)) | ({"precision": precision} if precision else {})
        adopted = source if source.is_dir() else ModelFile(source, features, background)
        versions = [
            adopt(
                adopted,
                name,
                new_version,
                recipes,
                requests,
                task=task,
                explain=explain,
                force=force,
                notify=note,
                **own,
            )
        ]
    elif name or new_version or samples or features or background or explain or settings:
        raise click.UsageError("the options that say `With --from` go with --from")
    else:
        versions = choose(recipes, model, version)
        if record:
            versions = [recorded(item) for item in versions]
    built = []
    with Builds(store, key=signer, notify=note) as builds:
        begun = [builds.begin(item, force=force) for item in versions]
        archives = [future.result() for future in begun]
    for item, (path, fresh) in zip(versions, archives, strict=True):
        archive = read_archive(path)
        built.append(
            {
                "archive": str(path),
                "model": item.model,
                "version": item.version,
                "sha256": archive.sha256,
                "built": fresh,
                "signed": signer is not None,
            }
        )
    result({"archives": built}, "\n".join(map(line_of, built)))


def line_of(built: dict[str, Any]) -> str:
    """An archive, and what became of it."""
    outcome = "built" if built["built"] else "up to date"
    return f"{built['archive']}  {outcome}  sha256 {built['sha256']}" + ("  signed" if built["signed"] else "")


def recorded(version: Version) -> Version:
    """The version after its samples' answers were written into its recipe anew."""
    from marctl.build.record import record_anew

    note(f"{version}: recording what its samples are answered")
    return record_anew(version, note)


def setting(text: str) -> tuple[str, Any]:
    """Name and value of `labels=[good, bad]`. Raises UsageError."""
    from marctl.core.yaml_text import YamlInvalid, read_yaml

    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise click.UsageError(f"--set {text!r}: expected NAME=VALUE, such as threshold=0.3")
    try:
        return name, read_yaml(value)
    except YamlInvalid as err:
        raise click.UsageError(f"--set {name}: {err}") from err


def choose(recipes: Path, model: str | None, version: str | None) -> list[Any]:
    """The recipes meant by the arguments; raises UserError telling which there are."""
    from marctl.build.recipe import find_versions, read_version

    if model and version and (recipes / model / version).is_dir():
        return [read_version(recipes / model / version)]
    chosen = [v for v in find_versions(recipes, model) if version in (None, v.version)]
    if not chosen:
        wanted = f"{recipes}/{model or '*'}/{version or '*'}/model.yaml"
        there = ", ".join(map(str, find_versions(recipes))) or "none"
        raise UserError(f"no recipe {wanted}; there are: {there}. Bring a model of your own with `marctl build --from`")
    return chosen


@click.command()
@json_option
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--verify", "check", is_flag=True, help="Load the archive, which runs its code, and ask its samples, too."
)
@keys_option
def inspect(file: Path, check: bool, keys: Path | None) -> None:
    """Show what an archive holds, without running anything in it.

    With --keys it must be signed by one of those, before anything of it is loaded.

    Example: marctl inspect model_store/archives/mcqa-2.0.mar
    """
    from marctl.build.reader import read_archive
    from marctl.build.verify import verify
    from marctl.signing.envelope import read_envelope
    from marctl.signing.trust import Trust

    archive = read_archive(file)
    signer = Trust(keys).check(file, archive.statement) if keys else None
    if check and archive.samples:
        note(f"{archive.name} {archive.version}: asking its samples")
        verify(file)
    elif check:
        raise UserError(f"{file}: carries no samples to verify it with; build it with `marctl build`")
    content = {
        "archive": str(file),
        "model": archive.name,
        "version": archive.version,
        "sha256": archive.sha256,
        "bytes": sum(archive.files.values()),
        "verified": check,
        **computed_in(archive.metadata, archive.task.settings_type),
        "signed_by": [each.keyid for each in envelope.signatures] if (envelope := read_envelope(file)) else [],
        "signer": signer,
        "metadata": {key: value for key, value in archive.metadata.items() if key != "files"},
        "samples": [{"request": sample.request, "expected": sample.expected} for sample in archive.samples],
        "files": archive.files,
    }
    result(content, describe(content))


def computed_in(metadata: Mapping[str, Any], settings_type: type[Settings]) -> dict[str, str]:
    """Where a version computes, and in which numbers this machine's processor would, if that depends on it."""
    device = metadata.get("device", "cpu")
    told = {"cuda": ["on an NVIDIA GPU, nowhere else"], "auto": ["on an NVIDIA GPU where the node has one"]}
    places = told.get(device, [])
    import msgspec

    defaults = {field.name: field.default for field in msgspec.structs.fields(settings_type)}
    precision = metadata.get("settings", {}).get("precision", defaults.get("precision"))
    if precision is not None and device != "cuda":
        from marctl_handlers.text.processor import Processor

        here = Processor.here()
        numbers = here.numbers(precision)
        if numbers == "int8" and (left := metadata.get("ranges", {}).get("in_floating_point")):
            numbers += f" but {len(left)} products in {here.numbers('auto')}"
        places = [*places, f"{numbers} on this processor: {here}"]
    return {"computed_in": "; ".join(places)} if places else {}


def describe(content: dict[str, Any]) -> str:
    """The same for people: short facts, then the samples, then the files, handlers and all."""
    known = content["metadata"]
    libraries = ", ".join(f"{name} {version}" for name, version in known.get("libraries", {}).items())
    facts = {
        "archive": content["archive"],
        "model": f"{content['model']} {content['version']}",
        "sha256": content["sha256"],
        "size": f"{content['bytes']:,} bytes in {len(content['files'])} files",
        "task": known.get("task"),
        "what": known.get("description"),
        "settings": ", ".join(f"{name} {value}" for name, value in known.get("settings", {}).items()),
        "computed in": content.get("computed_in"),
        "licence": known.get("licence"),
        "trained": known.get("trained"),
        "verified with": libraries,
        "signed": signed(content),
    }
    lines = [f"{key:<14} {value}" for key, value in facts.items() if value]
    for split, scores in known.get("accuracy", {}).items():
        shares = ", ".join(f"{name} {100 * score['accuracy']:.1f} %" for name, score in scores.items())
        lines.append(f"{'accuracy, ' + split:<14} {shares}")
    for sample in content["samples"]:
        lines.append(f"{'sample':<14} {brief(sample['request'])} -> {brief(sample['expected'])}")
    return "\n".join([*lines, "", *(f"{size:>12,}  {name}" for name, size in content["files"].items())])


def signed(content: dict[str, Any]) -> str | None:
    """By whom, and whether that was checked."""
    if content["signer"]:
        return f"by {content['signer']}"
    ids = ", ".join(f"{each[:16]}..." for each in content["signed_by"])
    return f"by key {ids}; not checked, name the keys that you trust: --keys FOLDER" if ids else None


def brief(content: dict[str, Any]) -> str:
    """JSON in one short line."""
    text = json.dumps(content, ensure_ascii=False)
    return text if len(text) <= BRIEF else text[: BRIEF - 1] + "…"
