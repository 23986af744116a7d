// Dense products C [M, N] (+)= A [M, K] B [K, N]: brgemm.h's for fp32 where torch has it, our own for bfloat16.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <type_traits>

#include "brgemm.h"

namespace efcn_sparse::cpu {

// product_plain.cpp: plain loops, for fp64, and for fp32 without brgemm.
template <typename T>
void plain_product(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                   bool add);

// Consecutive columns of A, and the row of the panel where their part of B begins.
template <typename Operand>
struct Segment {
  const Operand* a;
  int64_t k, panel_row;
};

// `lda` is that of every A. K is even. The panel lies in strips of kStripColumns columns, or what is left, that begin `ldb`
// apart; its rows lie in pairs (k, k + 1) ("VNNI").
using SumSegments = void (*)(int64_t m, int64_t n, const Segment<c10::BFloat16>* segments, int64_t count, int64_t lda,
                             const c10::BFloat16* panel, int64_t ldb, float* c, int64_t ldc, bool add);
constexpr int64_t kStripColumns = 16;

// The kernel for this processor, or null: product_amx.cpp's, or product_bf16.cpp's with AVX-512 and its dot products.
SumSegments segments_kernel();

// Whether there is AMX, and EFCN_AMX=off in the environment does not leave it out; its kernel, or null; what ends its use.
bool has_amx();
SumSegments amx_kernel();
void release_amx();

// What a product takes and sums in: C [m, n] (+)= sum over segments of A [m, k] B [k, n]. A panel has `ldb` for one of n
// columns and k rows, and its columns from `column` on begin at `panel_column`.
template <typename Operand>
struct Product {
  using Sum = Operand;
  static constexpr int64_t k_multiple = 1;
  static int64_t panel_ld(int64_t n, int64_t) { return n; }
  static int64_t panel_column(int64_t column, int64_t) { return column; }
  static void sum(int64_t m, int64_t n, const Segment<Operand>* segments, int64_t count, int64_t lda,
                  const Operand* panel, int64_t ldb, Sum* c, int64_t ldc, bool add) {
    for (int64_t s = 0; s < count; ++s) {
      const int64_t k = segments[s].k;
      const Operand *a = segments[s].a, *b = panel + segments[s].panel_row * ldb;
      const auto multiply = [&](auto product) { product(m, n, k, a, lda, b, ldb, c, ldc, add || s > 0); };
      if constexpr (kHasBrgemm) {
        use_brgemm() ? multiply(brgemm) : multiply(plain_product<Operand>);
      } else {
        multiply(plain_product<Operand>);
      }
    }
  }
  // What a thread holds while it multiplies.
  struct Use {
    ~Use() {
      if (kHasBrgemm && use_brgemm()) release_brgemm();
    }
  };

 private:
  static constexpr bool kHasBrgemm = std::is_same_v<Operand, float>;
};

template <>
struct Product<c10::BFloat16> {
  using Sum = float;
  static constexpr int64_t k_multiple = 2;
  static int64_t panel_ld(int64_t, int64_t k) { return kStripColumns * k; }
  static int64_t panel_column(int64_t column, int64_t ldb) { return column / kStripColumns * ldb; }
  static void sum(int64_t m, int64_t n, const Segment<c10::BFloat16>* segments, int64_t count, int64_t lda,
                  const c10::BFloat16* panel, int64_t ldb, float* c, int64_t ldc, bool add) {
    segments_kernel()(m, n, segments, count, lda, panel, ldb, c, ldc, add);
  }
  struct Use {
    ~Use() {
      if (amx_kernel() != nullptr) release_amx();
    }
  };
};

// Calls kernel(stored type tag, operand type tag) for a tensor's dtype on this machine.
template <typename Kernel>
void dispatch_operand(c10::ScalarType dtype, const char* name, Kernel&& kernel) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return kernel(float{}, float{});
    case c10::ScalarType::Double:
      return kernel(double{}, double{});
    case c10::ScalarType::Half:
      return kernel(c10::Half{}, float{});
    case c10::ScalarType::BFloat16:
      return segments_kernel() != nullptr ? kernel(c10::BFloat16{}, c10::BFloat16{}) : kernel(c10::BFloat16{}, float{});
    default:
      TORCH_CHECK(false, name, " must be float32, bfloat16, float16 or float64, got ", dtype);
  }
}

}  // namespace efcn_sparse::cpu
