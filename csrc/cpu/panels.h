// Blocks [long side, short side] as panels [short side, long side], and back; for SpMM of wide blocks either may be the longer
// one. Panels have room for a multiple of kPanelMultiple rows, and what lies in those past the short side means nothing.
#pragma once

#include "pack.h"

namespace efcn_sparse::cpu {

constexpr int64_t kPanelMultiple = 8;  // a block of a transposition

inline bool fit_panels(int64_t shorter, int64_t longer) {
  constexpr int64_t kLongest = 256;  // more would crowd the L1 cache; 16 is a multiple of every vector
  return shorter <= kGatherSide && longer >= kGatherRows && longer <= kLongest && longer % 16 == 0;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) inline int64_t to_panel_avx2(const float* block, int64_t longs, int64_t shorts,
                                                             int64_t extent, float* panel, int64_t ld) {
  int64_t h = 0;
  for (; h + 8 <= extent && (h + 7) * shorts + round_up(shorts, 8) <= longs * shorts; h += 8)
    for (int64_t c = 0; c < shorts; c += 8) transpose_8x8(block + h * shorts + c, shorts, panel + c * ld + h, ld);
  return h;
}

__attribute__((target("avx2"))) inline int64_t from_panel_avx2(const float* panel, int64_t ld, int64_t longs,
                                                               int64_t shorts, float* block) {
  float some[8 * kGatherSide];
  const int64_t width = round_up(shorts, 8);
  int64_t h = 0;
  for (; h + 8 <= longs && (h + 7) * shorts + width <= longs * shorts; h += 8) {
    for (int64_t c = 0; c < shorts; c += 8) transpose_8x8(panel + c * ld + h, ld, some + c, width);
    for (int64_t r = 0; r < 8; ++r)
      for (int64_t c = 0; c < width; c += 8)  // what is too much is overwritten by the next row
        _mm256_storeu_ps(block + (h + r) * shorts + c, _mm256_loadu_ps(some + r * width + c));
  }
  return h;
}
#endif

// panel [shorts, ld] = block [longs, shorts]^T, of its first `extent` long rows, and zeros up to `ld`.
template <typename T>
void to_panel(const T* block, int64_t longs, int64_t shorts, int64_t extent, T* panel, int64_t ld) {
  int64_t done = 0;
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, float>) {
    static const bool has_avx2 = __builtin_cpu_supports("avx2");
    if (has_avx2 && shorts % 16 != 0) done = to_panel_avx2(block, longs, shorts, extent, panel, ld);
  }
#endif
  transpose(block + done * shorts, shorts, panel + done, ld, extent - done, shorts);
  for (int64_t c = 0; c < shorts && extent < ld; ++c) std::fill_n(panel + c * ld + extent, ld - extent, T(0));
}

// block [longs, shorts] = panel [shorts, ld]^T.
template <typename T>
void from_panel(const T* panel, int64_t ld, int64_t longs, int64_t shorts, T* block) {
  int64_t done = 0;
#if defined(__x86_64__)
  if constexpr (std::is_same_v<T, float>) {
    static const bool has_avx2 = __builtin_cpu_supports("avx2");
    if (has_avx2) done = from_panel_avx2(panel, ld, longs, shorts, block);
  }
#endif
  transpose_scalar(panel + done, ld, block + done * shorts, shorts, shorts, longs - done);
}

}  // namespace efcn_sparse::cpu
