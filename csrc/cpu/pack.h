// Weights and activations in the layout that the micro-kernel wants.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstring>
#include <type_traits>

#include "microkernel.h"
#include "structure.h"
#include "transpose.h"

namespace efcn_sparse::cpu {

inline int64_t round_up(int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; }

// A stored block [height, width] as operands with zeros off its mask: the stored numbers themselves where they serve.
template <typename Stored, typename Operand>
const Operand* block_operands(const Stored* block, const uint8_t* mask, int64_t elements, Operand* buffer) {
  if constexpr (std::is_same_v<Stored, Operand>) {
    if (mask == nullptr) return block;
  }
  if (mask == nullptr) {
    for (int64_t e = 0; e < elements; ++e) buffer[e] = static_cast<Operand>(block[e]);
  } else {
    for (int64_t e = 0; e < elements; ++e) buffer[e] = mask[e] ? static_cast<Operand>(block[e]) : Operand(0);
  }
  return buffer;
}

// panel rows [k] of n = block rows or columns: B of the product, from a block that is stored [n, k] or [k, n].
inline void pack_panel(const float* block, int64_t ld, bool stored_n_by_k, int64_t n, int64_t k, float* panel) {
  if (stored_n_by_k) return transpose(block, ld, panel, n, n, k);
  for (int64_t i = 0; i < k; ++i) std::memcpy(panel + i * n, block + i * ld, n * sizeof(float));
}

inline void pack_panel(const double* block, int64_t ld, bool stored_n_by_k, int64_t n, int64_t k, double* panel) {
  if (stored_n_by_k) return transpose(block, ld, panel, n, n, k);
  for (int64_t i = 0; i < k; ++i) std::memcpy(panel + i * n, block + i * ld, n * sizeof(double));
}

// Two rows [n] become one row of n pairs; `second` may be null for zeros.
inline void interleave(const at::BFloat16* first, const at::BFloat16* second, int64_t n, at::BFloat16* pairs) {
  const auto* low = reinterpret_cast<const uint16_t*>(first);
  const auto* high = reinterpret_cast<const uint16_t*>(second);
  auto* out = reinterpret_cast<uint32_t*>(pairs);
  if (high == nullptr) {
    for (int64_t j = 0; j < n; ++j) out[j] = low[j];
  } else {
    for (int64_t j = 0; j < n; ++j) out[j] = low[j] | static_cast<uint32_t>(high[j]) << 16;
  }
}

inline void pack_panel(
    const at::BFloat16* block, int64_t ld, bool stored_n_by_k, int64_t n, int64_t k, at::BFloat16* panel) {
  if (!stored_n_by_k) {
    for (int64_t i = 0; i < k; i += 2)
      interleave(block + i * ld, i + 1 < k ? block + (i + 1) * ld : nullptr, n, panel + i * n);
  } else if (k % 2 == 0 && ld % 2 == 0) {  // a pair is one 4-byte element, so this is a plain transposition
    transpose(reinterpret_cast<const float*>(block), ld / 2, reinterpret_cast<float*>(panel), n, n, k / 2);
  } else {
    for (int64_t i = 0; i < round_up(k, 2); ++i)
      for (int64_t j = 0; j < n; ++j)
        panel[(i / 2 * n + j) * 2 + i % 2] = i < k ? block[j * ld + i] : at::BFloat16(0);
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

// x [N, features] as column panels [features / side][N][width]: neighbouring rows lie together, so that a stride that
// is a power of two does not put a whole panel into a few cache sets.
template <typename Stored, typename Operand>
at::Tensor column_panels(const at::Tensor& x, int64_t side, int64_t width) {
  const int64_t batch = x.size(0), features = x.size(1), blocks = (features + side - 1) / side;
  auto panels = at::empty({blocks, batch, width}, x.options().dtype(c10::CppTypeToScalarType<Operand>::value));
  const auto* in = x.const_data_ptr<Stored>();
  auto* out = panels.template mutable_data_ptr<Operand>();
  constexpr int64_t kRows = 32;
  const int64_t strips = (batch + kRows - 1) / kRows;
  at::parallel_for(0, strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t first = strip * kRows, last = std::min(batch, first + kRows);
      for (int64_t j = 0; j < blocks; ++j)
        copy_rows(in, x.stride(0), first, last, j * side, std::min(side, features - j * side), width,
                  out + (j * batch + first) * width);
    }
  });
  return panels;
}

}  // namespace efcn_sparse::cpu
