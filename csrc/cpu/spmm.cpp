// SpMM over blocks. One task is one block row of the result (for some rows of the batch): its blocks are packed into a
// panel B [K, n] once, and the panel is multiplied with the activations, segment by segment.
#include "ops.h"

#include <vector>

#include "pack.h"
#include "schedule.h"

namespace efcn_sparse::cpu {
namespace {

constexpr int64_t kBatchRows = 512;      // rows of the batch in one task
constexpr int64_t kMinBatchRows = 64;    // less than this is not worth another packing of the weights
constexpr int64_t kPanelBytes = 1 << 17;  // an eighth of the L2 cache of a current core
constexpr int64_t kSegmentK = 128;       // K of one product: with n = 64 its B fits the L1 cache
constexpr int64_t kDirectK = 48;         // runs at least this long are read from x in place

// Consecutive columns of x, and where their weights lie in the panel.
template <typename Operand>
struct Segment {
  const Operand* a;
  int64_t lda, k, panel_row;
};

// Activations as the micro-kernel reads them: x in place, or column panels.
template <typename Operand>
struct Activations {
  const Operand* data;
  int64_t batch, lda, width;
  bool in_place;

  const Operand* at(int64_t block, int64_t row, int64_t side) const {
    return in_place ? data + row * lda + block * side : data + (block * batch + row) * width;
  }
};

double mean_run_length(const Walk& walk) {
  int64_t runs = 0;
  for (int64_t i = 0; i < walk.rows; ++i)
    for (int64_t k = walk.starts[i]; k < walk.starts[i + 1]; ++k)
      runs += k == walk.starts[i] || walk.neighbours[k] != walk.neighbours[k - 1] + 1;
  return runs == 0 ? 0.0 : static_cast<double>(walk.starts[walk.rows]) / runs;
}

template <typename Stored, typename Operand>
class Multiplication {
 public:
  using Sum = typename Product<Operand>::Sum;

  Multiplication(at::Tensor& y, const at::Tensor& x, const at::Tensor& values, const std::optional<at::Tensor>& bias,
                 const Walk& walk, const Masks& masks, double alpha, double beta)
      : walk_(walk), masks_(masks), values_(values.const_data_ptr<Stored>()),
        bias_(bias ? bias->const_data_ptr<Stored>() : nullptr), y_(y.mutable_data_ptr<Stored>()), ldy_(y.stride(0)),
        alpha_(static_cast<Sum>(alpha)), beta_(static_cast<Sum>(beta)) {
    constexpr int64_t multiple = Product<Operand>::k_multiple;
    const bool even = walk.in_side % multiple == 0 && walk.in_features % multiple == 0;
    const bool in_place = std::is_same_v<Stored, Operand> && even && mean_run_length(walk) * walk.in_side >= kDirectK;
    const int64_t width = round_up(walk.in_side, multiple);
    if (!in_place) panels_ = left_panels<Stored, Operand>(x, walk.in_side, width);
    const void* data = in_place ? x.const_data_ptr() : panels_.const_data_ptr();
    x_ = {static_cast<const Operand*>(data), x.size(0), in_place ? x.stride(0) : width, width, in_place};
  }

  void run() {
    const int64_t threads = at::get_num_threads(), batch = x_.batch;
    int64_t rows = std::min(kBatchRows, batch);
    while (rows > kMinBatchRows && walk_.rows * ((batch + rows - 1) / rows) < 4 * threads) rows /= 2;
    const int64_t groups = (batch + rows - 1) / rows;
    share_tasks(walk_.rows * groups, [&](auto&& next) {
      Workspace space;
      for (int64_t task = next(); task >= 0; task = next()) {
        const int64_t first = task / walk_.rows * rows;
        block_row(task % walk_.rows, first, std::min(batch, first + rows), space);
      }
      Product<Operand>::release();
    });
  }

 private:
  struct Workspace {
    std::vector<Operand> panel, block;
    std::vector<Sum> sums;
    std::vector<Segment<Operand>> segments;
  };

  void block_row(int64_t i, int64_t first, int64_t last, Workspace& space) const {
    const int64_t n = walk_.out_extent(i), rows = last - first;
    space.sums.resize(std::max<size_t>(space.sums.size(), rows * n));
    bool add = false;
    for (int64_t k = walk_.starts[i]; k < walk_.starts[i + 1];) {
      k = pack(k, walk_.starts[i + 1], first, n, space);
      for (const auto& segment : space.segments) {
        const Operand* b = space.panel.data() + segment.panel_row * n;
        Product<Operand>::run(rows, n, segment.k, segment.a, segment.lda, b, n, space.sums.data(), n, add);
        add = true;
      }
    }
    write(i, first, rows, n, add ? space.sums.data() : nullptr);
  }

  // Packs blocks [k, end) as far as the panel reaches; returns the first block that is left.
  int64_t pack(int64_t k, int64_t end, int64_t first, int64_t n, Workspace& space) const {
    constexpr int64_t multiple = Product<Operand>::k_multiple;
    const int64_t stride = round_up(walk_.in_side, multiple);
    const int64_t blocks = std::max<int64_t>(1, kPanelBytes / static_cast<int64_t>(n * stride * sizeof(Operand)));
    const int64_t last = std::min(end, k + blocks), elements = walk_.out_side * walk_.in_side;
    space.panel.resize(std::max<size_t>(space.panel.size(), blocks * stride * n));
    space.block.resize(elements);
    space.segments.clear();
    int64_t panel_row = 0;
    for (; k < last; ++k) {
      const int64_t block = walk_.block(k), j = walk_.neighbours[k], extent = walk_.in_extent(j);
      const Operand* weights =
          block_operands(values_ + block * elements, masks_.of(block), elements, space.block.data());
      const int64_t ld = walk_.stored_out_by_in ? walk_.in_side : walk_.out_side;
      pack_panel(weights, ld, walk_.stored_out_by_in, n, extent, space.panel.data() + panel_row * n);
      const int64_t padded = round_up(extent, multiple);
      const bool joins = x_.in_place && !space.segments.empty() && walk_.neighbours[k - 1] == j - 1 &&
                         space.segments.back().k + padded <= kSegmentK;
      if (joins) {
        space.segments.back().k += padded;
      } else {
        space.segments.push_back({x_.at(j, first, walk_.in_side), x_.lda, padded, panel_row});
      }
      panel_row += padded;
    }
    return k;
  }

  void write(int64_t i, int64_t first, int64_t rows, int64_t n, const Sum* sums) const {
    for (int64_t m = 0; m < rows; ++m) {
      Stored* out = y_ + (first + m) * ldy_ + i * walk_.out_side;
      const Stored* bias = bias_ == nullptr ? nullptr : bias_ + i * walk_.out_side;
      const Sum* sum = sums == nullptr ? nullptr : sums + m * n;
      for (int64_t j = 0; j < n; ++j) {
        Sum result = sum == nullptr ? Sum(0) : sum[j];
        if (bias != nullptr) result += static_cast<Sum>(bias[j]);
        result *= alpha_;
        if (beta_ != Sum(0)) result += beta_ * static_cast<Sum>(out[j]);
        out[j] = static_cast<Stored>(result);
      }
    }
  }

  Walk walk_;
  Masks masks_;
  const Stored *values_, *bias_;
  Stored* y_;
  int64_t ldy_;
  Sum alpha_, beta_;
  at::Tensor panels_;
  Activations<Operand> x_;
};

}  // namespace

void spmm(at::Tensor& y, const at::Tensor& x, const at::Tensor& values, const std::optional<at::Tensor>& bias,
          at::TensorList structure, at::IntArrayRef shape, bool transpose, double alpha, double beta) {
  const Structure pattern(structure, shape, values);
  const Walk& walk = transpose ? pattern.by_column : pattern.by_row;
  TORCH_CHECK(x.dim() == 2 && x.size(1) == walk.in_features && (x.stride(1) == 1 || x.size(1) <= 1),
              "x must be [N, ", walk.in_features, "] with contiguous rows, got ", x.sizes());
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
    Multiplication<decltype(stored), decltype(operand)>(y, x, values, added, walk, pattern.masks, alpha, beta).run();
  });
}

}  // namespace efcn_sparse::cpu
