#include "vectors.h"

#include <ATen/Version.h>

#include <string>

namespace efcn_sparse::cpu {

int vector_bytes() {
  static const int bytes = [] {
#if defined(__x86_64__)
    const std::string allowed = at::get_cpu_capability();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && allowed == "AVX512")
      return 64;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && allowed.rfind("AVX", 0) == 0) return 32;
#endif
    return 16;
  }();
  return bytes;
}

}  // namespace efcn_sparse::cpu
