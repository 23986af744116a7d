// SpMM of a few rows, where packing the weights would take longer than multiplying them.
#pragma once

#include "vectors.h"
#include "walk.h"

namespace efcn_sparse::cpu {

constexpr int64_t kFewRows = 8, kVeryFewRows = 4;
// Blocks whose contiguous side is shorter than this fill no vector.
constexpr int64_t kFewRowsSide = 4;

// Whether the rows are few enough. Where blocks are stored along the input, what fills no vector takes its time for every
// row, and a product of 16-bit operands (`halves`) does more at once.
template <typename Sum>
bool are_few(int64_t rows, const Walk& walk, bool halves) {
#if defined(__x86_64__)
  if (vector_bytes() == 16) return false;  // there are no kernels for x86 without AVX2: they would take long to compile
#endif
  if (!walk.stored_out_by_in) return rows <= kFewRows && walk.out_side >= kFewRowsSide;
  const bool full = walk.in_side * sizeof(Sum) % 64 == 0;
  return rows <= (full && !halves ? kFewRows : kVeryFewRows) && walk.in_side >= kFewRowsSide;
}

// Block rows that a thread takes at a time: their weights lie side by side, and it asks for those of the next one in advance.
inline int64_t rows_in_stretch(const Walk& walk, int64_t threads) {
  constexpr int64_t kStretches = 8;  // of each thread
  return std::max<int64_t>(1, walk.rows / (kStretches * threads));
}

template <typename Stored, typename Sum>
struct FewRows {
  Walk walk;
  Masks masks;
  const Stored* values;
  const Sum* x;
  int64_t ldx, batch;  // batch: 1, 2, 4 or 8

  // sums [batch, out_side] of block row i. `block` [out_side * in_side] is for what is masked.
  void block_row(int64_t i, Sum* sums, Stored* block) const;
};

}  // namespace efcn_sparse::cpu
