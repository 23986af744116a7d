// SDDMM of a few rows, where transposing them would take longer than multiplying.
#pragma once

#include <cstdint>

namespace efcn_sparse::cpu {

// out [height, width] = alpha * left^T right + beta * out, each number read and written once; out is not read for beta = 0.
template <typename Sum, typename Result>
struct FewRowsGradient {
  int64_t height, width, batch;  // batch: 1, 2, 4 or 8
  Sum alpha, beta;
  bool narrow = false;

  // Whether rows fill no vector, and are better taken together.
  static bool is_narrow(int64_t width);

  // left [height, batch], or if narrow [batch, height, width], each number as often as a row is wide; right: rows `ld`
  // apart.
  void block(const Sum* left, const Sum* right, int64_t ld, Result* out) const;
};

}  // namespace efcn_sparse::cpu
