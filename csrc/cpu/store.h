// Sums as they are stored: rounded to the dtype of the result.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <cstring>

namespace efcn_sparse::cpu {

template <typename Sum, typename Stored>
inline void store_sums(const Sum* __restrict sums, const Sum* __restrict bias, int64_t n, Stored* __restrict out) {
  for (int64_t j = 0; j < n; ++j) out[j] = static_cast<Stored>(sums[j] + bias[j]);
}

// To nearest, ties to even, as c10 does it; in integers, which compilers make vectors of, where c10's they do not.
inline __attribute__((always_inline)) void round_sums(const float* __restrict sums, const float* __restrict bias,
                                                      int64_t n, uint16_t* __restrict out) {
  for (int64_t j = 0; j < n; ++j) {
    const float sum = sums[j] + bias[j];
    uint32_t bits;
    std::memcpy(&bits, &sum, sizeof(bits));
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    out[j] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) inline void round_sums_avx2(const float* sums, const float* bias, int64_t n,
                                                            uint16_t* out) {
  round_sums(sums, bias, n, out);
}
#endif

inline void store_sums(const float* sums, const float* bias, int64_t n, at::BFloat16* out) {
  auto* bits = reinterpret_cast<uint16_t*>(out);
#if defined(__x86_64__)
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) return round_sums_avx2(sums, bias, n, bits);
#endif
  round_sums(sums, bias, n, bits);
}

}  // namespace efcn_sparse::cpu
