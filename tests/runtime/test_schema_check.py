"""Schema errors: one line with the place, the rule in words, and what came."""

from typing import Any

import pytest

from dexport.errors import UserError
from dexport.runtime.schema_check import check_schema, schema_named


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "x.json: expected a sampling program, got a list of 0; get the bundle again or rebuild it"),
        ({}, "x.json: expected the key 'schema', got none"),
        ({"schema": 1}, "x.json: expected the key 'name', got none"),
    ],
)
def test_the_first_violation_is_named(document: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_schema(document, "program", "x.json")
    assert str(caught.value).startswith(message)


def test_every_pattern_has_words_or_says_itself() -> None:
    """What a reader sees where a name is wrong."""
    parts = [*schema_named("program")["$defs"].values(), *schema_named("manifest")["$defs"].values()]
    assert all("description" in part for part in parts if "pattern" in part)
