#include "brgemm.h"

#include <cstdlib>
#include <cstring>
#if __has_include(<ATen/native/CPUBlas.h>)
#include <ATen/native/CPUBlas.h>
#endif

namespace efcn_sparse::cpu {

#ifdef CPUBLAS_BRGEMM_F32F32F32

bool use_brgemm() {
  static const bool answer = [] {
    const char* setting = std::getenv("EFCN_BRGEMM");
    return setting == nullptr || std::strcmp(setting, "off") != 0;
  }();
  return answer;
}

void brgemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
            int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/false);
}

void release_brgemm() { at::native::cpublas::brgemm_release(/*is_vnni=*/false); }

#else

bool use_brgemm() { return false; }
void brgemm(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool) {}
void release_brgemm() {}

#endif

}  // namespace efcn_sparse::cpu
