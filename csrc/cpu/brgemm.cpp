#include "brgemm.h"

#include <cstdlib>
#include <cstring>
#include <exception>
#if __has_include(<ATen/native/CPUBlas.h>)
#include <ATen/native/CPUBlas.h>
#endif

namespace efcn_sparse::cpu {

#if defined(CPUBLAS_BRGEMM_F32F32F32) && defined(CPUBLAS_BRGEMM_BF16BF16F32)

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

void brgemm(int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t lda, const c10::BFloat16* b, int64_t ldb,
            float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/true);
}

void release_brgemm(bool is_vnni) { at::native::cpublas::brgemm_release(is_vnni); }

// It throws on machines without bfloat16 dot products instead of falling back, so ask it once.
bool brgemm_has_bf16() {
  static const bool answer = [] {
    alignas(64) c10::BFloat16 a[32 * 32] = {}, b[32 * 32] = {};
    alignas(64) float c[32 * 32];
    try {
      brgemm(32, 32, 32, a, 32, b, 32, c, 32, false);
      release_brgemm(/*is_vnni=*/true);
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }();
  return answer;
}

#else

bool use_brgemm() { return false; }
bool brgemm_has_bf16() { return false; }
void brgemm(int64_t, int64_t, int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool) {}
void brgemm(int64_t, int64_t, int64_t, const c10::BFloat16*, int64_t, const c10::BFloat16*, int64_t, float*, int64_t,
            bool) {}
void release_brgemm(bool) {}

#endif

}  // namespace efcn_sparse::cpu
