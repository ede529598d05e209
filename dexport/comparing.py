"""`dexport compare`: two bundles or pipelines, the same prompts and noise, one report."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dexport.building import export_extra
from dexport.errors import UserError
from dexport.exporter.options import parse_size
from dexport.exporter.prompts import read_prompts
from dexport.progress import reporting
from dexport.runtime.bundle import open_bundle

if TYPE_CHECKING:
    from dexport.exporter.quality import Quality
    from dexport.exporter.report.data import ReportData


@dataclass(frozen=True, kw_only=True)
class CompareRequest:
    """The arguments of `dexport compare`, as typed."""

    reference: str
    candidate: str
    output: Path
    prompts: Path | None = None
    seeds: int = 1
    steps: int | None = None
    size: str | None = None
    guidance: float | None = None
    scorer: str | None = None
    json_output: Path | None = None
    write: bool = False
    trust: bool = False


def compare_command(request: CompareRequest) -> None:
    """Compares, writes the report and says the figures.

    Raises:
        UserError: whatever is wrong with the request, before the work where that can be known.
    """
    _check_outputs(request)
    start = time.monotonic()
    with export_extra(), reporting() as report:
        report("import torch and diffusers", None)
        from dexport.exporter.compare import Asked, compare
        from dexport.exporter.report.data import report_to_json
        from dexport.exporter.report.page import report_page
        from dexport.exporter.report.stored import attach_report, with_stored
        from dexport.exporter.scorer import load_scorer
        from dexport.exporter.sides import BundleSide, open_side

        asked = Asked(
            prompts=None if request.prompts is None else read_prompts(request.prompts),
            seeds=request.seeds,
            steps=request.steps,
            size=None if request.size is None else parse_size(request.size),
            guidance=request.guidance,
            scorer=None if request.scorer is None else (request.scorer, load_scorer(request.scorer)),
        )
        reference, candidate = (open_side(side, trust=request.trust) for side in (request.reference, request.candidate))
        if request.write and not isinstance(candidate, BundleSide):
            raise UserError("--write", expected="a bundle as the second side", got=request.candidate, fix="leave --write out")
        data = compare(reference, candidate, asked, _typed(request), report)
        if isinstance(candidate, BundleSide):
            data = with_stored(data, open_bundle(candidate.path, trust=request.trust, verify="sizes"))
        request.output.write_text(report_page(data), encoding="utf-8")
        if request.json_output is not None:
            request.json_output.write_text(json.dumps(report_to_json(data), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if request.write:
            report(f"write the report into {request.candidate}", None)
            attach_report(Path(request.candidate), data)
    _say(data, request, time.monotonic() - start)


def _check_outputs(request: CompareRequest) -> None:
    for option, path in (("-o", request.output), ("--json", request.json_output)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            got = "a folder" if path.is_dir() else f"a file in {path.parent}, which does not exist"
            raise UserError(f"{option} {path}", expected="a file in a folder that exists", got=got, fix="choose another")


def _typed(request: CompareRequest) -> str:
    """The command line that gives this report again."""
    words = ["dexport", "compare", request.reference, request.candidate]
    for option, value in (
        ("--prompts", request.prompts),
        ("--steps", request.steps),
        ("--size", request.size),
        ("--guidance", request.guidance),
        ("--scorer", request.scorer),
    ):
        words += [] if value is None else [option, str(value)]
    words += ["--seeds", str(request.seeds)] if request.seeds != 1 else []
    return shlex.join([*words, "-o", str(request.output)])


def _say(data: ReportData, request: CompareRequest, seconds: float) -> None:
    assert data.quality is not None
    click.echo(f"{data.candidate}, against {data.reference}")
    for line in _figures(data.quality):
        click.echo(f"  {line}")
    places = [
        str(request.output),
        *([str(request.json_output)] if request.json_output else []),
        *([request.candidate] if request.write else []),
    ]
    click.echo(f"wrote {', '.join(places)} in {seconds:.1f} s")


def _figures(quality: Quality) -> list[str]:
    lines = [
        f"PSNR    {quality.psnr.median:.2f} dB median of {quality.pictures} pictures, 10th percentile {quality.psnr.p10:.2f}",
        f"SSIM    {quality.ssim.median:.4f} median, 10th percentile {quality.ssim.p10:.4f}",
    ]
    if quality.latent_cosine:
        lines.append(f"latent  cosine {quality.latent_cosine[-1]:.6f}, SNR {quality.latent_snr[-1]:.1f} dB after the last step")
    if quality.score is not None:
        score = quality.score
        interval = f"95 % interval {score.low:+.4f} to {score.high:+.4f}"
        lines.append(f"score   {score.candidate:.4f}, reference {score.reference:.4f}, change {score.change:+.4f} ({interval})")
    return lines
