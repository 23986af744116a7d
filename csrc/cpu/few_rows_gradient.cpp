// The product of a column and a row, or of a few, straight into the stored numbers. An entry is summed in the order of the
// batch.
#include "few_rows_gradient.h"

#include <algorithm>
#include <cstring>

#include "vectors.h"

namespace efcn_sparse::cpu {
namespace {

// As many numbers of Result from a vector of Sum, rounded to nearest, ties to even.
template <typename Sum, int Bytes, typename Result>
EFCN_INLINE void store(const typename Vector<Sum, Bytes>::type& from, Result* to) {
  if constexpr (std::is_same_v<Sum, Result>) {
    *reinterpret_cast<typename Vector<Sum, Bytes>::type*>(to) = from;
  } else {
    static_assert(std::is_same_v<Result, c10::BFloat16>);
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

// 32 numbers at once by the processor's own rounding, which is the same but for what it makes of NaN and of subnormal
// numbers: those take the way above.
template <typename V>
EFCN_INLINE void store_pair(const V& low, const V& high, c10::BFloat16* to) {
#if defined(__x86_64__)
  uint16_t special_low, special_high;
  asm("vfpclassps $0xa1, %1, %0" : "=k"(special_low) : "v"(low));
  asm("vfpclassps $0xa1, %1, %0" : "=k"(special_high) : "v"(high));
  if (__builtin_expect((special_low | special_high) == 0, 1)) {
    typename Vector<uint16_t, 64>::type both;
    asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(both) : "v"(low), "v"(high));
    *reinterpret_cast<typename Vector<uint16_t, 64>::type*>(to) = both;
    return;
  }
#endif
  store<float, 64>(low, to);
  store<float, 64>(high, to + 16);
}

// The left side of the entries [0, width) of some rows of the batch: one number for all, or with `Each` one for each.
template <bool Each, typename Sum>
struct Left {
  const Sum* numbers;
  int64_t ld;

  template <int Bytes>
  EFCN_INLINE void load_at(int64_t n, int64_t column, typename Vector<Sum, Bytes>::type& to) const {
    if constexpr (Each)
      load<Sum, Bytes>(numbers + n * ld + column, to);
    else
      to = numbers[n] - typename Vector<Sum, Bytes>::type{};
  }
  Sum at(int64_t n, int64_t column) const { return Each ? numbers[n * ld + column] : numbers[n]; }
};

template <int Bytes, int Batch, bool Add, typename L, typename Sum, typename Result>
EFCN_INLINE void entries(const FewRowsGradient<Sum, Result>& job, const L& left, const Sum* right, int64_t ld,
                         const Result* out, int64_t column, typename Vector<Sum, Bytes>::type& sum) {
  using V = typename Vector<Sum, Bytes>::type;
  sum = V{};
#pragma GCC unroll 8
  for (int n = 0; n < Batch; ++n) {
    V row, number;
    load<Sum, Bytes>(right + n * ld + column, row);
    left.template load_at<Bytes>(n, column, number);
    sum += number * row;
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
}

// Entries [column, width) of one row, a vector at a time, then in narrower vectors, then one by one.
template <int Bytes, bool Native, int Batch, bool Add, typename L, typename Sum, typename Result>
EFCN_INLINE void row(const FewRowsGradient<Sum, Result>& job, const L& left, const Sum* right, int64_t ld, Result* out,
                     int64_t column, int64_t width) {
  constexpr int64_t lanes = Vector<Sum, Bytes>::width;
  typename Vector<Sum, Bytes>::type sum, more;
  if constexpr (Native)
    for (; column + 2 * lanes <= width; column += 2 * lanes) {
      entries<Bytes, Batch, Add>(job, left, right, ld, out, column, sum);
      entries<Bytes, Batch, Add>(job, left, right, ld, out, column + lanes, more);
      store_pair(sum, more, out + column);
    }
  for (; column + lanes <= width; column += lanes) {
    entries<Bytes, Batch, Add>(job, left, right, ld, out, column, sum);
    store<Sum, Bytes>(sum, out + column);
  }
  if constexpr (Bytes > 16) {
    row<Bytes / 2, false, Batch, Add>(job, left, right, ld, out, column, width);
  } else {
    for (; column < width; ++column) {
      Sum one = 0;
      for (int n = 0; n < Batch; ++n) one += left.at(n, column) * right[n * ld + column];
      one *= job.alpha;
      if constexpr (Add) {
        Sum before = job.beta * static_cast<Sum>(out[column]);
        round_here(one);
        round_here(before);
        one += before;
      }
      out[column] = static_cast<Result>(one);
    }
  }
}

template <int Bytes, bool Native, int Batch, bool Add, typename Sum, typename Result>
EFCN_INLINE void rows(const FewRowsGradient<Sum, Result>& job, const Sum* left, const Sum* right, int64_t ld,
                      Result* out) {
  if (!job.narrow) {
    for (int64_t h = 0; h < job.height; ++h, left += Batch, out += job.width)
      row<Bytes, Native, Batch, Add>(job, Left<false, Sum>{left, 0}, right, ld, out, 0, job.width);
    return;
  }
  // Rows that fill no vector are one long row: of the right side there are copies one after another.
  constexpr int64_t lanes = Vector<Sum, Bytes>::width, copies = 2 * lanes;
  const int64_t elements = job.height * job.width, period = copies * job.width;
  Sum repeated[Batch][copies * lanes + lanes];
  for (int n = 0; n < Batch; ++n) {
    Sum one[lanes] = {};
    for (int64_t c = 0; c < job.width; ++c) one[c] = right[n * ld + c];
    for (int64_t r = 0; r < copies; ++r)  // a whole vector each: the next one overwrites what is too much
      std::memcpy(repeated[n] + r * job.width, one, sizeof(one));
  }
  for (int64_t e = 0; e < elements; e += period)
    row<Bytes, Native, Batch, Add>(job, Left<true, Sum>{left + e, elements}, repeated[0],
                                   sizeof(repeated[0]) / sizeof(Sum), out + e, 0, std::min(period, elements - e));
}

template <int Bytes, bool Native, int Batch, typename Sum, typename Result>
EFCN_INLINE void all(const FewRowsGradient<Sum, Result>& job, const Sum* left, const Sum* right, int64_t ld,
                     Result* out) {
  if (job.beta == Sum(0)) return rows<Bytes, Native, Batch, false>(job, left, right, ld, out);
  rows<Bytes, Native, Batch, true>(job, left, right, ld, out);
}

template <int Batch, typename Sum, typename Result>
void anywhere(const FewRowsGradient<Sum, Result>& job, const Sum* left, const Sum* right, int64_t ld, Result* out) {
  all<16, false, Batch>(job, left, right, ld, out);
}

#if defined(__x86_64__)
template <int Batch, typename Sum, typename Result>
EFCN_AVX2 void with_avx2(const FewRowsGradient<Sum, Result>& job, const Sum* left, const Sum* right, int64_t ld,
                         Result* out) {
  all<32, false, Batch>(job, left, right, ld, out);
}

template <bool Native, int Batch, typename Sum, typename Result>
EFCN_AVX512 void with_avx512(const FewRowsGradient<Sum, Result>& job, const Sum* left, const Sum* right, int64_t ld,
                             Result* out) {
  all<64, Native, Batch>(job, left, right, ld, out);
}
#endif

template <int Batch, typename Sum, typename Result>
auto best() {
#if defined(__x86_64__)
  if constexpr (std::is_same_v<Result, c10::BFloat16>)
    if (vector_bytes() == 64 && __builtin_cpu_supports("avx512bf16")) return &with_avx512<true, Batch, Sum, Result>;
  if (vector_bytes() == 64) return &with_avx512<false, Batch, Sum, Result>;
  if (vector_bytes() == 32) return &with_avx2<Batch, Sum, Result>;
#endif
  return &anywhere<Batch, Sum, Result>;
}

}  // namespace

template <typename Sum, typename Result>
bool FewRowsGradient<Sum, Result>::is_narrow(int64_t width) {
  return width < vector_bytes() / static_cast<int64_t>(sizeof(Sum)) && (width & (width - 1)) != 0;
}

template <typename Sum, typename Result>
void FewRowsGradient<Sum, Result>::block(const Sum* left, const Sum* right, int64_t ld, Result* out) const {
  static const auto one = best<1, Sum, Result>(), two = best<2, Sum, Result>(), four = best<4, Sum, Result>(),
                    eight = best<8, Sum, Result>();
  (batch == 1 ? one : batch == 2 ? two : batch == 4 ? four : eight)(*this, left, right, ld, out);
}

template struct FewRowsGradient<float, float>;
template struct FewRowsGradient<double, double>;
template struct FewRowsGradient<float, c10::BFloat16>;

}  // namespace efcn_sparse::cpu
