"""What the caller gives is not computed, and neither is what only that needs."""

from __future__ import annotations

import pytest

from dexport.errors import UserError
from dexport.runtime.given import with_given
from dexport.runtime.program import Buffer, Draw, Instruction, Program, Ref, Rows, Run
from dexport.runtime.program_check import check_program

BUFFERS = ("ids", "ids_2", "mask", "hidden", "pooled", "embeds", "sample", "image")


def _run(component: str, inputs: str, outputs: str) -> Run:
    return Run(component, *({name: (Ref(name),) for name in names.split()} for names in (inputs, outputs)))


ENCODERS: tuple[Instruction, ...] = (_run("encoder", "ids", "hidden"), _run("encoder_2", "ids_2", "pooled"))
PRELUDE = _run("prelude", "hidden mask", "embeds")


def _program(begin: tuple[Instruction, ...]) -> Program:
    program = Program(
        name="p",
        scheduler="DDIM",
        steps=1,
        size=(8, 8),
        start_step=0,
        timesteps=(1.0,),
        parameters={},
        tables={},
        buffers={name: Buffer("float32", Rows(1, per_batch=True), (4,)) for name in BUFFERS},
        request=("ids", "ids_2", "mask"),
        results=("image",),
        begin=begin,
        iterations=((_run("denoiser", "sample embeds pooled", "sample"),),),
        end=(_run("decoder", "sample", "image"),),
    )
    check_program(program)
    return program


PROGRAM = _program((*ENCODERS, PRELUDE, Draw(Ref("sample"))))


@pytest.mark.parametrize(
    ("names", "request_", "components"),
    [
        ((), ("ids", "ids_2", "mask"), ["encoder", "encoder_2", "prelude"]),
        (("ids", "mask"), ("ids", "ids_2", "mask"), ["encoder", "encoder_2", "prelude"]),
        (("hidden",), ("ids_2", "mask", "hidden"), ["encoder_2", "prelude"]),
        (("embeds",), ("ids_2", "embeds"), ["encoder_2"]),
        (("pooled", "hidden", "mask"), ("mask", "pooled", "hidden"), ["prelude"]),
        (("embeds", "pooled"), ("embeds", "pooled"), []),
    ],
)
def test_what_is_given_is_not_computed(names: tuple[str, ...], request_: tuple[str, ...], components: list[str]) -> None:
    changed = with_given(PROGRAM, names)
    assert changed.request == request_
    assert [instruction.component for instruction in changed.begin if isinstance(instruction, Run)] == components
    assert changed.begin[-1] == Draw(Ref("sample"))  # noise comes in the order of the program
    check_program(changed)


def test_a_call_that_computes_more_is_left_out_only_as_a_whole() -> None:
    program = _program((_run("encoder", "ids ids_2", "hidden pooled"), PRELUDE, Draw(Ref("sample"))))
    assert with_given(program, ("hidden", "pooled")).request == ("mask", "hidden", "pooled")
    with pytest.raises(UserError, match="buffers: expected pooled too, made with hidden, got none; give all of them"):
        with_given(program, ("hidden",))


@pytest.mark.parametrize("name", ["sample", "image", "other\n"])
def test_what_is_drawn_written_later_or_unknown_cannot_be_given(name: str) -> None:
    expected = "expected one of the inputs ids, ids_2, mask, or of what is made of them, embeds, hidden, pooled, got"
    with pytest.raises(UserError, match=expected):
        with_given(PROGRAM, (name,))


def test_a_program_that_computes_nothing_before_the_loop_names_its_inputs_only() -> None:
    plain = _program((Draw(Ref("sample")), *ENCODERS, PRELUDE))
    nothing = with_given(plain, ("embeds", "pooled"))
    with pytest.raises(UserError, match="buffers: expected one of the inputs embeds, pooled, got 'mask'; leave it out"):
        with_given(nothing, ("mask",))
