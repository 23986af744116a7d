// Transposition of small matrices of 4-byte elements, in the cache.
#pragma once

#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace efcn_sparse::cpu {

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
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) return transpose_avx2(in, ld_in, out, ld_out, rows, cols);
#endif
  transpose_scalar(in, ld_in, out, ld_out, rows, cols);
}

inline void transpose(const double* in, int64_t ld_in, double* out, int64_t ld_out, int64_t rows, int64_t cols) {
  transpose_scalar(in, ld_in, out, ld_out, rows, cols);
}

}  // namespace efcn_sparse::cpu
