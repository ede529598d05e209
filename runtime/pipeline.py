"""A loaded bundle, called like a diffusers pipeline: pictures out, without PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from tokenizers import Tokenizer

from dexport.errors import UserError
from dexport.runtime.bundle import Bundle, open_bundle
from dexport.runtime.engines import Engine, open_engine
from dexport.runtime.given import with_given
from dexport.runtime.interpreter import run_program
from dexport.runtime.manifest import ProgramEntry
from dexport.runtime.noise import GivenNoise, Noise, PhiloxNoise, PicturesNoise, TorchNoise
from dexport.runtime.program import Program, program_from_json
from dexport.runtime.program_check import check_program
from dexport.runtime.request import Asked, request_buffers
from dexport.runtime.text import Tokens, tokenize

Array = npt.NDArray[Any]
GUIDANCE_SCALE = "guidance_scale"
MAX_PICTURES = 65536
"""Of one request; what the manifest's schema allows as a batch."""

StepCallback = Callable[["Pipeline", int, float, dict[str, Array]], object]


@dataclass(frozen=True)
class Output:
    """What a call returns.

    Attributes:
        images: PIL images, or uint8 [pictures, H, W, 3]; for videos their first frames.
        frames: uint8 [pictures, frames, H, W, 3] for videos, else None.
        seconds: wall time of the run by component name, and "total".
        program: name of the sampling program that ran.
    """

    images: list[Image.Image] | Array
    frames: Array | None
    seconds: Mapping[str, float]
    program: str


def load(path: str | Path, *, trust: bool = False, verify: Literal["full", "sizes"] = "full", keep: bool = True) -> Pipeline:
    """Opens a bundle for running; engines are loaded when they are first needed.

    Args:
        trust, verify: see `open_bundle`.
        keep: see `Pipeline`.

    Raises:
        UserError: not a bundle, damaged, or its native code is not trusted (see `open_bundle`).
    """
    return Pipeline(open_bundle(path, trust=trust, verify=verify), keep=keep)


class Pipeline:
    """Runs the programs of one bundle. A context manager; `close` frees the engines.

    Args:
        bundle: an opened bundle.
        keep: keep engines loaded between calls. If False, each is freed after its last use in a run, for small devices.
    """

    def __init__(self, bundle: Bundle, *, keep: bool = True) -> None:
        self.bundle = bundle
        self._keep = keep
        self._engines: dict[tuple[str, tuple[int, int]], Engine] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._programs: dict[str, Program] = {}
        self._interrupted = False

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Frees every engine."""
        while self._engines:
            self._engines.popitem()[1].close()

    @property
    def loaded(self) -> frozenset[str]:
        """The components whose engines are in memory now."""
        return frozenset(name for name, _ in self._engines)

    def interrupt(self) -> None:
        """Makes the current run stop with `Cancelled` before its next instruction, or the next run where none goes on.

        May be called from a callback or another thread.
        """
        self._interrupted = True

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        class_labels: int | Sequence[int] | None = None,
        num_inference_steps: int | None = None,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: Any = None,
        latents: Array | None = None,
        noise: Literal["torch", "philox"] = "torch",
        buffers: Mapping[str, Array] | None = None,
        callback_on_step_end: StepCallback | None = None,
        output_type: Literal["pil", "np"] = "pil",
    ) -> Output:
        """Makes pictures.

        Args:
            seed: as in `torch.Generator("cpu").manual_seed(seed)`: a seed gives the picture that it gives in diffusers. A list
                gives one per picture. None draws one from the system.
            generator: instead of `seed`, a torch.Generator (its initial seed is used) or a list of them.
            latents: the initial noise itself [pictures, C, h, w], instead of a seed; only for samplers that draw no noise later.
            buffers: inputs of the program by name, instead of what a prompt or label is turned into, such as token ids; or what is
                computed of them before the first step, such as "prompt_embeds", which then is not computed. Rows of the
                unconditional half go first.
            callback_on_step_end: called with this pipeline, step index, timestep and {"latents": a copy} after each model call.

        Raises:
            UserError: steps, size or guidance that the bundle lacks (the error lists those present), a wrong condition or buffer.
            Failure: an engine failed or gave NaN.
            Cancelled: `interrupt` was called.
        """
        started = time.perf_counter()
        pictures = _pictures(prompt if prompt is not None else class_labels, num_images_per_prompt)
        prompts = _listed(prompt, num_images_per_prompt)
        labels = _listed(class_labels, num_images_per_prompt)
        negatives = _per_picture(negative_prompt, pictures, num_images_per_prompt)
        manifest = self.bundle.manifest
        size = (height or manifest.sizes[0][0], width or manifest.sizes[0][1])
        scale = manifest.guidance.default if guidance_scale is None else guidance_scale
        entry, program = self._program(num_inference_steps, size, scale)
        parameters = {GUIDANCE_SCALE: scale}
        if buffers:
            program = with_given(program, buffers)
        asked = Asked(prompts, negatives, labels, parameters, buffers or {})
        request = request_buffers(manifest.text, manifest.requests, program, entry.guided, asked, pictures, self._tokens)
        seconds: dict[str, float] = {}
        components = {name: self._timed(name, size, seconds) for name in self.bundle.manifest.components}
        try:
            results = run_program(
                program,
                components,
                request,
                parameters={n: v for n, v in parameters.items() if n in program.parameters},
                noise=_noise(seed, generator, latents, noise, pictures),
                tables=self.bundle.tensors(entry.tables) if entry.tables else {},
                batch=pictures,
                on_step=None if callback_on_step_end is None else self._step(callback_on_step_end),
                cancel=lambda: self._interrupted,
                release=None if self._keep else lambda name: self._release(name, size),
            )
        finally:
            self._interrupted = False  # not at the start: an interrupt may come before it
            if not self._keep:  # a run that stops half-way leaves engines behind
                self.close()
        seconds["total"] = time.perf_counter() - started
        return _output([results[name] for name in program.results], output_type, seconds, program.name)

    def _program(self, steps: int | None, size: tuple[int, int], scale: float) -> tuple[ProgramEntry, Program]:
        """The program of a request; without guidance if the scale turns it off and the bundle has such a program."""
        entries = self.bundle.manifest.programs
        guided = self.bundle.manifest.guidance.kind == "classifier-free" and scale > 1
        wanted = entries[0].steps if steps is None else steps
        for entry in entries:
            if (entry.steps, entry.size, entry.guided) == (wanted, size, guided):
                if entry.file not in self._programs:  # checking one takes longer than some runs
                    self._programs[entry.file] = load_program(self.bundle, entry)
                return entry, self._programs[entry.file]
        present = ", ".join(sorted({f"{e.size[0]}x{e.size[1]} in {e.steps} steps" for e in entries}))
        fix = f"rebuild with --size {size[0]}x{size[1]} --steps {wanted}"
        raise UserError(str(self.bundle.path), expected=f"one of {present}", got=f"{size[0]}x{size[1]} in {wanted} steps", fix=fix)

    def _tokens(self, name: str, prompts: Sequence[str]) -> Tokens:
        if name not in self._tokenizers:
            entry = next(e for e in self.bundle.manifest.text if e["name"] == name)
            self._tokenizers[name] = load_tokenizer(self.bundle, entry["tokenizer"])
        return tokenize(self._tokenizers[name], prompts, name)

    def _timed(self, name: str, size: tuple[int, int], seconds: dict[str, float]) -> Callable[[dict[str, Array]], Mapping[str, Array]]:
        def call(inputs: dict[str, Array]) -> Mapping[str, Array]:
            started = time.perf_counter()
            if (name, size) not in self._engines:
                self._engines[name, size] = open_engine(self.bundle, name, size)
            outputs = self._engines[name, size](inputs)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
            return outputs

        return call

    def _step(self, callback: StepCallback) -> Callable[[int, float, Mapping[str, Array]], None]:
        def on_step(index: int, timestep: float, buffers: Mapping[str, Array]) -> None:
            callback(self, index, timestep, {"latents": buffers["sample"].copy()})

        return on_step

    def _release(self, name: str, size: tuple[int, int]) -> None:
        engine = self._engines.pop((name, size), None)
        if engine is not None:
            engine.close()


def load_program(bundle: Bundle, entry: ProgramEntry) -> Program:
    """Reads and checks one program of a bundle."""
    program = program_from_json(bundle.read_bytes(entry.file), f"{bundle.path}: {entry.file}")
    check_program(program, bundle.manifest.components)
    return program


def load_tokenizer(bundle: Bundle, relative: str) -> Tokenizer:
    """Reads one tokenizer of a bundle.

    Raises:
        UserError: the file is no tokenizer.
    """
    try:
        return Tokenizer.from_str(bundle.read_bytes(relative).decode("utf-8"))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{bundle.path}: {relative}", expected="a tokenizer.json", got=reason, fix="rebuild the bundle") from error


def _pictures(conditions: Any, repeats: int) -> int:
    """How many pictures a request makes: `repeats` for each prompt or label, or for the one condition of a model without any."""
    count = 1 if conditions is None or isinstance(conditions, str | int) else len(conditions)
    if count == 0 or repeats < 1:
        fix = "give a prompt or a class label, and a number of pictures"
        raise UserError("request", expected="at least one picture", got="none", fix=fix)
    if count * repeats > MAX_PICTURES:
        got = f"{repeats} for each of {count} conditions"
        raise UserError("request", expected=f"at most {MAX_PICTURES} pictures", got=got, fix="ask for fewer at once")
    return count * repeats


def _listed(value: Any, repeats: int) -> list[Any] | None:
    """One entry per picture: every prompt or label `repeats` times in a row, as diffusers orders them."""
    if value is None:
        return None
    items = [value] if isinstance(value, str | int) else list(value)
    return [item for item in items for _ in range(repeats)]


def _per_picture(negative: str | Sequence[str] | None, pictures: int, repeats: int) -> list[str] | None:
    if negative is None:
        return None
    found = [negative] * pictures if isinstance(negative, str) else _listed(negative, repeats) or []
    if len(found) != pictures:
        expected = f"one negative prompt, or one per prompt ({pictures // repeats})"
        raise UserError("negative prompt", expected=expected, got=f"{len(found) // repeats}", fix="give as many")
    return found


def _noise(seed: Any, generator: Any, latents: Array | None, kind: str, pictures: int) -> Noise:
    if latents is not None:
        return GivenNoise([latents])
    if generator is not None:
        seed = [g.initial_seed() for g in generator] if isinstance(generator, list | tuple) else generator.initial_seed()
    if seed is None:
        seed = int(np.random.SeedSequence().entropy) % 2**32  # type: ignore[arg-type]
    stream = TorchNoise if kind == "torch" else PhiloxNoise
    if isinstance(seed, int):
        return stream(seed)
    if len(seed) != pictures:
        raise UserError("seed", expected=f"one seed, or one per picture ({pictures})", got=f"{len(seed)}", fix="give as many")
    return PicturesNoise([stream(int(s)) for s in seed])


def _output(results: list[Array], output_type: str, seconds: Mapping[str, float], program: str) -> Output:
    chunks = [r if r.ndim == 5 else r[:, None] for r in results]
    frames = np.concatenate(chunks, axis=1) if len(chunks) > 1 else chunks[0]
    images = frames[:, 0]
    shown = [Image.fromarray(i) for i in images] if output_type == "pil" else images
    return Output(shown, frames if frames.shape[1] > 1 else None, seconds, program)
