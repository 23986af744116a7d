// C [M, N] (+)= sum over segments of A_s [M, K_s] B_s [K_s, N], in bfloat16: all products of a block row at once. The sums
// stay in registers from the first to the last, where a product for each segment would load and store them.
#pragma once

#include <ATen/ATen.h>

namespace efcn_sparse::cpu {

// Consecutive columns of A, and the row of the panel where their part of B begins.
template <typename Operand>
struct Segment {
  const Operand* a;
  int64_t k, panel_row;
};

// `lda` is that of every A, `ldb` the panel's. K is even, and rows of the panel lie in pairs ("VNNI").
using SumSegments = void (*)(int64_t m, int64_t n, const Segment<at::BFloat16>* segments, int64_t count, int64_t lda,
                             const at::BFloat16* panel, int64_t ldb, float* c, int64_t ldc, bool add);

// The kernel for this processor: AVX-512 with bfloat16 dot products. Null without them, and with AMX, where oneDNN's
// product is faster.
SumSegments segments_kernel();

}  // namespace efcn_sparse::cpu
