// The dense product C [M, N] (+)= A [M, K] B [K, N] by tiles whose sums stay in registers.
#include <algorithm>
#include <array>
#include <utility>

#include "product.h"
#include "vectors.h"

namespace efcn_sparse::cpu {
namespace {

// Registers hold the sums, a row of B and a number of A: 24 sums of 32 registers, 12 of 16.
constexpr int most_vectors(int bytes) { return bytes == 64 ? 4 : 3; }
constexpr int most_rows(int bytes, int vectors) { return std::min(12, (bytes == 64 ? 24 : 12) / vectors); }

// A tile of C, Rows x Vectors registers.
template <int Bytes, int Rows, int Vectors, typename T>
EFCN_INLINE void tile(int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc, bool add) {
  using V = typename Vector<T, Bytes>::type;
  constexpr int64_t width = Vector<T, Bytes>::width;
  V sums[Rows][Vectors] = {};
  for (int64_t p = 0; p < k; ++p, ++a, b += ldb) {
    V right[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) right[v] = *reinterpret_cast<const V*>(b + v * width);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sums[r][v] += a[r * lda] * right[v];
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      V* out = reinterpret_cast<V*>(c + r * ldc + v * width);
      *out = add ? *out + sums[r][v] : sums[r][v];
    }
}

template <typename T>
using Tile = void (*)(int64_t, const T*, int64_t, const T*, int64_t, T*, int64_t, bool);

#define EFCN_TILE(name, target, bytes)                                                                         \
  template <int Rows, int Vectors, typename T>                                                                 \
  target void name(int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc, bool add) { \
    tile<bytes, Rows, Vectors>(k, a, lda, b, ldb, c, ldc, add);                                                \
  }                                                                                                            \
  template <int Vectors, typename T, int... Rows>                                                              \
  constexpr auto name##_heights(std::integer_sequence<int, Rows...>) {                                         \
    return std::array<Tile<T>, 12>{&name<Rows + 1, Vectors, T>...};                                            \
  }                                                                                                            \
  template <typename T, int... Vectors>                                                                        \
  constexpr auto name##_table(std::integer_sequence<int, Vectors...>) {                                        \
    return std::array<std::array<Tile<T>, 12>, sizeof...(Vectors)>{                                            \
        name##_heights<Vectors + 1, T>(std::make_integer_sequence<int, most_rows(bytes, Vectors + 1)>{})...};  \
  }

EFCN_TILE(tile_anywhere, , 16)
#if defined(__x86_64__)
EFCN_TILE(tile_avx2, EFCN_AVX2, 32)
EFCN_TILE(tile_avx512, EFCN_AVX512, 64)
#endif

// All rows of some vectors of columns, in tiles that are as equal as can be: in a small last one sums would wait.
template <int Bytes, typename Heights, typename T>
void strip(const Heights& heights, int64_t vectors, int64_t m, int64_t k, const T* a, int64_t lda, const T* b,
           int64_t ldb, T* c, int64_t ldc, bool add) {
  const int64_t most = most_rows(Bytes, vectors), number = (m + most - 1) / most;
  for (int64_t t = 0, row = 0; t < number; ++t) {
    const int64_t height = (m - row + number - t - 1) / (number - t);
    heights[height - 1](k, a + row * lda, lda, b, ldb, c + row * ldc, ldc, add);
    row += height;
  }
}

// Columns that fill no vector: B goes through a copy that is padded with zeros, a piece of K at a time.
template <int Bytes, typename Heights, typename T>
void narrow(const Heights& heights, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
            T* c, int64_t ldc, bool add) {
  constexpr int64_t width = Vector<T, Bytes>::width, rows = 12, piece = 256;
  T right[piece * width], sums[rows * width];
  for (int64_t first = 0; first < k || first == 0; first += piece) {
    const int64_t length = std::min(piece, k - first);
    for (int64_t p = 0; p < length; ++p)
      for (int64_t j = 0; j < width; ++j) right[p * width + j] = j < n ? b[(first + p) * ldb + j] : T(0);
    for (int64_t i = 0; i < m; i += rows) {
      const int64_t some = std::min(rows, m - i);
      strip<Bytes>(heights, 1, some, length, a + i * lda + first, lda, right, width, sums, width, false);
      for (int64_t r = 0; r < some; ++r)
        for (int64_t j = 0; j < n; ++j) {
          T* out = c + (i + r) * ldc + j;
          *out = sums[r * width + j] + (add || first > 0 ? *out : T(0));
        }
    }
  }
}

template <int Bytes, typename Table, typename T>
void product(const Table& table, int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
             T* c, int64_t ldc, bool add) {
  constexpr int64_t width = Vector<T, Bytes>::width, most = static_cast<int64_t>(std::tuple_size_v<Table>);
  int64_t j = 0;
  for (int64_t vectors = most; vectors > 0; --vectors)
    for (; j + vectors * width <= n; j += vectors * width)
      strip<Bytes>(table[vectors - 1], vectors, m, k, a, lda, b + j, ldb, c + j, ldc, add);
  if (j < n) narrow<Bytes>(table[0], m, n - j, k, a, lda, b + j, ldb, c + j, ldc, add);
}

template <typename T>
void run(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
         bool add) {
#define EFCN_RUN(name, bytes)                                                                               \
  {                                                                                                         \
    static constexpr auto kTable = name##_table<T>(std::make_integer_sequence<int, most_vectors(bytes)>{}); \
    return product<bytes>(kTable, m, n, k, a, lda, b, ldb, c, ldc, add);                                    \
  }
#if defined(__x86_64__)
  if (vector_bytes() == 64) EFCN_RUN(tile_avx512, 64)
  if (vector_bytes() == 32) EFCN_RUN(tile_avx2, 32)
#endif
  EFCN_RUN(tile_anywhere, 16)
}

}  // namespace

void plain_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                   int64_t ldc, bool add) {
  run(m, n, k, a, lda, b, ldb, c, ldc, add);
}

void plain_product(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b, int64_t ldb,
                   double* c, int64_t ldc, bool add) {
  run(m, n, k, a, lda, b, ldb, c, ldc, add);
}

}  // namespace efcn_sparse::cpu
