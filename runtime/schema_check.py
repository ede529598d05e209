"""The JSON Schemas in `schemas/`: checks a document, and says in one line what is wrong with it and where.

Unlike the standard, 1.0 is no integer here, so that none has to be converted. The C++ runtime says the same in the same words.
"""

import functools
import json
from importlib import resources
from typing import Any

import jsonschema

from dexport.errors import UserError
from dexport.runtime.strict_json import shown

_REBUILD = "get the bundle again or rebuild it"

_WORDS = {
    "const": "{}",
    "minimum": "a number from {}",
    "maximum": "a number up to {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "minProperties": "at least {} keys",
    "maxProperties": "at most {} keys",
    "maxLength": "at most {} characters",
}


@functools.cache
def schema_named(name: str) -> dict[str, Any]:
    """The schema "manifest" or "program"."""
    document: dict[str, Any] = json.loads((resources.files("dexport.runtime") / "schemas" / f"{name}.schema.json").read_text("utf-8"))
    return document


def check_schema(document: Any, name: str, where: str) -> None:
    """Checks a document that `parse_json` returned.

    Args:
        document: the document.
        name: of its schema.
        where: what to call it in errors.

    Raises:
        UserError: the first violation, with the place in the document and the rule that it breaks.
    """
    error = next(_validator(name).iter_errors(document), None)
    if error is None:
        return
    place = ".".join(shown(str(part), 60) for part in error.absolute_path)
    expected, got = _expected_and_got(error)
    raise UserError(f"{where}: {place}" if place else where, expected=expected, got=got, fix=_REBUILD)


def check_version(document: Any, what: str, newest: int, where: str) -> None:
    """Refuses a document of a newer schema, whose rules are not known here.

    Args:
        document: the document.
        what: it describes: "bundle".
        newest: the schema that is known.
        where: what to call the document in errors.

    Raises:
        UserError: it is newer; names the dexport that wrote it, if the document does.
    """
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, int) or schema <= newest:
        return
    writer = shown(document["dexport"], 40) if "dexport" in document else None
    raise UserError(
        where,
        expected=f"{what} schema {newest} or older",
        got=f"schema {schema}" + (f", written by dexport {writer}" if writer else ""),
        fix=f"install {f'dexport {writer} or newer' if writer else 'a newer dexport'} to read it",
    )


@functools.cache
def _validator(name: str) -> Any:
    checker = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    extend: Any = jsonschema.validators.extend
    return extend(jsonschema.Draft202012Validator, type_checker=checker)(schema_named(name))


def _expected_and_got(error: Any) -> tuple[str, str]:
    rule, value = error.validator, error.validator_value
    if rule == "required":
        return f"the key {next(key for key in value if key not in error.instance)!r}", "none"
    if rule == "additionalProperties":
        known = error.schema["properties"]
        got = f"the key '{shown(next(key for key in error.instance if key not in known))}'"
        return f"only the keys {', '.join(known)}", got
    got = shown(error.instance) if not isinstance(error.instance, str) else f"'{shown(error.instance)}'"
    if rule == "enum":
        return f"one of {', '.join(map(str, value))}", got
    words = (
        f"JSON of type {value if isinstance(value, str) else ' or '.join(value)}" if rule == "type" else _WORDS.get(rule, f"{rule} {{}}")
    )
    return error.schema.get("description", words.format(value) if rule != "type" else words), got
