// C [M, N] (+)= sum over segments of A_s [M, K_s] B_s [K_s, N], in bfloat16: all products of a block row at once. The sums
// stay in registers from the first to the last, where a product for each segment would load and store them.
#include "product.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "vectors.h"

namespace efcn_sparse::cpu {
namespace {

#define EFCN_TARGET __attribute__((target("avx512f,avx512bf16")))

using Operand = c10::BFloat16;

constexpr int kLanes = kStripColumns, kMostVectors = 4;
// 32 registers hold the sums of a tile, its row of B and a pair of A; 24 sums are enough to hide the latency.
constexpr int kSums = 24;

EFCN_TARGET inline __m512bh pair_at(const Operand* a) {
  int pair;
  std::memcpy(&pair, a, sizeof(pair));
  return (__m512bh)_mm512_set1_epi32(pair);
}

// C [Rows, 16 Vectors] of one tile; the last vector has `width` columns.
template <int Rows, int Vectors>
EFCN_TARGET void tile(const Segment<Operand>* segments, int64_t count, int64_t row, int64_t lda, const Operand* panel,
                      int64_t ldb, float* c, int64_t ldc, bool add, int64_t width) {
  const auto kept = static_cast<__mmask16>((1u << width) - 1);
  constexpr __mmask16 kAll = 0xffff;
  __m512 sums[Rows][Vectors];
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sums[r][v] = _mm512_setzero_ps();
  for (int64_t s = 0; s < count; ++s) {
    // every eighth row has a pointer: one for each row would not fit the registers
    const Operand *a = segments[s].a + row * lda, *a8 = a + 8 * lda, *a16 = a + 16 * lda;
    const int64_t first = segments[s].panel_row;
    const Operand *b = panel + first * kLanes, *last = panel + (Vectors - 1) * ldb + first * width;
    for (int64_t k = 0; k < segments[s].k; k += 2, b += 2 * kLanes, last += 2 * width) {
      __m512bh right[Vectors];
#pragma GCC unroll 4
      for (int v = 0; v + 1 < Vectors; ++v) right[v] = (__m512bh)_mm512_loadu_si512(b + v * ldb);
      right[Vectors - 1] = (__m512bh)_mm512_maskz_loadu_epi32(kept, last);
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
        const __m512bh left = pair_at((r < 8 ? a : r < 16 ? a8 : a16) + r % 8 * lda);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], left, right[v]);
      }
      a += 2, a8 += 2, a16 += 2;
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const __mmask16 exists = v + 1 < Vectors ? kAll : kept;
      float* out = c + r * ldc + v * kLanes;
      const __m512 before = add ? _mm512_maskz_loadu_ps(exists, out) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(out, exists, _mm512_add_ps(sums[r][v], before));
    }
}

using Tile = decltype(&tile<1, 1>);

template <int Vectors, int... Rows>
constexpr auto tiles_of(std::integer_sequence<int, Rows...>) {
  return std::array<Tile, sizeof...(Rows)>{&tile<Rows + 1, Vectors>...};
}

// All rows of some columns, in tiles that are as equal as can be: in a small last one sums would wait for each other.
template <int Vectors>
void strip(int64_t m, const Segment<Operand>* segments, int64_t count, int64_t lda, const Operand* panel, int64_t ldb,
           float* c, int64_t ldc, bool add, int64_t width) {
  constexpr int kRows = kSums / Vectors;
  static constexpr auto kTiles = tiles_of<Vectors>(std::make_integer_sequence<int, kRows>{});
  const int64_t number = (m + kRows - 1) / kRows;
  for (int64_t t = 0, row = 0; t < number; ++t) {
    const int64_t rows = (m - row + number - t - 1) / (number - t);
    kTiles[rows - 1](segments, count, row, lda, panel, ldb, c + row * ldc, ldc, add, width);
    row += rows;
  }
}

void sum_in_tiles(int64_t m, int64_t n, const Segment<Operand>* segments, int64_t count, int64_t lda,
                  const Operand* panel, int64_t ldb, float* c, int64_t ldc, bool add) {
  static constexpr decltype(&strip<1>) kStrips[kMostVectors] = {&strip<1>, &strip<2>, &strip<3>, &strip<4>};
  for (int64_t j = 0; j < n; j += kMostVectors * kLanes) {
    const int64_t columns = std::min<int64_t>(n - j, kMostVectors * kLanes), vectors = (columns + kLanes - 1) / kLanes;
    const int64_t width = columns - (vectors - 1) * kLanes;
    kStrips[vectors - 1](m, segments, count, lda, panel + j / kLanes * ldb, ldb, c + j, ldc, add, width);
  }
}

}  // namespace

SumSegments segments_kernel() {
  static const bool here =
      __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16") && vector_bytes() == 64;
  if (has_amx()) return amx_kernel();  // such processors multiply fp32 faster than they take dot products
  return here ? &sum_in_tiles : nullptr;
}

}  // namespace efcn_sparse::cpu
#else
namespace efcn_sparse::cpu {

SumSegments segments_kernel() { return nullptr; }

}  // namespace efcn_sparse::cpu
#endif
