#pragma once

namespace dexport {

/// Whether int8 GEMMs of OpenVINO on this processor give what exact arithmetic gives; tried once.
///
/// On x86 without VNNI or AMX the plugin's int8 GEMM adds pairs of products in 16 bits and saturates; measured on AVX2, results
/// are wrong by 20 to 30 % of their range, and slower than in fp32. So a small GEMM with large numbers is tried first, and
/// where it comes out wrong the integers are multiplied in fp32, which is exact.
[[nodiscard]] bool int8_is_exact();

}  // namespace dexport
