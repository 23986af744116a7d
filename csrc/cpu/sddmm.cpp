// SDDMM over blocks: the gradient of W. One task is one block row: its part of a is transposed once, and multiplied with
// the columns of b that its blocks need; consecutive blocks are computed together.
// A gradient is scaled and added in two roundings, as by few_rows_gradient.cpp, which a fused multiply-add would make one.
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("fp-contract=off")
#endif
#include "operations.h"

#include <ATen/ops/empty.h>

#include "buffer.h"
#include "few_rows.h"
#include "few_rows_gradient.h"
#include "pack.h"
#include "panels.h"
#include "product_panels.h"
#include "structure.h"
#include "threads.h"
#include "vectors.h"

namespace efcn_sparse::cpu {
namespace {

constexpr int64_t kSumRows = 256;                    // in a chain of sums; longer ones round badly
constexpr int64_t kRunWidth = 64;                    // columns computed together
constexpr int64_t kPanelSide = 4, kPanelBatch = 32;  // less than this is not worth transposing the result

// sums [width] (+)= those of the columns of a [rows, width].
template <typename Sum, typename Stored>
void sum_columns(const Stored* a, int64_t lda, int64_t rows, int64_t width, bool add, Stored* sums) {
  run_here(EFCN_LOOP() {
    in_stretches(
        width, EFCN_LOOP(int64_t column, auto size) {
          Sum total[kStretch] = {};
          for (int64_t c = 0; c < size && add; ++c) total[c] = static_cast<Sum>(sums[column + c]);
          for (int64_t begin = 0; begin < rows; begin += kSumRows) {
            Sum part[kStretch] = {};
            for (int64_t m = begin; m < std::min(rows, begin + kSumRows); ++m)
              for (int64_t c = 0; c < size; ++c) part[c] += static_cast<Sum>(a[m * lda + column + c]);
            for (int64_t c = 0; c < size; ++c) total[c] += part[c];
          }
          for (int64_t c = 0; c < size; ++c) sums[column + c] = static_cast<Stored>(total[c]);
        });
  });
}

// `Result` is the dtype of values: that of a and b, or of the sums.
template <typename Stored, typename Operand, typename Result>
class SampledProduct {
 public:
  using Sum = typename Product<Operand>::Sum;

  // `goes_on`: values and column sums hold those of the rows of the batch before these.
  SampledProduct(at::Tensor& values, const at::Tensor& a, const at::Tensor& b, const Walk& walk, const Masks& masks,
                 double alpha, double beta, Stored* column_sums, bool goes_on)
      : walk_(walk), masks_(masks), values_(values.mutable_data_ptr<Result>()), a_(a.const_data_ptr<Stored>()),
        lda_(a.stride(0)), batch_(a.size(0)), padded_batch_(round_up(batch_, Product<Operand>::k_multiple)),
        ld_left_(padded_batch_ + 64 / sizeof(Operand)),  // one cache line more: no power of two
        alpha_(static_cast<Sum>(alpha)), beta_(static_cast<Sum>(goes_on ? 1. : beta)), column_sums_(column_sums),
        goes_on_(goes_on) {
    if (kFew && batch_ <= kFewRows) {
      few_ = 1;
      while (few_ < batch_) few_ *= 2;
      rows_.resize(few_ * b.size(1), Sum(0));
      copy_rows(b.const_data_ptr<Stored>(), b.stride(0), 0, batch_, 0, b.size(1), b.size(1), rows_.data());
      return;
    }
    x_ = b.const_data_ptr<Stored>();
    ldx_ = b.stride(0);
    // rows of b lie far apart, so that of narrower blocks each number costs a cache line
    if (kPanels && walk.in_side >= kPanelSide && batch_ >= kPanelBatch && fit_panels(walk.in_side, walk.out_side)) {
      panels_used_ = true;
      return;
    }
    adds_up_ = beta_ == Sum(0) || (beta_ == Sum(1) && (goes_on || padded_batch_ <= kBatchChunk));
    if (std::is_same_v<Operand, Sum> && adds_up_) std::swap(scale_, alpha_);
    constexpr bool can_stay = std::is_same_v<Stored, Operand> && Product<Operand>::k_multiple == 1;
    const bool crowded = b.stride(0) * sizeof(Stored) % kCrowdedBytes == 0 && walk.in_side >= kCrowdedSide;
    gathered_ = worth_gathering(walk);
    in_place_ = can_stay && !crowded && !gathered_;
    if (in_place_) {
      b_ = static_cast<const Operand*>(b.const_data_ptr());
      ldb_ = b.stride(0);
    } else if (!gathered_) {
      panels_ = right_panels<Stored, Operand>(b, walk);
      b_ = panels_.template const_data_ptr<Operand>();
      ldb_ = Product<Operand>::panel_ld(walk.in_side, padded_batch_);
    }
  }

  void run() {
    const int64_t threads = threads_for(batch_ * walk_.starts[walk_.rows] * walk_.out_side * walk_.in_side);
    const int64_t together = few_ > 0 ? rows_in_stretch(walk_, threads) : 1;
    const std::vector<int64_t> firsts = walk_.strips(together, few_ == 0 && threads > 1);
    share_tasks(
        firsts.size(),
        [&](auto&& next) {
          const typename Product<Operand>::Use use;
          Workspace space;
          for (int64_t task = next(); task >= 0; task = next())
            for (int64_t i = firsts[task]; i < std::min(walk_.rows, firsts[task] + together); ++i) {
              if (column_sums_ != nullptr)  // of what is read next
                sum_columns<Sum>(a_ + i * walk_.out_side, lda_, batch_, walk_.out_extent(i), goes_on_,
                                 column_sums_ + i * walk_.out_side);
              few_ > 0 ? few_rows(i, space) : panels_used_ ? panel_row(i, space) : block_row(i, space);
            }
        },
        threads);
  }

 private:
  static constexpr bool kFew = !std::is_same_v<Result, at::Half>;
  static constexpr bool kPanels = std::is_same_v<Stored, Sum> && std::is_same_v<Result, Sum>;

  struct Workspace {
    Buffer<Operand> left, gathered, paired;
    Buffer<Sum> sums, columns;
  };

  void few_rows(int64_t i, Workspace& space) const {
    if constexpr (kFew) {
      using Gradient = FewRowsGradient<Sum, Result>;
      const int64_t height = walk_.out_extent(i), elements = walk_.out_side * walk_.in_side;
      const bool narrow = Gradient::is_narrow(walk_.in_side) && walk_.in_features % walk_.in_side == 0;
      const int64_t times = narrow ? walk_.in_side : 1, ld = narrow ? height * times : 1, step = narrow ? times : few_;
      space.columns.assign(height * few_ * times, Sum(0));
      for (int64_t n = 0; n < batch_; ++n)
        for (int64_t h = 0; h < height; ++h)
          std::fill_n(space.columns.data() + n * ld + h * step, times,
                      static_cast<Sum>(a_[n * lda_ + i * walk_.out_side + h]));
      for (int64_t k = walk_.starts[i]; k < walk_.starts[i + 1]; ++k) {
        const int64_t j = walk_.neighbors[k], width = walk_.in_extent(j);
        const Sum* right = rows_.data() + j * walk_.in_side;
        const uint8_t* mask = masks_.of(k);
        if (height * width == elements) {
          Result* out = values_ + k * elements;
          Gradient{height, width, few_, alpha_, beta_, narrow}.block(space.columns.data(), right, walk_.in_features,
                                                                     out);
          if (mask != nullptr) keep_inside(out, mask, elements, out);
        } else {
          space.sums.resize(elements);
          FewRowsGradient<Sum, Sum>{height, width, few_, Sum(1), Sum(0), narrow}.block(
              space.columns.data(), right, walk_.in_features, space.sums.data());
          write(k, height, width, space.sums.data(), width);
        }
      }
    }
  }

  // Blocks with a short side along b: neither a nor b is transposed, only the result.
  void panel_row(int64_t i, Workspace& space) const {
    if constexpr (kPanels) {
      const int64_t height = walk_.out_extent(i), side = walk_.out_side, elements = side * walk_.in_side;
      if (walk_.starts[i] == walk_.starts[i + 1]) return;
      space.left.resize(batch_ * side);
      space.columns.resize(round_up(walk_.in_side, kPanelMultiple) * side);
      space.sums.resize(elements);
      copy_rows(a_ + i * side, lda_, 0, batch_, 0, height, side, space.left.data());
      for (int64_t k = walk_.starts[i]; k < walk_.starts[i + 1]; ++k) {
        const int64_t j = walk_.neighbors[k], width = walk_.in_extent(j);
        const int64_t line = (k - walk_.starts[i]) * (64 / sizeof(Sum));
        if (beta_ != Sum(0)) prefetch(values_ + k * elements, elements);
        const Stored* upcoming = a_ + std::min((i + 1) * side + line % side, walk_.out_features - 1);
        for (int64_t m = 0; m < batch_; m += kBatchChunk)
          PanelProduct<Sum>{side}.outer(std::min(kBatchChunk, batch_ - m), width, x_ + m * ldx_ + j * walk_.in_side,
                                        ldx_, space.left.data() + m * side, space.columns.data(), m > 0,
                                        upcoming + m * lda_, lda_);
        const bool plain = alpha_ == Sum(1) && beta_ == Sum(0) && masks_.of(k) == nullptr;
        if (plain && height == side && width == walk_.in_side) {
          from_panel(space.columns.data(), side, side, walk_.in_side, values_ + k * elements);
        } else {
          from_panel(space.columns.data(), side, side, walk_.in_side, space.sums.data());
          write(k, height, width, space.sums.data(), walk_.in_side);
        }
      }
    }
  }

  void block_row(int64_t i, Workspace& space) const {
    const int64_t begin = walk_.starts[i], end = walk_.starts[i + 1], height = walk_.out_extent(i);
    if (begin == end) return;
    space.left.resize(height * ld_left_);
    transpose_left(a_ + i * walk_.out_side, lda_, batch_, padded_batch_, height, space.left.data(), ld_left_);
    if constexpr (std::is_same_v<Operand, Sum>)
      for (int64_t h = 0; h < height && scale_ != Sum(1); ++h)
        for (int64_t m = 0; m < batch_; ++m) space.left[h * ld_left_ + m] *= scale_;
    for (int64_t k = begin; k < end;) {
      if (gathered_) {
        k = gathered_run(k, end, height, space);
        continue;
      }
      const int64_t j = walk_.neighbors[k];
      int64_t width = walk_.in_extent(j), blocks = 1;
      while (in_place_ && k + blocks < end && walk_.neighbors[k + blocks] == j + blocks &&
             width + walk_.in_side <= kRunWidth)
        width += walk_.in_extent(j + blocks++);
      run_of_blocks(k, blocks, j, height, width, space);
      k += blocks;
    }
  }

  void run_of_blocks(int64_t k, int64_t blocks, int64_t j, int64_t height, int64_t width, Workspace& space) const {
    Sum* sums = nullptr;
    bool add = false;
    if constexpr (std::is_same_v<Result, Sum>) {
      const int64_t elements = walk_.out_side * walk_.in_side;
      if (adds_up_ && alpha_ == Sum(1) && height * width == elements && blocks == 1 && masks_.of(k) == nullptr) {
        sums = values_ + k * elements;
        add = beta_ != Sum(0);
        if (add) prefetch(sums, elements);
      }
    }
    const bool direct = sums != nullptr;
    if (!direct) {
      space.sums.resize(std::max<size_t>(space.sums.size(), height * width));
      sums = space.sums.data();
    }
    for (int64_t w = 0; w < width; w += kRunWidth) {
      for (int64_t m = 0; m < padded_batch_; m += kBatchChunk) {
        const int64_t rows = std::min(kBatchChunk, padded_batch_ - m);
        const Operand* b = in_place_ ? b_ + j * walk_.in_side : b_ + j * padded_batch_ * walk_.in_side;
        const Segment<Operand> segment{space.left.data() + m, rows, m};
        Product<Operand>::sum(height, std::min(kRunWidth, width - w), &segment, 1, ld_left_,
                              b + Product<Operand>::panel_column(w, ldb_), ldb_, sums + w, width, add || m > 0);
      }
    }
    for (int64_t block = 0; block < blocks && !direct; ++block)
      write(k + block, height, walk_.in_extent(j + block), space.sums.data() + block * walk_.in_side, width);
  }

  // Blocks [k, end) as far as kRunWidth columns reach, computed as one product; returns the first block that is left.
  int64_t gathered_run(int64_t k, int64_t end, int64_t height, Workspace& space) const {
    const int64_t last = std::min(end, k + std::max<int64_t>(1, kRunWidth / walk_.in_side));
    int64_t width = 0;
    for (int64_t p = k; p < last; ++p) width += walk_.in_extent(walk_.neighbors[p]);
    space.gathered.resize(std::max<size_t>(space.gathered.size(), padded_batch_ * width));
    space.sums.resize(std::max<size_t>(space.sums.size(), height * width));
    for (int64_t p = k, column = 0; p < last;) {
      const int64_t j = walk_.neighbors[p];
      int64_t extent = walk_.in_extent(j);
      for (++p; p < last && walk_.neighbors[p] == walk_.neighbors[p - 1] + 1; ++p)
        extent += walk_.in_extent(walk_.neighbors[p]);
      gather_columns(x_ + j * walk_.in_side, ldx_, batch_, extent, space.gathered.data() + column, width);
      column += extent;
    }
    const Operand* right = space.gathered.data();
    const int64_t ldb = Product<Operand>::panel_ld(width, padded_batch_);
    if constexpr (Product<Operand>::k_multiple == 2) {
      space.paired.resize(std::max<size_t>(space.paired.size(), padded_batch_ * width));
      pack_panel(right, width, false, width, batch_, space.paired.data(), 0, ldb);
      right = space.paired.data();
    }
    for (int64_t m = 0; m < padded_batch_; m += kBatchChunk) {
      const Segment<Operand> segment{space.left.data() + m, std::min(kBatchChunk, padded_batch_ - m), m};
      Product<Operand>::sum(height, width, &segment, 1, ld_left_, right, ldb, space.sums.data(), width, m > 0);
    }
    for (int64_t column = 0; k < last; ++k) {
      const int64_t extent = walk_.in_extent(walk_.neighbors[k]);
      write(k, height, extent, space.sums.data() + column, width);
      column += extent;
    }
    return last;
  }

  void write(int64_t block, int64_t height, int64_t width, const Sum* sums, int64_t ld) const {
    const int64_t elements = walk_.out_side * walk_.in_side;
    Result* out = values_ + block * elements;
    const uint8_t* mask = masks_.of(block);
    const Sum alpha = alpha_, beta = beta_;
    const int64_t ldo = walk_.in_side;
    run_here(EFCN_LOOP() {
      for (int64_t h = 0; h < height; ++h) {
        const Sum* __restrict from = sums + h * ld;
        Result* __restrict to = out + h * ldo;
        if (beta == Sum(0))
          for (int64_t w = 0; w < width; ++w) to[w] = static_cast<Result>(alpha * from[w]);
        else
          for (int64_t w = 0; w < width; ++w)
            to[w] = static_cast<Result>(alpha * from[w] + beta * static_cast<Sum>(to[w]));
      }
    });
    for (int64_t h = 0; h < walk_.out_side; ++h, out += walk_.in_side) {
      const int64_t inside = h < height ? width : 0;
      for (int64_t w = inside; w < walk_.in_side; ++w) out[w] = Result(0);
      if (mask != nullptr)
        for (int64_t w = 0; w < inside; ++w) out[w] = mask[h * walk_.in_side + w] ? out[w] : Result(0);
    }
  }

  Walk walk_;
  Masks masks_;
  Result* values_;
  const Stored* a_;
  int64_t lda_, batch_, padded_batch_, ld_left_;
  Sum alpha_, beta_;
  Stored* column_sums_;  // or null
  bool goes_on_;
  Sum scale_ = Sum(1);    // of the left side, in place of alpha
  bool adds_up_ = false;  // sums may be made where they go
  int64_t few_ = 0;       // the batch, padded with zeros to a power of two, where it is small
  Buffer<Sum> rows_;      // b then, [few_, in_features]
  bool in_place_ = false, gathered_ = false, panels_used_ = false;
  const Stored* x_;
  int64_t ldx_;
  at::Tensor panels_;
  const Operand* b_ = nullptr;
  int64_t ldb_ = 0;
};

// Rows of the batch whose copies, and what they are copied from, stay in the caches: the sums of the next ones are added.
int64_t rows_at_once(const at::Tensor& a, const at::Tensor& b) {
  const int64_t batch = a.size(0), bytes = batch * std::max(a.size(1), b.size(1)) * a.element_size();
  const int64_t parts = std::max<int64_t>(1, (bytes + kAtOnceBytes / 2) / kAtOnceBytes);
  return std::max(kAtOnceRows, round_up((batch + parts - 1) / parts, kBatchChunk));
}

}  // namespace

at::Tensor column_sums(const at::Tensor& a) {
  TORCH_CHECK(a.dim() == 2 && (a.stride(1) == 1 || a.size(1) <= 1 || a.size(0) == 0),
              "a must be [N, out] with contiguous rows, got ", a.sizes());
  at::Tensor sums = at::empty({a.size(1)}, a.options());
  dispatch_operand(a.scalar_type(), "a", [&](auto stored, auto operand) {
    using Stored = decltype(stored);
    const Stored* from = a.const_data_ptr<Stored>();
    Stored* to = sums.mutable_data_ptr<Stored>();
    const int64_t lda = a.stride(0), rows = a.size(0), grain = (1 << 15) / std::max<int64_t>(1, rows * kStretch) + 1;
    at::parallel_for(0, (a.size(1) + kStretch - 1) / kStretch, grain, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kStretch, width = std::min(a.size(1), end * kStretch) - first;
      sum_columns<typename Product<decltype(operand)>::Sum>(from + first, lda, rows, width, /*add=*/false, to + first);
    });
  });
  return sums;
}

void sddmm(at::Tensor& values, const at::Tensor& a, const at::Tensor& b, at::TensorList structure,
           at::IntArrayRef shape, double alpha, double beta, const at::Tensor& column_sums) {
  const Structure pattern(structure, shape, values, /*transpose=*/false);
  const Walk& walk = pattern.walk;
  TORCH_CHECK(a.dim() == 2 && a.size(1) == walk.out_features && (a.stride(1) == 1 || a.size(1) <= 1), "a must be [N, ",
              walk.out_features, "] with contiguous rows, got ", a.sizes());
  TORCH_CHECK(
      b.dim() == 2 && b.size(0) == a.size(0) && b.size(1) == walk.in_features && (b.stride(1) == 1 || b.size(1) <= 1),
      "b must be [", a.size(0), ", ", walk.in_features, "] with contiguous rows, got ", b.sizes());
  const bool into_sums = values.scalar_type() == at::kFloat && a.element_size() == 2;
  TORCH_CHECK(a.scalar_type() == b.scalar_type() && (into_sums || a.scalar_type() == values.scalar_type()),
              "a, b and values must have one dtype, or values be float32 with 16-bit a and b");
  dispatch_operand(a.scalar_type(), "a", [&](auto stored, auto operand) {
    using Stored = decltype(stored);
    using Operand = decltype(operand);
    using Sum = typename Product<Operand>::Sum;
    Stored* sums = column_sums.defined() ? column_sums.mutable_data_ptr<Stored>() : nullptr;
    const auto run = [&](auto result) {
      using Result = decltype(result);
      const auto multiply = [&](const at::Tensor& left, const at::Tensor& right, bool goes_on) {
        SampledProduct<Stored, Operand, Result>(values, left, right, walk, pattern.masks, alpha, beta, sums, goes_on)
            .run();
      };
      const bool holds_sums = std::is_same_v<Stored, Sum> && std::is_same_v<Result, Sum> && beta == 0.;
      const int64_t batch = a.size(0), some = holds_sums ? rows_at_once(a, b) : batch;
      if (batch <= some) return multiply(a, b, /*goes_on=*/false);
      for (int64_t first = 0; first < batch; first += some) {
        const int64_t rows = std::min(some, batch - first);
        multiply(a.narrow(0, first, rows), b.narrow(0, first, rows), first > 0);
      }
    };
    into_sums ? run(Sum()) : run(Stored());
  });
}

}  // namespace efcn_sparse::cpu
