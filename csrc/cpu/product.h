// One dense product C [M, N] (+)= A [M, K] B [K, N], all row-major: brgemm.h's where torch has it.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <type_traits>

#include "brgemm.h"

namespace efcn_sparse::cpu {

// product_plain.cpp: plain loops, for fp64, and for fp32 without brgemm.
template <typename T>
void plain_product(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                   bool add);

// Consecutive columns of A, and the row of the panel where their part of B begins.
template <typename Operand>
struct Segment {
  const Operand* a;
  int64_t k, panel_row;
};

// `lda` is that of every A, `ldb` the panel's. K is even, and rows of the panel lie in pairs ("VNNI").
using SumSegments = void (*)(int64_t m, int64_t n, const Segment<c10::BFloat16>* segments, int64_t count, int64_t lda,
                             const c10::BFloat16* panel, int64_t ldb, float* c, int64_t ldc, bool add);

// The kernel for this processor: AVX-512 with bfloat16 dot products. Null without them, and with AMX: brgemm is
// faster there, and without it fp32 is.
SumSegments segments_kernel();

// What a product takes and sums in. Layout of B: rows of N, for bfloat16 rows of N pairs (k, k + 1) ("VNNI").
template <typename Operand>
struct Product;

template <>
struct Product<float> {
  using Sum = float;
  static constexpr int64_t k_multiple = 1;
  static void run(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                  int64_t ldc, bool add) {
    if (use_brgemm()) return brgemm(m, n, k, a, lda, b, ldb, c, ldc, add);
    plain_product(m, n, k, a, lda, b, ldb, c, ldc, add);
  }
  static void release() {
    if (use_brgemm()) release_brgemm(/*is_vnni=*/false);
  }
};

template <>
struct Product<c10::BFloat16> {
  using Sum = float;
  static constexpr int64_t k_multiple = 2;
  static void run(int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t lda, const c10::BFloat16* b,
                  int64_t ldb, float* c, int64_t ldc, bool add) {
    brgemm(m, n, k, a, lda, b, ldb, c, ldc, add);
  }
  static void release() { release_brgemm(/*is_vnni=*/true); }

  static bool available() { return use_brgemm() ? brgemm_has_bf16() : segments_kernel() != nullptr; }
};

template <>
struct Product<double> {
  using Sum = double;
  static constexpr int64_t k_multiple = 1;
  static void run(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b, int64_t ldb,
                  double* c, int64_t ldc, bool add) {
    plain_product(m, n, k, a, lda, b, ldb, c, ldc, add);
  }
  static void release() {}
};

// C [m, n] (+)= sum over segments of A [m, k] B [k, n].
template <typename Operand>
void sum_segments(int64_t m, int64_t n, const Segment<Operand>* segments, int64_t count, int64_t lda,
                  const Operand* panel, int64_t ldb, typename Product<Operand>::Sum* c, int64_t ldc, bool add) {
  if constexpr (std::is_same_v<Operand, c10::BFloat16>) {
    if (const auto kernel = segments_kernel()) return kernel(m, n, segments, count, lda, panel, ldb, c, ldc, add);
  }
  for (int64_t s = 0; s < count; ++s)
    Product<Operand>::run(m, n, segments[s].k, segments[s].a, lda, panel + segments[s].panel_row * ldb, ldb, c, ldc,
                          add || s > 0);
}

// Calls kernel(stored type tag, operand type tag) for a tensor's dtype on this machine.
template <typename Kernel>
void dispatch_operand(c10::ScalarType dtype, const char* name, Kernel&& kernel) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return kernel(float{}, float{});
    case c10::ScalarType::Double:
      return kernel(double{}, double{});
    case c10::ScalarType::Half:
      return kernel(c10::Half{}, float{});
    case c10::ScalarType::BFloat16:
      return Product<c10::BFloat16>::available() ? kernel(c10::BFloat16{}, c10::BFloat16{})
                                                 : kernel(c10::BFloat16{}, float{});
    default:
      TORCH_CHECK(false, name, " must be float32, bfloat16, float16 or float64, got ", dtype);
  }
}

}  // namespace efcn_sparse::cpu
