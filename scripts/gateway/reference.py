"""The OpenAPI document as a page for people, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from marctl.gateway.names import Json

HEAD = """# API reference

{description}

Made by `marctl api` from the types that requests are checked with; a running gateway tells the same of its own models
at `/openapi.json`. Bodies are JSON in UTF-8 where nothing else is said.
"""
LIMITS = {
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "minimum": "{} or more",
    "exclusiveMinimum": "more than {}",
    "maximum": "{} or less",
    "exclusiveMaximum": "less than {}",
    "pattern": "`{}`",
    "format": "{}",
}
"""JSON Schema's words, and ours."""


def reference(document: Json) -> str:
    """The whole page."""
    parts = [HEAD.format(description=document["info"]["description"])]
    parts += [section(document, tag["name"]) for tag in document["tags"]]
    parts += [parameters(document), errors(document), types(document)]
    return "\n".join(parts)


def section(document: Json, tag: str) -> str:
    """The calls of one kind."""
    rows = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                call = f"`{method.upper()} {path}`"
                rows.append([call, operation["summary"], taken(operation), given(operation)])
    return f"## {tag.capitalize()}\n\n" + table(["call", "", "takes", "gives"], rows)


def taken(operation: Json) -> str:
    """The body, and what may stand in the path, the query and headers."""
    where = [
        part["$ref"].rpartition("/")[2] if "$ref" in part else part["name"] for part in operation.get("parameters", ())
    ]
    named = ", ".join(f"`{name}`" for name in where)
    return "; ".join(filter(None, (contents(operation.get("requestBody", {})), named)))


def given(operation: Json) -> str:
    """What comes back if nothing is wrong."""
    [good] = [(code, answer) for code, answer in operation["responses"].items() if code.startswith("2")]
    return contents(good[1]) + (f" ({good[0]})" if good[0] != "200" else "")


def contents(body: Json) -> str:
    """The types of a body, with those media types that are not JSON."""
    found = []
    for media, content in body.get("content", {}).items():
        kind = type_of(content["schema"])
        found.append(kind if media == "application/json" else f"`{media}`")
    return " or ".join(dict.fromkeys(found))


def parameters(document: Json) -> str:
    """Those that several calls have."""
    rows = []
    for part in document["components"]["parameters"].values():
        rows.append([f"`{part['name']}`", part["in"], part.get("description", ""), type_of(part["schema"])])
    return "## Parameters\n\n" + table(["name", "in", "", "type"], rows)


def errors(document: Json) -> str:
    """Codes and their reasons; both forms of errors have the same."""
    found = document["components"]["responses"]
    plain = {name.removeprefix("Error"): told for name, told in found.items() if name.startswith("Error")}
    rows = [[code, told["description"]] for code, told in sorted(plain.items())]
    forms = (
        "The body is an [ErrorBody](#errorbody); in the open inference protocol a [ProtocolError](#protocolerror).\n"
    )
    return "## Errors\n\n" + forms + "\n" + table(["code", "when"], rows)


def types(document: Json) -> str:
    """Every type, with its fields."""
    parts = ["## Types\n"]
    for name, schema in document["components"]["schemas"].items():
        parts.append(f"### {name}\n")
        if told := schema.get("description"):
            parts.append(" ".join(told.split()) + "\n")
        if fields := schema.get("properties"):
            parts.append(table(["field", "type", ""], list(field_rows(fields, schema.get("required", [])))))
        else:
            parts.append(type_of(schema) + "\n")
    return "\n".join(parts)


def field_rows(fields: Mapping[str, Json], required: list[str]) -> Iterator[list[str]]:
    for name, schema in fields.items():
        told = [" ".join(schema["description"].split())] if "description" in schema else []
        told += [words.format(schema[key]) for key, words in LIMITS.items() if key in schema]
        if schema.get("default") is not None:
            told.append(f"`{json.dumps(schema['default'])}` if left out")
        elif name not in required:
            told.append("may be left out")
        yield [f"`{name}`", type_of(schema), "; ".join(told)]


def type_of(schema: Any) -> str:
    """In a few words, with links to the types that have a name."""
    if not schema:
        return "anything"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.replace('.', '').lower()})"
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(map(type_of, several)))
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    return plain_type(schema)


def plain_type(schema: Json) -> str:
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        parts = schema.get("prefixItems")
        return f"[{', '.join(map(type_of, parts))}]" if parts else f"list of {type_of(schema.get('items'))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {type_of(schema['additionalProperties'])}"
    return str(kind)


def table(titles: list[str], rows: list[list[str]]) -> str:
    """A bar in a cell would end it."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
