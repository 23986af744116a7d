// oneDNN's batch-reduce GEMM, C [M, N] (+)= A [M, K] B [K, N], all row-major. It is the only GEMM that libtorch exports for
// calls inside a parallel region: cpublas::gemm is declared in a header, but not exported, and MKL's symbols are not promised.
// Nor is this one: a torch without it gets our own kernels.
#pragma once

#include <cstdint>

namespace efcn_sparse::cpu {

// Whether products go to brgemm: this torch has it, and EFCN_BRGEMM=off in the environment does not leave it out.
bool use_brgemm();

void brgemm(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
            int64_t ldc, bool add);
void release_brgemm();

}  // namespace efcn_sparse::cpu
