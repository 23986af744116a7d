// What SpMM writes its sums to.
#pragma once

#include <cstdint>

#include "buffer.h"

namespace efcn_sparse::cpu {

constexpr int64_t kTogether = 128;  // columns of y that a task writes, at least, where block rows are lower

template <typename Stored, typename Sum>
struct Result {
  Stored* y;
  int64_t ldy;
  const Stored* bias;  // or null
  Sum alpha, beta;

  bool is_plain() const { return alpha == Sum(1) && beta == Sum(0) && bias == nullptr; }

  // y = alpha (sums + bias) + beta y for columns [begin, begin + n) of some rows; sums [rows, ld].
  void write(int64_t begin, int64_t n, int64_t first, int64_t rows, int64_t ld, const Sum* sums,
             Buffer<Sum>& widened_bias) const {
    widened_bias.assign(n, Sum(0));
    if (bias != nullptr)
      for (int64_t j = 0; j < n; ++j) widened_bias[j] = static_cast<Sum>(bias[begin + j]);
    const Sum* __restrict shift = widened_bias.data();
    for (int64_t m = 0; m < rows; ++m) {
      Stored* __restrict out = y + (first + m) * ldy + begin;
      const Sum* __restrict sum = sums + m * ld;
      if (alpha == Sum(1) && beta == Sum(0)) {
        for (int64_t j = 0; j < n; ++j) out[j] = static_cast<Stored>(sum[j] + shift[j]);
      } else {
        for (int64_t j = 0; j < n; ++j) out[j] = scaled(sum[j] + shift[j], out[j]);
      }
    }
  }

 private:
  Stored scaled(Sum result, Stored before) const {  // what was there is not read for beta = 0: it may be NaN
    return static_cast<Stored>(beta == Sum(0) ? alpha * result : alpha * result + beta * static_cast<Sum>(before));
  }
};

}  // namespace efcn_sparse::cpu
