// Sums [rows, lanes] (+)= W [rows, K] X^T [K, lanes] for blocks of W as they are stored: each weight is read as a scalar,
// and multiplied with one feature of neighboring rows of the batch, which lie side by side. No weight is packed.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace efcn_sparse::cpu {

// Blocks with a side shorter than this are multiplied by columns: packing them would take long. With wider ones a product
// for each block is as fast.
int64_t columns_side();

// A block, or its part in the first `k` features.
template <typename T>
struct Piece {
  const T* weights;  // (row, k) at row * ld + k if stored along k, else at k * ld + row
  const T* columns;  // [k, lanes]
  int64_t k;
};

template <typename T>
struct ColumnProduct {
  int64_t lanes;  // rows of the batch side by side, a whole number of vectors; at most `most_lanes`
  int64_t ld;
  bool along_k;

  // `upcoming` pieces after those `count` are multiplied next.
  void run(int64_t rows, const Piece<T>* pieces, int64_t count, int64_t upcoming, T* sums, bool add) const;

  static int64_t vector();  // lanes of a register
  static int64_t most_lanes();
};

}  // namespace efcn_sparse::cpu
