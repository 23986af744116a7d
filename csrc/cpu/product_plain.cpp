// The dense product C [M, N] (+)= A [M, K] B [K, N] in plain loops.
#include <algorithm>

#include "product.h"
#include "vectors.h"

namespace efcn_sparse::cpu {
namespace {

// A tile of C, Rows x Columns vectors.
template <int Bytes, int Rows, int Columns, typename T>
EFCN_INLINE void tile(int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc, bool add) {
  using V = typename Vector<T, Bytes>::type;
  constexpr int64_t width = Vector<T, Bytes>::width;
  V sums[Rows][Columns] = {};
  for (int64_t p = 0; p < k; ++p) {
    V right[Columns];
    for (int j = 0; j < Columns; ++j) right[j] = *reinterpret_cast<const V*>(b + p * ldb + j * width);
    for (int i = 0; i < Rows; ++i)
      for (int j = 0; j < Columns; ++j) sums[i][j] += a[i * lda + p] * right[j];
  }
  for (int i = 0; i < Rows; ++i)
    for (int j = 0; j < Columns; ++j) {
      V* out = reinterpret_cast<V*>(c + i * ldc + j * width);
      *out = add ? *out + sums[i][j] : sums[i][j];
    }
}

template <int Bytes, int Rows, int Columns, typename T>
EFCN_INLINE void strip(int64_t m, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                       bool add) {
  int64_t i = 0;
  for (; i + Rows <= m; i += Rows) tile<Bytes, Rows, Columns>(k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
  for (; i < m; ++i) tile<Bytes, 1, Columns>(k, a + i * lda, lda, b, ldb, c + i * ldc, ldc, add);
}

// Columns that fill no vector: B goes through a copy that is padded with zeros, a piece of K at a time.
template <int Bytes, int Rows, typename T>
EFCN_INLINE void narrow(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                        int64_t ldc, bool add) {
  constexpr int64_t width = Vector<T, Bytes>::width, kPiece = 256;
  T right[kPiece * width], sums[Rows * width];
  for (int64_t first = 0; first < k || first == 0; first += kPiece) {
    const int64_t length = std::min(kPiece, k - first);
    for (int64_t p = 0; p < length; ++p)
      for (int64_t j = 0; j < width; ++j) right[p * width + j] = j < n ? b[(first + p) * ldb + j] : T(0);
    for (int64_t i = 0; i < m; i += Rows) {
      const int64_t rows = std::min<int64_t>(Rows, m - i);
      strip<Bytes, Rows, 1>(rows, length, a + i * lda + first, lda, right, width, sums, width, false);
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < n; ++j) {
          T* out = c + (i + r) * ldc + j;
          *out = sums[r * width + j] + (add || first > 0 ? *out : T(0));
        }
    }
  }
}

template <int Bytes, int Rows, typename T>
EFCN_INLINE void product(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                         int64_t ldc, bool add) {
  constexpr int64_t width = Vector<T, Bytes>::width;
  int64_t j = 0;
  for (; j + 2 * width <= n; j += 2 * width) strip<Bytes, Rows, 2>(m, k, a, lda, b + j, ldb, c + j, ldc, add);
  for (; j + width <= n; j += width) strip<Bytes, Rows, 1>(m, k, a, lda, b + j, ldb, c + j, ldc, add);
  if (j < n) narrow<Bytes, Rows>(m, n - j, k, a, lda, b + j, ldb, c + j, ldc, add);
}

template <typename T>
using Run = void (*)(int64_t, int64_t, int64_t, const T*, int64_t, const T*, int64_t, T*, int64_t, bool);

template <typename T>
void run_anywhere(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                  bool add) {
  product<16, 4>(m, n, k, a, lda, b, ldb, c, ldc, add);
}

#if defined(__x86_64__)
template <typename T>
EFCN_AVX2 void run_avx2(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                        int64_t ldc, bool add) {
  product<32, 4>(m, n, k, a, lda, b, ldb, c, ldc, add);
}

template <typename T>
EFCN_AVX512 void run_avx512(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                            int64_t ldc, bool add) {
  product<64, 8>(m, n, k, a, lda, b, ldb, c, ldc, add);
}
#endif

// Chosen once, when first asked for. Tiles have as many sums as registers allow: 8 x 2 of 32, or 4 x 2 of 16.
template <typename T>
Run<T> best_run() {
#if defined(__x86_64__)
  if (vector_bytes() == 64) return run_avx512<T>;
  if (vector_bytes() == 32) return run_avx2<T>;
#endif
  return run_anywhere<T>;
}

}  // namespace

void plain_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                   int64_t ldc, bool add) {
  static const Run<float> run = best_run<float>();
  run(m, n, k, a, lda, b, ldb, c, ldc, add);
}

void plain_product(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b, int64_t ldb,
                   double* c, int64_t ldc, bool add) {
  static const Run<double> run = best_run<double>();
  run(m, n, k, a, lda, b, ldb, c, ldc, add);
}

}  // namespace efcn_sparse::cpu
