// The loops are compiled once for each vector width, and the widest that the machine has is taken.
#include "subspace_tiles.h"

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define EFCN_EACH_VECTOR_WIDTH __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EFCN_EACH_VECTOR_WIDTH
#endif

namespace efcn_sparse::cpu {

namespace body {
namespace {

inline double widen(double x) { return x; }
inline double widen(float x) { return x; }
inline double widen(c10::BFloat16 x) { return static_cast<float>(x); }
inline double widen(c10::Half x) { return static_cast<float>(x); }

template <typename T>
[[gnu::always_inline]] inline void add_copies(const Copies<const T>& copies, const Moments& moments) {
  const double* __restrict reference = moments.reference;
  double* __restrict sum = moments.sum;
  double* __restrict squares = moments.squares;
  int64_t i = 0;
  for (; i + 4 <= copies.count; i += 4) {  // four at once: the sums are loaded and stored a quarter as often
    const T* __restrict a = copies[i], * __restrict b = copies[i + 1];
    const T* __restrict c = copies[i + 2], * __restrict d = copies[i + 3];
    for (int64_t j = 0; j < copies.width; ++j) {
      const double r = reference[j];
      const double da = widen(a[j]) - r, db = widen(b[j]) - r, dc = widen(c[j]) - r, dd = widen(d[j]) - r;
      sum[j] += (da + db) + (dc + dd);
      squares[j] += (da * da + db * db) + (dc * dc + dd * dd);
    }
  }
  for (; i < copies.count; ++i) {
    const T* __restrict a = copies[i];
    for (int64_t j = 0; j < copies.width; ++j) {
      const double da = widen(a[j]) - reference[j];
      sum[j] += da;
      squares[j] += da * da;
    }
  }
}

template <typename T>
[[gnu::always_inline]] inline double sum_of_squares(const Copies<const T>& copies) {
  double total = 0;
  for (int64_t i = 0; i < copies.count; ++i) {
    const T* __restrict a = copies[i];
    double block = 0;
#pragma omp simd reduction(+ : block)
    for (int64_t j = 0; j < copies.width; ++j) block += widen(a[j]) * widen(a[j]);
    total += block;
  }
  return total;
}

}  // namespace
}  // namespace body

#define EFCN_DEFINE(T)                                                                            \
  EFCN_EACH_VECTOR_WIDTH void add_copies(const Copies<const T>& copies, const Moments& moments) { \
    body::add_copies(copies, moments);                                                            \
  }                                                                                               \
  EFCN_EACH_VECTOR_WIDTH double sum_of_squares(const Copies<const T>& copies) { return body::sum_of_squares(copies); }

EFCN_DEFINE(float)
EFCN_DEFINE(double)
EFCN_DEFINE(c10::BFloat16)
EFCN_DEFINE(c10::Half)

#undef EFCN_DEFINE

EFCN_EACH_VECTOR_WIDTH void add_tied_and_untied(const Moments& moments, int64_t count, int64_t width, double& tied,
                                                double& untied) {
  const double n = static_cast<double>(count);
  double means = 0, rests = 0;
#pragma omp simd reduction(+ : means, rests)
  for (int64_t j = 0; j < width; ++j) {
    const double shift = moments.sum[j] / n, mean = moments.reference[j] + shift;
    const double rest = moments.squares[j] - moments.sum[j] * shift;
    means += mean * mean;
    rests += rest < 0 ? 0 : rest;  // rounding only; a NaN stays
  }
  tied += n * means;
  untied += rests;
}

}  // namespace efcn_sparse::cpu
