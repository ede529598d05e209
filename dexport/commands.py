"""What `dexport targets`, `build`, `inspect` and `selftest` do once their arguments are read."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dexport.building import build_bundle, export_extra, plan_lines
from dexport.columns import amount, columns
from dexport.contents import contents
from dexport.errors import UserError
from dexport.estimates import estimate_lines
from dexport.exporter.options import BuildOptions, options_from
from dexport.progress import reporting

if TYPE_CHECKING:
    from dexport.targets.table import Row


def show_targets(as_json: bool) -> None:
    """Prints the table of targets."""
    from dexport.targets.table import rows

    table = rows()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in table], indent=1))
        return
    for row, line in zip(table, columns([_target_cells(row) for row in table])):
        click.echo(line if row.buildable else click.style(line, dim=True))
    click.echo("\nto build for")
    for line in columns(list(_needs(table)), indent="  "):
        click.echo(line)


def _target_cells(row: Row) -> tuple[str, ...]:
    memory = "" if row.memory_gib is None else f"{row.memory_gib:g} GiB"
    return row.id, row.name, memory, row.runtime, " ".join(row.formats) if row.buildable else row.needs


def _needs(table: Sequence[Row]) -> list[tuple[str, str]]:
    """One line per kind of target: an example of the ids, and what is needed."""
    ids: dict[str, list[str]] = {}
    for row in table:
        if row.buildable:
            ids.setdefault(row.needs, []).append(row.id)
    return [(names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}", needs) for needs, names in ids.items()]


def show_recipes(name: str | None, as_json: bool) -> None:
    """Prints the list of recipes, or one of them explained."""
    with export_extra():
        from dexport.exporter.recipe_listing import explained, recipe_rows

        rows = [] if name else recipe_rows()
        facts = list(explained(name)) if name else []
    if as_json:
        click.echo(json.dumps(facts if name else [dataclasses.asdict(row) for row in rows], indent=1))
        return
    for line in columns(facts if name else [(row.name, row.bits, row.needs, row.summary) for row in rows]):
        click.echo(line)


def build_command(flags: Mapping[str, Any], output: Path | None, config: Path | None, settings: Sequence[str], dry_run: bool) -> None:
    """Builds a bundle, or says what would be built."""
    options = build_options(flags, config, settings)
    if dry_run:
        for line in plan_lines(options):
            click.echo(line)
        return
    start = time.monotonic()
    with reporting() as report:
        report("import torch and diffusers", None)
        path = build_bundle(options, output, report)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    click.echo(f"wrote {shown}: {amount(size, 'B')} for {options.target} in {time.monotonic() - start:.1f} s")


def build_options(flags: Mapping[str, Any], config: Path | None, settings: Sequence[str]) -> BuildOptions:
    """The effective options: flags override --set, which overrides the file.

    Raises:
        UserError: an unknown key or a bad value, named with its origin; no model or no target.
    """
    from_file = _read_config(config) if config is not None else {}
    if config is not None:
        options_from({"model": "", "target": "", **from_file}, str(config))  # its mistakes are reported with its name
    from_settings = dict(_setting(text) for text in settings)
    merged = {**from_file, **from_settings, **flags}
    if not merged.get("model"):
        raise UserError(
            "MODEL", expected="a diffusers pipeline directory or a hub id", got="nothing", fix="run: dexport build MODEL --target cpu"
        )
    if not merged.get("target"):
        raise UserError("--target", expected="what to build for, such as cpu", got="nothing", fix="`dexport targets` lists all")
    return options_from(merged, "--set" if from_settings else "options")


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError("--set", expected="KEY=VALUE, such as steps=20,30", got=repr(text), fix="write it that way")
    return key.strip().replace("-", "_"), value.strip()


def _read_config(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(str(path), expected="a YAML file", got=error.strerror or "unreadable", fix="check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(str(path), expected="YAML", got=str(error), fix="correct the file") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise UserError(str(path), expected="options as KEY: VALUE", got=type(document).__name__, fix="write for example `target: cpu`")
    return document


def inspect_command(bundle: Path, as_json: bool) -> None:
    """Prints what a bundle holds, and what a run of its first program is estimated to take."""
    from dexport.runtime.bundle import open_bundle
    from dexport.runtime.workload import bundle_estimate

    opened = open_bundle(bundle, verify="sizes")
    manifest = opened.manifest
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(manifest), indent=1))
        return
    for line in contents(manifest, bundle):
        click.echo(line)
    for entry in manifest.programs[:1]:
        if found := bundle_estimate(opened, entry):
            click.echo("\n".join(estimate_lines(found, f"{entry.size[0]}x{entry.size[1]}")))


def selftest_command(bundle: Path, trust: bool) -> bool:
    """Runs the golden inputs of a bundle and prints how far off the outputs are; true if all pass.

    Raises:
        UserError: the bundle has no golden inputs.
    """
    from dexport.runtime.bundle import open_bundle
    from dexport.runtime.selftest import selftest

    checks = selftest(open_bundle(bundle, trust=trust))
    rows = [
        ("ok" if check.passed else "FAILED", check.name, f"error {check.error:.3g}", f"tolerance {check.tolerance:g}") for check in checks
    ]
    for line in columns(rows):
        click.echo(line)
    return all(check.passed for check in checks)
