// Loops over one slice of the elements of every block of a class.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

namespace efcn_sparse::cpu {

// The same slice of several blocks: copy i starts at values + blocks[i] * stride.
template <typename T>
struct Copies {
  T* values;
  const int32_t* blocks;
  int64_t count, stride, width;

  T* operator[](int64_t i) const { return values + static_cast<int64_t>(blocks[i]) * stride; }
};

// Sums over the copies of the difference to a reference, and of its square; one for each element of the slice.
struct Moments {
  const double* reference;
  double* sum;
  double* squares;
};

#define EFCN_DECLARE(T)                                                   \
  void add_copies(const Copies<const T>& copies, const Moments& moments); \
  double sum_of_squares(const Copies<const T>& copies);

EFCN_DECLARE(float)
EFCN_DECLARE(double)
EFCN_DECLARE(c10::BFloat16)
EFCN_DECLARE(c10::Half)
#undef EFCN_DECLARE

// Adds count * mean^2 and the squared distances from the mean, of `count` copies of each of `width` kernel entries.
void add_tied_and_untied(const Moments& moments, int64_t count, int64_t width, double& tied, double& untied);

}  // namespace efcn_sparse::cpu
