// The product of a column and a row, or of a few, straight into the stored numbers. An entry is summed in the order of the
// batch.
#include "few_rows_gradient.h"

#include "vectors.h"

namespace efcn_sparse::cpu {
namespace {

// As many numbers of Result from a vector of Sum, rounded to nearest, ties to even.
template <typename Sum, int Bytes, typename Result>
EFCN_INLINE void store(const typename Vector<Sum, Bytes>::type& from, Result* to) {
  if constexpr (std::is_same_v<Sum, Result>) {
    *reinterpret_cast<typename Vector<Sum, Bytes>::type*>(to) = from;
  } else {
    static_assert(std::is_same_v<Result, at::BFloat16>);
    using Bits = typename Vector<uint32_t, Bytes>::type;
    using Half = typename Vector<uint16_t, Bytes / 2>::type;
    const Bits bits = (Bits)from, ordered = (Bits)(from == from);
    const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const Bits found = (rounded & ordered) | (~ordered & 0x7fc0);
    *reinterpret_cast<Half*>(to) = __builtin_convertvector(found, Half);
  }
}

// Keeps the compiler from merging a product with the sum that follows: steps have the same bits on every instruction set.
template <typename T>
EFCN_INLINE void round_here(T& product) {
#if defined(__x86_64__)
  asm("" : "+x"(product));
#elif defined(__aarch64__)
  asm("" : "+w"(product));
#endif
}

// Columns of one row from `column` on, a vector at a time, then in narrower vectors; returns the first that is left.
template <int Bytes, int Batch, bool Add, typename Sum, typename Result>
EFCN_INLINE int64_t columns(const FewRowsGradient<Sum, Result>& job, const Sum* left, const Sum* right, int64_t ld,
                            Result* out, int64_t column) {
  using V = typename Vector<Sum, Bytes>::type;
  constexpr int64_t width = Vector<Sum, Bytes>::width;
  for (; column + width <= job.width; column += width) {
    V sum = {};
#pragma GCC unroll 8
    for (int n = 0; n < Batch; ++n) {
      V row;
      load<Sum, Bytes>(right + n * ld + column, row);
      sum += left[n] * row;
    }
    sum *= job.alpha;
    if constexpr (Add) {
      V before;
      load<Sum, Bytes>(out + column, before);
      before *= job.beta;
      round_here(sum);
      round_here(before);
      sum += before;
    }
    store<Sum, Bytes>(sum, out + column);
  }
  if constexpr (Bytes > 16) return columns<Bytes / 2, Batch, Add>(job, left, right, ld, out, column);
  return column;
}

template <int Bytes, int Batch, bool Add, typename Sum, typename Result>
EFCN_INLINE void rows(const FewRowsGradient<Sum, Result>& job, const Sum* left, const Sum* right, int64_t ld,
                      Result* out) {
  for (int64_t h = 0; h < job.height; ++h, left += Batch, out += job.width) {
    int64_t column = columns<Bytes, Batch, Add>(job, left, right, ld, out, 0);
    for (; column < job.width; ++column) {
      Sum sum = 0;
      for (int n = 0; n < Batch; ++n) sum += left[n] * right[n * ld + column];
      sum *= job.alpha;
      if constexpr (Add) {
        Sum before = job.beta * static_cast<Sum>(out[column]);
        round_here(sum);
        round_here(before);
        sum += before;
      }
      out[column] = static_cast<Result>(sum);
    }
  }
}

template <int Bytes, int Batch, typename Sum, typename Result>
EFCN_INLINE void all(const FewRowsGradient<Sum, Result>& job, const Sum* left, const Sum* right, int64_t ld,
                     Result* out) {
  if (job.beta == Sum(0)) return rows<Bytes, Batch, false>(job, left, right, ld, out);
  rows<Bytes, Batch, true>(job, left, right, ld, out);
}

template <int Batch, typename Sum, typename Result>
void anywhere(const FewRowsGradient<Sum, Result>& job, const Sum* left, const Sum* right, int64_t ld, Result* out) {
  all<16, Batch>(job, left, right, ld, out);
}

#if defined(__x86_64__)
template <int Batch, typename Sum, typename Result>
EFCN_AVX2 void with_avx2(const FewRowsGradient<Sum, Result>& job, const Sum* left, const Sum* right, int64_t ld,
                         Result* out) {
  all<32, Batch>(job, left, right, ld, out);
}

template <int Batch, typename Sum, typename Result>
EFCN_AVX512 void with_avx512(const FewRowsGradient<Sum, Result>& job, const Sum* left, const Sum* right, int64_t ld,
                             Result* out) {
  all<64, Batch>(job, left, right, ld, out);
}
#endif

template <int Batch, typename Sum, typename Result>
auto best() {
#if defined(__x86_64__)
  if (vector_bytes() == 64) return &with_avx512<Batch, Sum, Result>;
  if (vector_bytes() == 32) return &with_avx2<Batch, Sum, Result>;
#endif
  return &anywhere<Batch, Sum, Result>;
}

}  // namespace

template <typename Sum, typename Result>
void FewRowsGradient<Sum, Result>::block(const Sum* left, const Sum* right, int64_t ld, Result* out) const {
  static const auto one = best<1, Sum, Result>(), two = best<2, Sum, Result>(), four = best<4, Sum, Result>(),
                    eight = best<8, Sum, Result>();
  (batch == 1 ? one : batch == 2 ? two : batch == 4 ? four : eight)(*this, left, right, ld, out);
}

template struct FewRowsGradient<float, float>;
template struct FewRowsGradient<double, double>;
template struct FewRowsGradient<float, at::BFloat16>;

}  // namespace efcn_sparse::cpu
