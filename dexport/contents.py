"""What is inside a bundle, as lines of text for `dexport inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dexport.columns import amount, columns
from dexport.runtime.finalize.precision import asked_of
from dexport.runtime.manifest import Component, JsonObject, Manifest, Port, Variant
from dexport.runtime.strict_json import shown

_MOST_LISTED, _MOST_NAMED = 8, 4
"""Values moved out of the loop, islands and the like are counted beyond this many; `--json` has all."""


def contents(manifest: Manifest, path: Path) -> Iterator[str]:
    """The manifest in words; text that comes from the bundle's maker is printed without control characters."""
    total = sum(entry.bytes for entry in manifest.files.values())
    yield f"{path}: {amount(total, 'B')} in {len(manifest.files)} files"
    yield from columns(list(_facts(manifest)), indent="  ")
    yield "components"
    rows = columns([_component_row(name, component, manifest) for name, component in manifest.components.items()], indent="  ")
    for row, component in zip(rows, manifest.components.values()):
        yield row
        for name, detail in _component_details(component):
            yield f"    {name}: {detail}"
    yield from _quantization(manifest.recipe or {})
    yield from _hoisting(manifest.hoisting)
    yield "programs"
    yield from columns([_program_row(manifest, index) for index in range(len(manifest.programs))], indent="  ")
    yield from _golden(manifest)


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield (
        "model",
        f"{manifest.model.class_name} {shown(manifest.model.name)} (family {manifest.family}, sha256 {manifest.model.sha256[:12]}...)",
    )
    yield "made", f"{manifest.created} by dexport {manifest.dexport}, schema {manifest.schema}"
    yield "target", f"{manifest.target}, backend {manifest.backend}, precision {manifest.precision}"
    frames = f", {manifest.frames} frames at {manifest.frames_per_second} per second" if manifest.frames is not None else ""
    yield "sizes", ", ".join(f"{height}x{width}" for height, width in manifest.sizes) + f"{frames}; up to {manifest.batch} in one run"
    yield "guidance", f"{manifest.guidance.kind}, default {manifest.guidance.default:g}"
    for text in manifest.text:
        yield "text", f"{text['name']}: {text['length']} tokens"
    for plugin in manifest.plugins:
        made = f"for SM {plugin.sm} and TensorRT {plugin.tensorrt}" if plugin.sm else f"{len(plugin.files)} files of source"
        yield "plugin", f"{plugin.name}: {made}"
    if manifest.recipe is not None:
        yield "recipe", f"{shown(str(manifest.recipe.get('name')))}: {shown(str(manifest.recipe.get('summary')), 300)}"


def _component_row(name: str, component: Component, manifest: Manifest) -> tuple[str, ...]:
    files = {path for variant in component.variants for path in variant.files}
    formats = ", ".join(sorted({variant.format + (" (machine code)" if variant.native else "") for variant in component.variants}))
    return (
        name,
        f"{amount(component.parameters)} parameters",
        f"weights {amount(component.weight_bytes, 'B')}",
        f"files {amount(sum(manifest.files[path].bytes for path in files), 'B')}",
        component.precision,
        formats,
        shown(component.note) if component.note else "",
    )


def _component_details(component: Component) -> Iterator[tuple[str, str]]:
    yield "in", _ports(component.inputs)
    yield "out", _ports(component.outputs)
    if component.islands:
        yield "in fp32", _listed([shown(island) for island in component.islands])
    for variant in component.variants:
        if variant.is_kit:
            counts = Counter(product.precision for product in asked_of(variant.kernels))
            yield f"asked{_of_size(variant)}", ", ".join(f"{count} products in {shown(kind)}" for kind, count in sorted(counts.items()))
        elif variant.kernels is not None:
            yield f"kernels{_of_size(variant)}", _flat(variant.kernels)


def _of_size(variant: Variant) -> str:
    return "" if variant.size is None else f" {variant.size[0]}x{variant.size[1]}"


def _ports(ports: dict[str, Port]) -> str:
    return ", ".join(f"{name} {port.dtype}[{', '.join(map(str, port.shape))}]" for name, port in ports.items())


def _hoisting(hoisting: JsonObject) -> Iterator[str]:
    """How the denoiser was split: what the loop still holds, what runs once per prompt."""
    total, loop = hoisting.get("parameters"), hoisting.get("loop_parameters")
    if not isinstance(total, int) or not isinstance(loop, int) or not total:
        return
    yield "loop and prelude"
    yield f"  {loop / total:.1%} of the denoiser's matrix parameters run at every step ({amount(loop)} of {amount(total)})"
    moved, kept = hoisting.get("moved"), hoisting.get("kept")
    if isinstance(moved, list):
        kinds: dict[str, int] = {}
        for value in moved:
            depends = value.get("depends_on") if isinstance(value, dict) else None
            key = " and ".join(map(str, depends)) if isinstance(depends, list) and depends else "nothing"
            kinds[key] = kinds.get(key, 0) + 1
        yield "  moved out: " + (
            ", ".join(f"{count} values that depend on {shown(kind)}" for kind, count in sorted(kinds.items())) or "nothing"
        )
    if isinstance(kept, list) and kept:
        reasons = [f"{value.get('value')} ({value.get('reason')})" for value in kept if isinstance(value, dict)]
        yield "  kept in the loop: " + _listed([shown(reason) for reason in reasons])


def _quantization(recipe: JsonObject) -> Iterator[str]:
    """The bit map: per component one row per kind of layer, then what was skipped, degraded or repaired."""
    layers = [layer for layer in recipe.get("layers") or [] if isinstance(layer, dict)]
    if not layers:
        return
    yield "quantization"
    kinds: dict[tuple[str, str], list[JsonObject]] = {}
    for layer in layers:
        what = f"{layer.get('weights')} weights"
        if layer.get("activations"):
            what += f", {layer.get('activations')} {layer.get('mode')} activations"
        kinds.setdefault((str(layer.get("component")), what), []).append(layer)
    yield from columns([_kind_row(component, what, members) for (component, what), members in kinds.items()], indent="  ")
    for component, bits in (recipe.get("average_bits") or {}).items():
        if isinstance(bits, int | float):
            yield f"  {shown(component)}: {bits:.3g} bits per weight, scales and kept layers counted"
    for title in ("degraded", "repaired", "computed at build", "not taken over"):
        if found := recipe.get(title):
            yield f"  {title}: {_listed([shown(str(entry)) for entry in found])}"


def _kind_row(component: str, what: str, layers: list[JsonObject]) -> tuple[str, ...]:
    names = _listed([shown(str(layer.get("site"))) for layer in layers]) if len(layers) <= _MOST_NAMED else ""
    parameters = sum(int(layer.get("parameters", 0)) for layer in layers)
    return shown(component), shown(what), f"{len(layers)} layers", f"{amount(parameters)} weights", names


def _program_row(manifest: Manifest, index: int) -> tuple[str, ...]:
    program = manifest.programs[index]
    start = f"from step {program.start_step}" if program.start_step else ""
    guided = "guided" if program.guided else "unguided"
    return f"{program.steps} steps", f"{program.size[0]}x{program.size[1]}", program.scheduler, guided, start, program.file


def _golden(manifest: Manifest) -> Iterator[str]:
    if manifest.golden:
        yield "golden"
        yield from columns([(golden.component, f"tolerance {golden.tolerance:g}") for golden in manifest.golden], indent="  ")
    else:
        yield "golden    none: `dexport selftest` has nothing to compare"
    yield f"quality   {_quality(manifest.quality) if manifest.quality else 'not measured'}"


def _quality(quality: JsonObject) -> str:
    """The figures that fit a line; the report has the rest."""
    kept = {key: quality.get(key) for key in ("pictures", "psnr", "ssim", "score")}
    return f"{_flat(kept)} (against the unquantized model; see the report)"


def _listed(items: list[str]) -> str:
    rest = len(items) - _MOST_LISTED
    return ", ".join(items[:_MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _flat(value: Any) -> str:
    """JSON as "a 1, b (c 2, d 3)"; empty things are left out."""
    if isinstance(value, dict):
        return ", ".join(f"{shown(key)} {_nested(item)}" for key, item in value.items() if item not in (None, "", [], {}))
    if isinstance(value, list):
        return _listed([_flat(item) for item in value])
    return f"{value:g}" if isinstance(value, float) else shown(value)


def _nested(value: Any) -> str:
    return f"({_flat(value)})" if isinstance(value, dict | list) else _flat(value)
