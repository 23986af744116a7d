// Products of blocks with one short side. A block is a panel [short side, long side] here, and vectors run along the long
// side, which images that are channels last hold side by side too: neither x nor y is transposed. The first of the three is
// also the dense product of any block where torch has none (product_plain.cpp).
#pragma once

#include <cstdint>

namespace efcn_sparse::cpu {

// A block, and the `k` features of x that it meets.
template <typename T>
struct PanelPiece {
  const T *panel, *x;
  int64_t ldx, k;
  const T* upcoming = nullptr;  // a block of the same size that is read later: spread() has it on its way to the cache
};

template <typename T>
struct PanelProduct {
  int64_t ldp;        // between rows of a panel
  int64_t depth = 0;  // rows of a panel, if its columns lie in strips of `ldp`, one after the other

  static int64_t vector();  // numbers in a register, of which long sides are multiples
  static int64_t strip();   // columns that spread() computes together

  // y [rows, n] (+)= sum over pieces of x [rows, k] panel [k, n], and + bias [n] if there is one; n is a multiple of vector(),
  // and all pieces have one ldx.
  void spread(int64_t rows, int64_t n, const PanelPiece<T>* pieces, int64_t count, T* y, int64_t ldy, const T* bias,
              bool add) const;

  // y [rows, n] (+)= sum over pieces of x [rows, k] panel [n, k]^T; each k is a long side.
  void dots(int64_t rows, int64_t n, const PanelPiece<T>* pieces, int64_t count, T* y, int64_t ldy, bool add) const;

  // panel [n, ldp] (+)= x [rows, n]^T left [rows, ldp]; ldp is a long side. Of as many rows at `upcoming`, `ldu` apart, a
  // line each is on its way to the cache afterwards.
  void outer(int64_t rows, int64_t n, const T* x, int64_t ldx, const T* left, T* panel, bool add, const T* upcoming,
             int64_t ldu) const;
};

}  // namespace efcn_sparse::cpu
