"""The report inside a bundle: what a build wrote there is kept when a comparison adds quality and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dexport.errors import UserError
from dexport.exporter.quality import quality_to_json
from dexport.exporter.report.data import Remark, ReportData, Sensitivity, SiteBits
from dexport.exporter.report.page import JSON_NAME, PAGE_NAME, write_report
from dexport.runtime.bundle import Bundle, open_bundle
from dexport.runtime.bundle_writer import BundleWriter, copy_file
from dexport.runtime.strict_json import parse_json

FOLDER = "report"
_MAX_BYTES = 16 << 20


def with_stored(data: ReportData, bundle: Bundle) -> ReportData:
    """`data` with what only the build could know: bits, sensitivity, skipped and degraded sites, estimated times.

    Raises:
        UserError: the bundle's report is damaged.
    """
    name = f"{FOLDER}/{JSON_NAME}"
    if name not in bundle.manifest.files:
        return data
    where = f"{bundle.path}: {name}"
    document = parse_json(bundle.read_bytes(name), where, max_bytes=_MAX_BYTES)
    try:
        return replace(data, **_of_the_build(document))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise UserError(where, expected="a report of dexport", got=got, fix="get the bundle again or rebuild it") from error


def attach_report(path: Path, data: ReportData) -> None:
    """Replaces a bundle by the same with this report and its quality; the old one stays until the new one is complete.

    Raises:
        UserError: not a bundle.
        Failure: the disk is full.
    """
    bundle = open_bundle(path, trust=True)  # its machine code is copied, not run
    kept = [relative for relative in bundle.manifest.files if not relative.startswith(f"{FOLDER}/")]
    packed = not path.is_dir()
    with BundleWriter(path, needed_bytes=sum(bundle.manifest.files[relative].bytes for relative in kept) if packed else 0) as writer:
        for relative in kept:
            copy_file(bundle, relative, writer.directory / relative, link=not packed)  # the old folder goes when the new one takes its name
        write_report(data, writer.directory / FOLDER)
        quality = bundle.manifest.quality if data.quality is None else quality_to_json(data.quality)
        writer.finish(replace(bundle.manifest, quality=quality, report=f"{FOLDER}/{PAGE_NAME}"))


def _of_the_build(document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ReportData` that a comparison cannot fill."""
    return {
        "bit_map": {
            str(component): {str(site): _site_bits(bits) for site, bits in sites.items()}
            for component, sites in document["bit_map"].items()
        },
        "sensitivity": {
            str(component): Sensitivity(
                metric=str(found["metric"]),
                ranges=tuple(map(str, found["ranges"])),
                sites={str(site): tuple(map(float, values)) for site, values in found["sites"].items()},
            )
            for component, found in document["sensitivity"].items()
        },
        "skipped": tuple(_remark(entry) for entry in document["skipped"]),
        "degraded": tuple(_remark(entry) for entry in document["degraded"]),
        "latency_ms": {str(component): float(value) for component, value in document["latency_ms"].items()},
    }


def _site_bits(entry: Mapping[str, Any]) -> SiteBits:
    return SiteBits(
        weights=str(entry["weights"]),
        weight_bits=float(entry["weight_bits"]),
        activations=str(entry["activations"]),
        mode=str(entry["mode"]),
        parameters=int(entry["parameters"]),
    )


def _remark(entry: Mapping[str, Any]) -> Remark:
    return Remark(str(entry["component"]), str(entry["site"]), str(entry["reason"]))
