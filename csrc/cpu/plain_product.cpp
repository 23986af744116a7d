#include "plain_product.h"

#include <algorithm>

// One function for each instruction set, chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EFCN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EFCN_CLONES
#endif

namespace efcn_sparse::cpu {
namespace {

constexpr int64_t kRows = 4, kCols = 16;

// A tile of C stays in registers while K runs; edges take the same loops with shorter bounds.
template <typename T>
inline __attribute__((always_inline)) void tile(int64_t rows, int64_t cols, int64_t k, const T* a, int64_t lda,
                                                const T* b, int64_t ldb, T* c, int64_t ldc, bool add) {
  T sums[kRows][kCols] = {};
  if (rows == kRows && cols == kCols) {
    for (int64_t p = 0; p < k; ++p)
      for (int64_t i = 0; i < kRows; ++i)
        for (int64_t j = 0; j < kCols; ++j) sums[i][j] += a[i * lda + p] * b[p * ldb + j];
  } else {
    for (int64_t p = 0; p < k; ++p)
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t j = 0; j < cols; ++j) sums[i][j] += a[i * lda + p] * b[p * ldb + j];
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) c[i * ldc + j] = sums[i][j] + (add ? c[i * ldc + j] : T(0));
}

template <typename T>
inline __attribute__((always_inline)) void product(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b,
                                                   int64_t ldb, T* c, int64_t ldc, bool add) {
  for (int64_t j = 0; j < n; j += kCols)
    for (int64_t i = 0; i < m; i += kRows)
      tile(std::min(kRows, m - i), std::min(kCols, n - j), k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc, add);
}

}  // namespace

EFCN_CLONES void plain_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b,
                               int64_t ldb, float* c, int64_t ldc, bool add) {
  product(m, n, k, a, lda, b, ldb, c, ldc, add);
}

EFCN_CLONES void plain_product(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b,
                               int64_t ldb, double* c, int64_t ldc, bool add) {
  product(m, n, k, a, lda, b, ldb, c, ldc, add);
}

}  // namespace efcn_sparse::cpu
