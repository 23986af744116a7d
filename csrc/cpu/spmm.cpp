// SpMM over blocks. One task is a few block rows of the result, for some rows of the batch: the blocks of each are packed
// into a panel B [K, n] once, and the panel is multiplied with the activations, segment by segment.
#include "operations.h"

#include <vector>

#include "few_rows.h"
#include "pack.h"
#include "result.h"
#include "spmm_columns.h"
#include "spmm_panels.h"
#include "structure.h"
#include "threads.h"

namespace efcn_sparse::cpu {
namespace {

constexpr int64_t kBatchRows = 512;       // rows of the batch in one task
constexpr int64_t kMinBatchRows = 64;     // less than this is not worth another packing of the weights
constexpr int64_t kQuickBytes = 1 << 20;  // of x in one task with AVX-512, so that they stay in a core's L2 cache;
constexpr int64_t kQuickRows = 128;       // at least so many rows
constexpr int64_t kPanelBytes = 1 << 17;  // an eighth of the L2 cache of a current core
constexpr int64_t kSegmentK = 320;        // K of one product; longer chains of sums round badly

// How the micro-kernel reads the activations: x itself, column panels of x that all rows share, or the columns of one
// block row side by side, where blocks are so narrow that a product per block would mostly load and store its sums.
enum class Reading { kInPlace, kPanels, kGathered };

double mean_run_length(const Walk& walk) {
  int64_t runs = 0;
  for (int64_t i = 0; i < walk.rows; ++i)
    for (int64_t k = walk.starts[i]; k < walk.starts[i + 1]; ++k)
      runs += k == walk.starts[i] || walk.neighbors[k] != walk.neighbors[k - 1] + 1;
  return runs == 0 ? 0.0 : static_cast<double>(walk.starts[walk.rows]) / runs;
}

template <typename Stored, typename Operand>
class Multiplication {
 public:
  using Sum = typename Product<Operand>::Sum;

  Multiplication(const at::Tensor& x, const Stored* values, const Walk& walk, const Masks& masks,
                 const Result<Stored, Sum>& result)
      : walk_(walk), masks_(masks), values_(values), result_(result), x_(x.const_data_ptr<Stored>()), batch_(x.size(0)),
        ldx_(x.stride(0)) {
    constexpr int64_t multiple = Product<Operand>::k_multiple;
    const bool even = walk.in_side % multiple == 0 && walk.in_features % multiple == 0;
    const double run = mean_run_length(walk) * walk.in_side;
    reading_ = std::is_same_v<Stored, Operand> && even && run >= kDirectRun ? Reading::kInPlace
               : worth_gathering(walk)                                      ? Reading::kGathered
                                                                            : Reading::kPanels;
    width_ = round_up(walk.in_side, multiple);
    if (reading_ == Reading::kPanels) {
      panels_ = left_panels<Stored, Operand>(x, walk, width_);
      panel_data_ = panels_.template const_data_ptr<Operand>();
    }
  }

  void run() {
    const int64_t threads = threads_for(batch_ * walk_.starts[walk_.rows] * walk_.out_side * walk_.in_side);
    const bool is_quick = vector_bytes() == 64;
    const int64_t row_bytes = std::max<int64_t>(1, walk_.in_features) * sizeof(Stored);
    const int64_t most_rows = is_quick ? std::clamp(kQuickBytes / row_bytes, kQuickRows, kBatchRows) : kBatchRows;
    int64_t groups = std::max<int64_t>(1, (batch_ + most_rows - 1) / most_rows);
    if (is_quick && batch_ >= threads * kQuickRows) groups = std::max(groups, threads);
    while (batch_ / groups >= 2 * kMinBatchRows && walk_.rows * groups < 4 * threads) groups *= 2;
    int64_t together = std::max<int64_t>(1, kTogether / walk_.out_side);
    while (together > 1 && (walk_.rows + together - 1) / together * groups < 4 * threads) together /= 2;
    const int64_t shares = is_quick ? groups : 1;
    const std::vector<int64_t> firsts = walk_.strips(together, shares < threads);
    const int64_t strips = firsts.size();
    share_tasks(
        strips * groups,
        [&](auto&& next) {
          const typename Product<Operand>::Use use;
          Workspace space;
          for (int64_t task = next(); task >= 0; task = next()) {
            const int64_t group = task / strips, i = firsts[task % strips];
            block_rows(i, std::min(walk_.rows, i + together), group * batch_ / groups, (group + 1) * batch_ / groups,
                       space);
          }
        },
        threads, shares);
  }

 private:
  struct Workspace {
    Buffer<Operand> panel, block, gathered;
    Buffer<Sum> sums, bias;
    std::vector<Segment<Operand>> segments;
    int64_t lda, ldb;  // of all segments, and the panel
  };

  // Block rows [begin, end) of the result side by side, so that whole cache lines of y are written.
  void block_rows(int64_t begin, int64_t end, int64_t first, int64_t last, Workspace& space) const {
    const int64_t width = (end - 1 - begin) * walk_.out_side + walk_.out_extent(end - 1), rows = last - first;
    space.sums.resize(std::max<size_t>(space.sums.size(), rows * width));
    for (int64_t i = begin; i < end; ++i)
      sum_block_row(i, first, rows, space.sums.data() + (i - begin) * walk_.out_side, width, space);
    result_.write(begin * walk_.out_side, width, first, rows, width, space.sums.data(), space.bias);
  }

  void sum_block_row(int64_t i, int64_t first, int64_t rows, Sum* sums, int64_t ld, Workspace& space) const {
    const int64_t n = walk_.out_extent(i), end = walk_.starts[i + 1];
    bool add = false;
    for (int64_t k = walk_.starts[i]; k < end; add = true) {
      k = pack(k, end, first, rows, n, space);
      Product<Operand>::sum(rows, n, space.segments.data(), space.segments.size(), space.lda, space.panel.data(),
                            space.ldb, sums, ld, add);
    }
    for (int64_t m = 0; !add && m < rows; ++m) std::fill_n(sums + m * ld, n, Sum(0));
  }

  // Packs blocks [k, end) as far as the panel reaches; returns the first block that is left.
  int64_t pack(int64_t k, int64_t end, int64_t first, int64_t rows, int64_t n, Workspace& space) const {
    const int64_t blocks = std::max<int64_t>(1, kPanelBytes / static_cast<int64_t>(n * width_ * sizeof(Operand)));
    const int64_t begin = k, last = std::min(end, k + blocks), elements = walk_.out_side * walk_.in_side;
    const int64_t panel_rows = (last - k) * width_;
    space.panel.resize(std::max<size_t>(space.panel.size(), n * panel_rows));
    space.ldb = Product<Operand>::panel_ld(n, panel_rows);
    space.block.resize(elements);
    space.segments.clear();
    space.lda = reading_ == Reading::kPanels ? width_ : ldx_;
    int64_t panel_row = 0;
    for (; k < last; ++k) {
      const int64_t block = walk_.block(k), extent = walk_.in_extent(walk_.neighbors[k]);
      const Operand* weights =
          block_operands(values_ + block * elements, masks_.of(block), elements, space.block.data());
      if (k + 1 < walk_.starts[walk_.rows]) prefetch(values_ + walk_.block(k + 1) * elements, elements);
      const int64_t ld = walk_.stored_out_by_in ? walk_.in_side : walk_.out_side;
      pack_panel(weights, ld, walk_.stored_out_by_in, n, extent, space.panel.data(), panel_row, space.ldb);
      if (reading_ != Reading::kGathered) append_segment(k, begin, first, panel_row, space.segments);
      panel_row += round_up(extent, Product<Operand>::k_multiple);
    }
    if (reading_ == Reading::kGathered) gather(begin, last, first, rows, panel_row, space);
    return k;
  }

  // The columns of block k become a segment of their own, or continue the one before.
  void append_segment(int64_t k, int64_t begin, int64_t first, int64_t panel_row,
                      std::vector<Segment<Operand>>& segments) const {
    const int64_t j = walk_.neighbors[k], extent = round_up(walk_.in_extent(j), Product<Operand>::k_multiple);
    const auto append = [&](const Operand* a) {
      for (int64_t e = 0; e < extent; e += kSegmentK)
        segments.push_back({a + e, std::min(kSegmentK, extent - e), panel_row + e});
    };
    if (reading_ == Reading::kPanels) {
      append(panel_data_ + (j * batch_ + first) * width_);
    } else if constexpr (std::is_same_v<Stored, Operand>) {
      if (k > begin && walk_.neighbors[k - 1] == j - 1 && segments.back().k + extent <= kSegmentK)
        segments.back().k += extent;
      else
        append(x_ + first * ldx_ + j * walk_.in_side);
    }
  }

  // The columns of blocks [begin, last) side by side, as one segment of `width` columns.
  void gather(int64_t begin, int64_t last, int64_t first, int64_t rows, int64_t width, Workspace& space) const {
    constexpr int64_t multiple = Product<Operand>::k_multiple;
    space.gathered.resize(std::max<size_t>(space.gathered.size(), rows * width));
    int64_t column = 0;
    for (int64_t k = begin; k < last;) {
      const int64_t j = walk_.neighbors[k];
      int64_t extent = walk_.in_extent(j);
      for (++k; k < last && extent % multiple == 0 && walk_.neighbors[k] == walk_.neighbors[k - 1] + 1; ++k)
        extent += walk_.in_extent(walk_.neighbors[k]);
      Operand* out = space.gathered.data() + column;
      gather_columns(x_ + first * ldx_ + j * walk_.in_side, ldx_, rows, extent, out, width);
      column += extent;
      for (; column % multiple != 0; ++column)
        for (int64_t m = 0; m < rows; ++m) space.gathered[m * width + column] = Operand(0);
    }
    space.segments.push_back({space.gathered.data(), width, 0});
    space.lda = width;
  }

  Walk walk_;
  Masks masks_;
  const Stored* values_;
  const Result<Stored, Sum>& result_;
  Reading reading_;
  const Stored* x_;
  int64_t batch_, ldx_, width_;  // width_: a block's columns, as the product takes them
  at::Tensor panels_;            // [blocks, batch, width_]
  const Operand* panel_data_ = nullptr;
};

// The weights as they are stored, read once.
template <typename Stored, typename Sum>
void multiply_few_rows(const at::Tensor& x, const Stored* values, const Walk& walk, const Masks& masks,
                       const Result<Stored, Sum>& result) {
  const int64_t batch = x.size(0);
  int64_t padded = 1;
  while (padded < batch) padded *= 2;
  FewRows<Stored, Sum> job{walk, masks, values, nullptr, x.stride(0), padded};
  Buffer<Sum> copy;
  if constexpr (std::is_same_v<Stored, Sum>) job.x = x.const_data_ptr<Sum>();
  if (!std::is_same_v<Stored, Sum> || padded != batch) {
    job.ldx = walk.in_features;
    copy.resize(padded * job.ldx, Sum(0));
    copy_rows(x.const_data_ptr<Stored>(), x.stride(0), 0, batch, 0, job.ldx, job.ldx, copy.data());
    job.x = copy.data();
  }
  const int64_t threads = threads_for(padded * walk.starts[walk.rows] * masks.elements);
  const int64_t together = rows_in_stretch(walk, threads);
  const std::vector<int64_t> firsts = walk.strips(together, /*longest_first=*/false);
  share_tasks(
      firsts.size(),
      [&](auto&& next) {
        Buffer<Stored> block(masks.elements);
        Buffer<Sum> sums(padded * walk.out_side), bias;
        for (int64_t task = next(); task >= 0; task = next())
          for (int64_t i = firsts[task]; i < std::min(walk.rows, firsts[task] + together); ++i) {
            job.block_row(i, sums.data(), block.data());
            result.write(i * walk.out_side, walk.out_extent(i), 0, batch, walk.out_side, sums.data(), bias);
          }
      },
      threads);
}

}  // namespace

void spmm(at::Tensor& y, const at::Tensor& x, const at::Tensor& values, const std::optional<at::Tensor>& bias,
          at::TensorList structure, at::IntArrayRef shape, bool transpose, double alpha, double beta) {
  const Structure pattern(structure, shape, values, transpose);
  const Walk& walk = pattern.walk;
  TORCH_CHECK(x.dim() == 2 && x.size(1) == walk.in_features && (x.stride(1) == 1 || x.size(1) <= 1), "x must be [N, ",
              walk.in_features, "] with contiguous rows, got ", x.sizes());
  TORCH_CHECK(y.dim() == 2 && y.size(0) == x.size(0) && y.size(1) == walk.out_features && y.is_contiguous(),
              "y must be contiguous [", x.size(0), ", ", walk.out_features, "], got ", y.sizes());
  TORCH_CHECK(x.scalar_type() == values.scalar_type() && x.scalar_type() == y.scalar_type(),
              "x, values and y must have one dtype");
  std::optional<at::Tensor> added = bias;
  if (added) {
    TORCH_CHECK(added->dim() == 1 && added->size(0) == walk.out_features && added->scalar_type() == x.scalar_type(),
                "bias must be [", walk.out_features, "] of the dtype of x, got ", added->sizes());
    added = added->contiguous();
  }
  dispatch_operand(x.scalar_type(), "x", [&](auto stored, auto operand) {
    using Stored = decltype(stored);
    using Operand = decltype(operand);
    using Sum = typename Product<Operand>::Sum;
    constexpr bool halves = std::is_same_v<Operand, at::BFloat16>;
    const Stored* numbers = values.const_data_ptr<Stored>();
    const Result<Stored, Sum> result{y.mutable_data_ptr<Stored>(), y.stride(0),
                                     added ? added->const_data_ptr<Stored>() : nullptr, static_cast<Sum>(alpha),
                                     static_cast<Sum>(beta)};
    if (are_few<Sum>(x.size(0), walk, halves)) return multiply_few_rows(x, numbers, walk, pattern.masks, result);
    if constexpr (std::is_same_v<Stored, Sum>)
      if (ByPanels<Sum>::is_faster(walk, x.size(0)))
        return ByPanels<Sum>(x, numbers, walk, pattern.masks, result).run();
    if constexpr (!halves)
      if (std::min(walk.in_side, walk.out_side) < columns_side())
        return ByColumns<Stored, Sum>(x, numbers, walk, pattern.masks, result).run();
    Multiplication<Stored, Operand>(x, numbers, walk, pattern.masks, result).run();
  });
}

}  // namespace efcn_sparse::cpu
