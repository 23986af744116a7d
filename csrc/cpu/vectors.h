// Vector types of the compiler, and the instruction sets that kernels written with them are compiled for.
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#define EFCN_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__)
#define EFCN_AVX2 __attribute__((target("avx2,fma")))
#define EFCN_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
#endif

namespace efcn_sparse::cpu {

// Plain loops leave it to the compiler to hold sums in registers, and it does not; vector types see to it.
template <typename T, int Bytes>
struct Vector {
  static constexpr int64_t width = Bytes / sizeof(T);
  typedef T type __attribute__((vector_size(Bytes), aligned(sizeof(T)), may_alias));
};

// Bytes of a vector register here: 64 with AVX-512, 32 with AVX2, else 16. ATEN_CPU_CAPABILITY holds it to less, as torch.
int vector_bytes();

#if defined(__x86_64__)
template <typename Loop>
EFCN_AVX512 void on_avx512(const Loop& loop) {
  loop();
}
template <typename Loop>
EFCN_AVX2 void on_avx2(const Loop& loop) {
  loop();
}
#endif

// Runs EFCN_LOOP() { ... } as it is compiled for this processor.
template <typename Loop>
void run_here(const Loop& loop) {
#if defined(__x86_64__)
  if (vector_bytes() == 64) return on_avx512(loop);
  if (vector_bytes() == 32) return on_avx2(loop);
#endif
  loop();
}

#define EFCN_LOOP(...) [=](__VA_ARGS__) __attribute__((always_inline))

// Calls part(first, count) for stretches of 64, and what is left: loops of a length that the compiler knows become vectors.
constexpr int64_t kStretch = 64;

template <typename Part>
EFCN_INLINE void in_stretches(int64_t total, const Part& part) {
  using Known = std::integral_constant<int64_t, kStretch>;
  int64_t first = 0;
  for (; first + kStretch <= total; first += kStretch) part(first, Known());
  if (first < total) part(first, total - first);
}

// to = a vector of Sum from as many stored numbers. By reference: compilers warn of vectors that are returned.
template <typename Sum, int Bytes, typename Stored>
EFCN_INLINE void load(const Stored* from, typename Vector<Sum, Bytes>::type& to) {
  using V = typename Vector<Sum, Bytes>::type;
  if constexpr (std::is_same_v<Sum, Stored>) {
    to = *reinterpret_cast<const V*>(from);
  } else {
    typedef uint32_t Bits __attribute__((vector_size(Bytes)));
    const Bits bits =
        __builtin_convertvector(*reinterpret_cast<const typename Vector<uint16_t, Bytes / 2>::type*>(from), Bits);
    if constexpr (std::is_same_v<Stored, c10::BFloat16>) {
      to = (V)(bits << 16);
    } else {
      const V magnitude = (V)((bits & 0x7fff) << 13) * 0x1p112f;  // subnormal numbers become what they are, too
      const Bits special = (Bits)((bits & 0x7c00) == 0x7c00) & 0x7f800000;  // infinity, NaN
      to = (V)((Bits)magnitude | special | (bits & 0x8000) << 16);
    }
  }
}

// The sum of all lanes, in halves.
template <typename Sum, int Bytes>
EFCN_INLINE Sum folded(const typename Vector<Sum, Bytes>::type& vector) {
  typename Vector<Sum, Bytes / 2>::type low, high;
  std::memcpy(&low, &vector, Bytes / 2);
  std::memcpy(&high, reinterpret_cast<const char*>(&vector) + Bytes / 2, Bytes / 2);
  low += high;
  if constexpr (Bytes / 2 == sizeof(Sum))
    return low[0];
  else
    return folded<Sum, Bytes / 2>(low);
}

}  // namespace efcn_sparse::cpu
