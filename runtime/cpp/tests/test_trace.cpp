#include <doctest/doctest.h>

#include "trace.h"

using namespace dexport;

TEST_CASE("every instruction has its line, as in Python") {
    const Run run = {"denoiser", {{"latent", {{"x"}, {"x"}}}, {"time", {{"t"}}}}, {{"noise", {{"eps"}}}}};
    CHECK(trace_line("begin[0]", run, {}) == "begin[0] run denoiser latent=x,x time=t -> noise=eps");
    CHECK(trace_line("begin[1]", Draw{{"x"}}, {}) == "begin[1] noise x");
    CHECK(trace_line("end[0]", Index{{"t"}, "times", 3}, {}) == "end[0] index t = times[3]");
    const Combine combine = {{"x"}, {{{"x"}, 1.0}, {{"eps", 0, 2}, Linear{1.0, {{"guidance", -0.5}}}}, {{"x"}, Row{"weights", 2}}}};
    CHECK(trace_line("iterations[1][2]", combine, {{"guidance", 4.0}}) ==
          "iterations[1][2] combine x = 3f800000*x + bf800000*eps[0/2] + weights[2]*x");
}
