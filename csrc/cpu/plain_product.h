// The dense product C [M, N] (+)= A [M, K] B [K, N] in plain loops: fp64, and fp32 where torch has no batch-reduce GEMM.
// torch exports no other GEMM that could be called here.
#pragma once

#include <cstdint>

namespace efcn_sparse::cpu {

void plain_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                   int64_t ldc, bool add);
void plain_product(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b, int64_t ldb,
                   double* c, int64_t ldc, bool add);

}  // namespace efcn_sparse::cpu
