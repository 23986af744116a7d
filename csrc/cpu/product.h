// One dense product C [M, N] (+)= A [M, K] B [K, N], all row-major: oneDNN's batch-reduce GEMM where torch has it.
// It is the only GEMM that libtorch exports for calls inside a parallel region: cpublas::gemm is declared in a header, but
// not exported, and MKL's symbols are not promised. Nor is this one: a torch without it gets our own kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdlib>
#include <cstring>
#if __has_include(<ATen/native/CPUBlas.h>)
#include <ATen/native/CPUBlas.h>
#endif
#if defined(CPUBLAS_BRGEMM_F32F32F32) && defined(CPUBLAS_BRGEMM_BF16BF16F32)
#define EFCN_HAS_BRGEMM 1
#else
#define EFCN_HAS_BRGEMM 0
#endif

namespace efcn_sparse::cpu {

// Whether products go to brgemm: this torch has it, and EFCN_BRGEMM=off in the environment does not leave it out.
inline bool use_brgemm() {
  static const bool answer = [] {
    const char* setting = std::getenv("EFCN_BRGEMM");
    return EFCN_HAS_BRGEMM && (setting == nullptr || std::strcmp(setting, "off") != 0);
  }();
  return answer;
}

// product_plain.cpp: plain loops, for fp64, and for fp32 without brgemm.
void plain_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                   int64_t ldc, bool add);
void plain_product(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b, int64_t ldb,
                   double* c, int64_t ldc, bool add);

// Consecutive columns of A, and the row of the panel where their part of B begins.
template <typename Operand>
struct Segment {
  const Operand* a;
  int64_t k, panel_row;
};

// `lda` is that of every A, `ldb` the panel's. K is even, and rows of the panel lie in pairs ("VNNI").
using SumSegments = void (*)(int64_t m, int64_t n, const Segment<at::BFloat16>* segments, int64_t count, int64_t lda,
                             const at::BFloat16* panel, int64_t ldb, float* c, int64_t ldc, bool add);

// The kernel for this processor: AVX-512 with bfloat16 dot products. Null without them, and with AMX, where brgemm is
// faster.
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
#if EFCN_HAS_BRGEMM
    if (use_brgemm()) return at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/false);
#endif
    plain_product(m, n, k, a, lda, b, ldb, c, ldc, add);
  }
  static void release() {
#if EFCN_HAS_BRGEMM
    if (use_brgemm()) at::native::cpublas::brgemm_release(/*is_vnni=*/false);
#endif
  }
};

template <>
struct Product<at::BFloat16> {
  using Sum = float;
  static constexpr int64_t k_multiple = 2;
  static void run(int64_t m, int64_t n, int64_t k, const at::BFloat16* a, int64_t lda, const at::BFloat16* b,
                  int64_t ldb, float* c, int64_t ldc, bool add) {
#if EFCN_HAS_BRGEMM
    at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/true);
#endif
  }
  static void release() {
#if EFCN_HAS_BRGEMM
    at::native::cpublas::brgemm_release(/*is_vnni=*/true);
#endif
  }

  // The kernel throws on machines without bfloat16 dot products instead of falling back, so ask it once.
  static bool available() {
    if (!use_brgemm()) return segments_kernel() != nullptr;
#if EFCN_HAS_BRGEMM
    static const bool answer = [] {
      alignas(64) at::BFloat16 a[32 * 32] = {}, b[32 * 32] = {};
      alignas(64) float c[32 * 32];
      try {
        run(32, 32, 32, a, 32, b, 32, c, 32, false);
        release();
        return true;
      } catch (const std::exception&) {
        return false;
      }
    }();
    return answer;
#else
    return false;
#endif
  }
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
  if constexpr (std::is_same_v<Operand, at::BFloat16>) {
    if (const auto kernel = segments_kernel()) return kernel(m, n, segments, count, lda, panel, ldb, c, ldc, add);
  }
  for (int64_t s = 0; s < count; ++s)
    Product<Operand>::run(m, n, segments[s].k, segments[s].a, lda, panel + segments[s].panel_row * ldb, ldb, c, ldc,
                          add || s > 0);
}

// Calls kernel(stored type tag, operand type tag) for a tensor's dtype on this machine.
template <typename Kernel>
void dispatch_operand(at::ScalarType dtype, const char* name, Kernel&& kernel) {
  switch (dtype) {
    case at::kFloat:
      return kernel(float{}, float{});
    case at::kDouble:
      return kernel(double{}, double{});
    case at::kHalf:
      return kernel(at::Half{}, float{});
    case at::kBFloat16:
      return Product<at::BFloat16>::available() ? kernel(at::BFloat16{}, at::BFloat16{})
                                                : kernel(at::BFloat16{}, float{});
    default:
      TORCH_CHECK(false, name, " must be float32, bfloat16, float16 or float64, got ", dtype);
  }
}

}  // namespace efcn_sparse::cpu
