// Weights and activations in the layout that the micro-kernel wants.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "memory.h"
#include "operands.h"
#include "product.h"
#include "vectors.h"
#include "walk.h"

namespace efcn_sparse::cpu {

// What decides by size whether activations are copied; Python reads them (efcn_sparse/planning/kernel_rules.py).
// Runs of at least kDirectRun columns are read from x in place by SpMM.
constexpr int64_t kDirectRun = 48;
// Rows a multiple of kCrowdedBytes apart fall into few cache sets, so SDDMM copies b, unless blocks are narrower than this.
constexpr int64_t kCrowdedBytes = 1024, kCrowdedSide = 8;
// SDDMM multiplies this many rows of the batch in one product, and at once as many as take about so many bytes of a or b, but at
// least so many.
constexpr int64_t kBatchChunk = 256, kAtOnceBytes = 1 << 21, kAtOnceRows = 512;
// Blocks so narrow, and tall enough to repay the copy, are multiplied after gathering their columns side by side: a
// product per block would mostly load and store its sums.
constexpr int64_t kGatherSide = 16, kGatherRows = 32;

inline bool worth_gathering(const Walk& walk) { return walk.in_side <= kGatherSide && walk.out_side >= kGatherRows; }

inline int64_t round_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// Weights stream from memory once a pass; the next block arrives while this one is packed. Always inline: GCC drops a
// call that only prefetches.
template <typename T>
inline __attribute__((always_inline)) void prefetch(const T* data, int64_t elements) {
  const auto* bytes = reinterpret_cast<const char*>(data);
  for (int64_t i = 0; i < elements * static_cast<int64_t>(sizeof(T)); i += 64) __builtin_prefetch(bytes + i);
}

// Transposition of small matrices in the cache.
template <typename T>
inline void transpose_scalar(const T* in, int64_t ld_in, T* out, int64_t ld_out, int64_t rows, int64_t cols) {
  for (int64_t j = 0; j < cols; ++j)
    for (int64_t i = 0; i < rows; ++i) out[j * ld_out + i] = in[i * ld_in + j];
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) inline void transpose_8x8(const float* in, int64_t ld_in, float* out, int64_t ld_out) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(in + i * ld_in);
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * ld_out, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * ld_out, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}

// All masks are set: without one, GCC 12 warns of its own header.
__attribute__((target("avx512f"))) inline void transpose_16x16(const float* in, int64_t ld_in, float* out,
                                                               int64_t ld_out) {
  constexpr __mmask16 all = 0xffff;
  __m512 r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(in + i * ld_in);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_maskz_unpacklo_ps(all, r[i], r[i + 1]);
    t[i + 1] = _mm512_maskz_unpackhi_ps(all, r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_maskz_shuffle_ps(all, t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_maskz_shuffle_ps(all, t[i], t[i + 2], 0xee);
    r[i + 2] = _mm512_maskz_shuffle_ps(all, t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_maskz_shuffle_ps(all, t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_maskz_shuffle_f32x4(all, r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_maskz_shuffle_f32x4(all, r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_maskz_shuffle_f32x4(all, r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_maskz_shuffle_f32x4(all, r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    _mm512_storeu_ps(out + i * ld_out, _mm512_maskz_shuffle_f32x4(all, t[i], t[i + 8], 0x88));
    _mm512_storeu_ps(out + (i + 8) * ld_out, _mm512_maskz_shuffle_f32x4(all, t[i], t[i + 8], 0xdd));
  }
}

__attribute__((target("avx2"))) inline void transpose_avx2(const float* in, int64_t ld_in, float* out, int64_t ld_out,
                                                           int64_t rows, int64_t cols) {
  const int64_t rows8 = rows / 8 * 8, cols8 = cols / 8 * 8;
  for (int64_t j = 0; j < cols8; j += 8)
    for (int64_t i = 0; i < rows8; i += 8) transpose_8x8(in + i * ld_in + j, ld_in, out + j * ld_out + i, ld_out);
  transpose_scalar(in + rows8 * ld_in, ld_in, out + rows8, ld_out, rows - rows8, cols8);
  transpose_scalar(in + cols8, ld_in, out + cols8 * ld_out, ld_out, rows, cols - cols8);
}
#endif

// out [cols, rows] = in [rows, cols]^T.
inline void transpose(const float* in, int64_t ld_in, float* out, int64_t ld_out, int64_t rows, int64_t cols) {
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2"), has_avx512 = __builtin_cpu_supports("avx512f");
  if (has_avx512 && rows >= 16 && cols >= 16) {
    const int64_t rows16 = rows / 16 * 16, cols16 = cols / 16 * 16;
    for (int64_t j = 0; j < cols16; j += 16)
      for (int64_t i = 0; i < rows16; i += 16) transpose_16x16(in + i * ld_in + j, ld_in, out + j * ld_out + i, ld_out);
    transpose_avx2(in + rows16 * ld_in, ld_in, out + rows16, ld_out, rows - rows16, cols16);
    return transpose_avx2(in + cols16, ld_in, out + cols16 * ld_out, ld_out, rows, cols - cols16);
  }
  if (has_avx2) return transpose_avx2(in, ld_in, out, ld_out, rows, cols);
#endif
  transpose_scalar(in, ld_in, out, ld_out, rows, cols);
}

inline void transpose(const double* in, int64_t ld_in, double* out, int64_t ld_out, int64_t rows, int64_t cols) {
  transpose_scalar(in, ld_in, out, ld_out, rows, cols);
}

// Rows [row, row + k) of a panel of n columns, B of a product, from a block stored [n, k] or [k, n].
template <typename T>
void pack_panel(const T* block, int64_t ld, bool stored_n_by_k, int64_t n, int64_t k, T* panel, int64_t row,
                int64_t ldb) {
  panel += row * ldb;
  if (stored_n_by_k) return transpose(block, ld, panel, ldb, n, k);
  for (int64_t i = 0; i < k; ++i) std::memcpy(panel + i * ldb, block + i * ld, n * sizeof(T));
}

// Two rows [n] become one row of n pairs; `second` may be null for zeros.
EFCN_INLINE void interleave(const at::BFloat16* first, const at::BFloat16* second, int64_t n, at::BFloat16* pairs) {
  const auto* low = reinterpret_cast<const uint16_t*>(first);
  const auto* high = reinterpret_cast<const uint16_t*>(second);
  auto* out = reinterpret_cast<uint32_t*>(pairs);
  if (high == nullptr) {
    for (int64_t j = 0; j < n; ++j) out[j] = low[j];
  } else {
    for (int64_t j = 0; j < n; ++j) out[j] = low[j] | static_cast<uint32_t>(high[j]) << 16;
  }
}

inline void pack_panel(const at::BFloat16* block, int64_t ld, bool stored_n_by_k, int64_t n, int64_t k,
                       at::BFloat16* panel, int64_t row, int64_t ldb) {
  for (int64_t j = 0; j < n; j += kStripColumns, panel += ldb) {
    const int64_t columns = std::min(kStripColumns, n - j);
    const at::BFloat16* from = block + j * (stored_n_by_k ? ld : 1);
    at::BFloat16* to = panel + row * columns;
    if (!stored_n_by_k) {
      run_here(EFCN_LOOP() {
        const auto rows = [=](auto count) __attribute__((always_inline)) {
          for (int64_t i = 0; i < k; i += 2)
            interleave(from + i * ld, i + 1 < k ? from + (i + 1) * ld : nullptr, count, to + i * count);
        };
        columns == kStripColumns ? rows(std::integral_constant<int64_t, kStripColumns>()) : rows(columns);
      });
    } else if (k % 2 == 0 && ld % 2 == 0) {  // a pair is one 4-byte element, so this is a plain transposition
      transpose(reinterpret_cast<const float*>(from), ld / 2, reinterpret_cast<float*>(to), columns, columns, k / 2);
    } else {
      for (int64_t i = 0; i < round_up(k, 2); ++i)
        for (int64_t c = 0; c < columns; ++c)
          to[(i / 2 * columns + c) * 2 + i % 2] = i < k ? from[c * ld + i] : at::BFloat16(0);
    }
  }
}

// Rows [first, last) of features [begin, begin + extent) of x, as rows of `width` operands, zeros past the extent.
template <typename Stored, typename Operand>
void copy_rows(const Stored* x, int64_t ld, int64_t first, int64_t last, int64_t begin, int64_t extent, int64_t width,
               Operand* out) {
  for (int64_t m = first; m < last; ++m, out += width) {
    const Stored* row = x + m * ld + begin;
    if constexpr (std::is_same_v<Stored, Operand>) {
      std::memcpy(out, row, extent * sizeof(Stored));
    } else {
      for (int64_t e = 0; e < extent; ++e) out[e] = static_cast<Operand>(row[e]);
    }
    for (int64_t e = extent; e < width; ++e) out[e] = Operand(0);
  }
}

// n elements; small constant sizes become vector moves, where a call to memcpy would cost more than the copy.
template <typename T>
inline void copy_short(const T* in, int64_t n, T* out) {
  constexpr int64_t kWide = 64 / sizeof(T), kHalf = 32 / sizeof(T), kQuarter = 16 / sizeof(T);
  for (; n >= kWide; n -= kWide, in += kWide, out += kWide) std::memcpy(out, in, 64);
  if (n >= kHalf) std::memcpy(out, in, 32), n -= kHalf, in += kHalf, out += kHalf;
  if (n >= kQuarter) std::memcpy(out, in, 16), n -= kQuarter, in += kQuarter, out += kQuarter;
  for (; n > 0; --n) *out++ = *in++;
}

// Columns [begin, begin + extent) of rows [0, rows) of x, as part of the rows of a gathered matrix.
template <typename Stored, typename Operand>
void gather_columns(const Stored* x, int64_t ld, int64_t rows, int64_t extent, Operand* out, int64_t ld_out) {
  for (int64_t m = 0; m < rows; ++m) {
    if constexpr (std::is_same_v<Stored, Operand>) {
      copy_short(x + m * ld, extent, out + m * ld_out);
    } else {
      for (int64_t e = 0; e < extent; ++e) out[m * ld_out + e] = static_cast<Operand>(x[m * ld + e]);
    }
  }
}

// x [N, features] as column panels [features / side][N][width]: neighboring rows lie together, so that a stride that
// is a power of two does not put a whole panel into a few cache sets. `pack_strip(first, last, j, out)` fills rows
// [first, last) of panel j at out. Panels that the walk never reads stay unwritten.
template <typename Operand, typename PackStrip>
at::Tensor column_panels(const at::Tensor& x, const Walk& walk, int64_t rows, int64_t width, PackStrip&& pack_strip) {
  const int64_t blocks = (x.size(1) + walk.in_side - 1) / walk.in_side;
  std::vector<char> used(blocks, 0);
  for (int64_t k = 0; k < walk.starts[walk.rows]; ++k) used[walk.neighbors[k]] = 1;
  auto panels = empty({blocks, rows, width}, x.options().dtype(c10::CppTypeToScalarType<Operand>::value));
  auto* out = panels.template mutable_data_ptr<Operand>();
  constexpr int64_t kStrip = 8;  // rows whose stride is a power of two share a cache set, of 8 lines
  const int64_t grain = (1 << 15) / std::max<int64_t>(1, kStrip * x.size(1)) + 1;  // strips that repay waking a thread
  at::parallel_for(0, (rows + kStrip - 1) / kStrip, grain, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t first = strip * kStrip, last = std::min(rows, first + kStrip);
      for (int64_t j = 0; j < blocks; ++j)
        if (used[j]) pack_strip(first, last, j, out + j * rows * width);
    }
  });
  return panels;
}

// Panels for the left side of a product: rows of K, padded with zeros to `width`.
template <typename Stored, typename Operand>
at::Tensor left_panels(const at::Tensor& x, const Walk& walk, int64_t width) {
  const int64_t side = walk.in_side;
  const auto* in = x.const_data_ptr<Stored>();
  return column_panels<Operand>(x, walk, x.size(0), width, [&](int64_t first, int64_t last, int64_t j, Operand* panel) {
    copy_rows(in, x.stride(0), first, last, j * side, walk.in_extent(j), width, panel + first * width);
  });
}

// Panels for the right side of a product, whose K is the batch: [features / side][panel of `side` columns].
template <typename Stored, typename Operand>
at::Tensor right_panels(const at::Tensor& x, const Walk& walk) {
  const int64_t batch = x.size(0), ld = x.stride(0), rows = round_up(batch, Product<Operand>::k_multiple);
  const int64_t width = walk.in_side, ldb = Product<Operand>::panel_ld(width, rows);
  const auto* in = x.const_data_ptr<Stored>();
  return column_panels<Operand>(x, walk, rows, width, [&](int64_t first, int64_t last, int64_t j, Operand* panel) {
    const int64_t begin = j * walk.in_side, extent = walk.in_extent(j);
    if constexpr (std::is_same_v<Stored, Operand>)
      pack_panel(in + first * ld + begin, ld, false, extent, std::min(last, batch) - first, panel, first, ldb);
    else
      copy_rows(in, ld, first, last, begin, extent, width, panel + first * width);
  });
}

// left [height, ld_left] = a[:, 0:height]^T for a [batch, ...], padded with zeros to `padded` columns.
template <typename Stored, typename Operand>
void transpose_left(const Stored* a, int64_t lda, int64_t batch, int64_t padded, int64_t height, Operand* left,
                    int64_t ld_left) {
  if constexpr (std::is_same_v<Stored, Operand> && std::is_same_v<Operand, at::BFloat16>) {
    constexpr int64_t kPairs = 32;  // a strip of pairs is a matrix of 4-byte elements, transposed as such
    at::BFloat16 strip[2 * kPairs * 64];
    for (int64_t h = 0; h < height; h += 64) {
      const int64_t extent = std::min<int64_t>(64, height - h);
      for (int64_t m = 0; m < padded; m += 2 * kPairs) {
        const int64_t pairs = std::min(kPairs, (padded - m) / 2);
        for (int64_t p = 0; p < pairs; ++p) {
          const Stored* row = a + (m + 2 * p) * lda + h;
          interleave(row, m + 2 * p + 1 < batch ? row + lda : nullptr, extent, strip + 2 * p * extent);
        }
        transpose(reinterpret_cast<const float*>(strip), extent, reinterpret_cast<float*>(left + h * ld_left + m),
                  ld_left / 2, pairs, extent);
      }
    }
  } else if constexpr (std::is_same_v<Stored, Operand>) {
    transpose(a, lda, left, ld_left, batch, height);
  } else {
    constexpr int64_t kRows = 16;
    Operand strip[kRows * 64];
    for (int64_t h = 0; h < height; h += 64) {
      const int64_t extent = std::min<int64_t>(64, height - h);
      for (int64_t m = 0; m < batch; m += kRows) {
        const int64_t last = std::min(batch, m + kRows);
        copy_rows(a, lda, m, last, h, extent, extent, strip);
        transpose(strip, extent, left + h * ld_left + m, ld_left, last - m, extent);
      }
    }
  }
}

}  // namespace efcn_sparse::cpu
