// What SpMM writes its sums to.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "vectors.h"

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
    const Sum *shift = widened_bias.data(), by = alpha, kept = beta;
    Stored* to = y + first * ldy + begin;
    const int64_t ld_to = ldy;
    run_here(EFCN_LOOP() {
      for (int64_t m = 0; m < rows; ++m) {
        Stored* __restrict out = to + m * ld_to;
        const Sum* __restrict sum = sums + m * ld;
        if (by == Sum(1) && kept == Sum(0))
          for (int64_t j = 0; j < n; ++j) out[j] = static_cast<Stored>(sum[j] + shift[j]);
        else if (kept == Sum(0))  // what was there is not read: it may be NaN
          for (int64_t j = 0; j < n; ++j) out[j] = static_cast<Stored>(by * (sum[j] + shift[j]));
        else
          for (int64_t j = 0; j < n; ++j)
            out[j] = static_cast<Stored>(by * (sum[j] + shift[j]) + kept * static_cast<Sum>(out[j]));
      }
    });
  }
};

}  // namespace efcn_sparse::cpu
