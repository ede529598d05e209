"""Lines of a trace: one per instruction, with the numbers that sums use."""

import numpy as np

from dexport.runtime.program import Combine, Draw, Index, Linear, Ref, Row, Run, Term
from dexport.runtime.trace import scale_of, trace_line


def test_every_instruction_has_its_line() -> None:
    run = Run("denoiser", {"latent": (Ref("x"), Ref("x")), "time": (Ref("t"),)}, {"noise": (Ref("eps"),)})
    assert trace_line("begin[0]", run, {}) == "begin[0] run denoiser latent=x,x time=t -> noise=eps"
    assert trace_line("begin[1]", Draw(Ref("x")), {}) == "begin[1] noise x"
    assert trace_line("end[0]", Index(Ref("t"), "times", 3), {}) == "end[0] index t = times[3]"
    terms = (Term(Ref("x"), 1.0), Term(Ref("eps", 0, 2), Linear(1.0, {"guidance": -0.5})), Term(Ref("x"), Row("weights", 2)))
    line = "iterations[1][2] combine x = 3f800000*x + bf800000*eps[0/2] + weights[2]*x"
    assert trace_line("iterations[1][2]", Combine(Ref("x"), terms), {"guidance": 4.0}) == line


def test_a_scale_is_rounded_once() -> None:
    scale = scale_of(Linear(0.1, {"a": 0.2, "b": 0.3}), {"a": 1.0, "b": 2.0})
    assert scale.dtype == np.float32 and scale == np.float32(0.1 + (0.2 + 0.6))
