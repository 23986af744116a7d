// What stands between layers and would hold, or copy, what they wrote: ReLU, max-pooling, and outputs as feature maps.
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/native/Pool.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/max_pool2d.h>
#include <ATen/ops/max_pool2d_with_indices_backward.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "cpu/activations.h"
#include "cpu/memory.h"
#include "plain.h"

namespace efcn_sparse {
namespace {

using at::IntArrayRef;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrain = 1 << 15;  // numbers that repay waking a thread

// Whether nobody else can see what is written into it. Plans watch meta tensors from Python, which holds them.
bool is_unshared(const Tensor& gradient) {
  if (gradient.is_meta()) return true;
  return gradient.use_count() == 1 && gradient.storage().use_count() == 1 &&
         gradient.storage().unsafeGetStorageImpl()->resizable() &&  // not the memory of a NumPy array
         gradient.is_non_overlapping_and_dense();
}

// Tensors on the meta device have shapes alone, of which plans of a step are made.
bool has_kernels(const Tensor& x) {
  const auto dtype = x.scalar_type();
  return (x.is_cpu() || x.is_meta()) && (dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16);
}

template <typename Kernel>
void with_type(const Tensor& x, Kernel&& kernel) {
  if (x.is_meta()) return;
  if (x.scalar_type() == at::kFloat)
    kernel(float());
  else if (x.scalar_type() == at::kBFloat16)
    kernel(at::BFloat16());
  else
    kernel(double());
}

// -- ReLU ---------------------------------------------------------------------------------------------------------------

int64_t words_of(int64_t numel) { return (numel + cpu::kWord - 1) / cpu::kWord; }

// Calls part(first number, first word, count) for parts of `numel` numbers, on all threads.
template <typename Part>
void by_words(int64_t numel, Part&& part) {
  at::parallel_for(0, words_of(numel), kGrain / cpu::kWord, [&](int64_t begin, int64_t end) {
    part(begin * cpu::kWord, begin, std::min(numel, end * cpu::kWord) - begin * cpu::kWord);
  });
}

void relu_into(const Tensor& x, const Tensor& y, const Tensor& kept) {
  with_type(x, [&](auto type) {
    using T = decltype(type);
    const T* from = x.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    auto* words = reinterpret_cast<uint64_t*>(kept.mutable_data_ptr<int64_t>());
    by_words(x.numel(), [&](int64_t number, int64_t word, int64_t count) {
      cpu::relu(from + number, to + number, words + word, count);
    });
  });
}

void relu_backward_into(const Tensor& dy, const Tensor& kept, const Tensor& dx) {
  with_type(dy, [&](auto type) {
    using T = decltype(type);
    const T* from = dy.const_data_ptr<T>();
    T* to = dx.mutable_data_ptr<T>();
    const auto* words = reinterpret_cast<const uint64_t*>(kept.const_data_ptr<int64_t>());
    by_words(dy.numel(), [&](int64_t number, int64_t word, int64_t count) {
      cpu::relu_backward(from + number, words + word, to + number, count);
    });
  });
}

struct ReluFunction : torch::autograd::Function<ReluFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, bool in_place) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const bool dense = x.is_non_overlapping_and_dense();
    Tensor y = in_place ? x : dense ? cpu::empty_strided(x.sizes(), x.strides(), x.options()) : at::empty_like(x);
    const bool in_bits = has_kernels(x) && dense;
    context->saved_data["in_bits"] = in_bits;
    if (in_bits) {
      const Tensor kept = cpu::empty({words_of(x.numel())}, x.options().dtype(at::kLong));
      relu_into(x, y, kept);
      context->saved_data["strides"] = y.strides();
      context->save_for_backward({kept});
    } else {
      at::clamp_min_out(y, x, 0);
      context->save_for_backward({y});
    }
    if (in_place) context->mark_dirty({y});
    return y;
  }

  static variable_list backward(AutogradContext* context, variable_list& gradients) {
    const Tensor saved = context->get_saved_variables()[0];
    Tensor dy = std::move(gradients[0]);
    if (!dy.defined()) return {Tensor(), Tensor()};
    const bool is_differentiated = c10::GradMode::is_enabled() || !is_plain(dy);
    if (!context->saved_data["in_bits"].toBool()) {
      if (is_differentiated || !is_unshared(dy)) return {at::threshold_backward(dy, saved, 0), Tensor()};
      at::threshold_backward_out(dy, dy, saved, 0);
      return {dy, Tensor()};
    }
    const auto strides = context->saved_data["strides"].toIntVector();  // the order of the bits
    if (is_differentiated) {
      const Tensor passes = at::empty_strided(dy.sizes(), strides, saved.options().dtype(at::kFloat)).fill_(1);
      relu_backward_into(passes, saved, passes);
      return {at::where(passes.to(at::kBool), dy, 0), Tensor()};
    }
    if (dy.strides() == IntArrayRef(strides) && is_unshared(dy)) {
      relu_backward_into(dy, saved, dy);
      return {dy, Tensor()};
    }
    Tensor dx = cpu::empty_strided(dy.sizes(), strides, dy.options());
    if (dy.strides() != IntArrayRef(strides)) dy = dx.copy_(dy);
    relu_backward_into(dy, saved, dx);
    return {dx, Tensor()};
  }
};

Tensor rectified(const Tensor& x) {
  return needs_gradient(x) && is_plain(x) ? ReluFunction::apply(x, false) : at::relu(x);
}

// Leaves are refused before anything is written, and views are the affair of autograd.
Tensor& rectify(Tensor& x) {
  const bool is_own = needs_gradient(x) && is_plain(x) && !x.is_leaf() && !x.is_view();
  return is_own ? x = ReluFunction::apply(x, true) : at::relu_(x);
}

// -- max-pooling --------------------------------------------------------------------------------------------------------

constexpr auto kLast = at::MemoryFormat::ChannelsLast;

struct Window {
  IntArrayRef kernel, stride, padding, dilation;
  bool ceil_mode;
};

cpu::MaxPool pool_of(IntArrayRef image, IntArrayRef out, const Window& window) {
  cpu::MaxPool pool{image[2], image[3], image[1], out[2], out[3], {}, {}, {}, {}};
  for (int dim = 0; dim < 2; ++dim) {
    pool.kernel[dim] = window.kernel[dim];
    pool.stride[dim] = window.stride[dim];
    pool.padding[dim] = window.padding[dim];
    pool.dilation[dim] = window.dilation[dim];
  }
  return pool;
}

// Calls row(image, row) for all rows of all images, on all threads.
template <typename Row>
void by_rows(int64_t images, int64_t rows, int64_t numbers_in_row, Row&& row) {
  at::parallel_for(0, images * rows, kGrain / std::max<int64_t>(1, numbers_in_row) + 1,
                   [&](int64_t begin, int64_t end) {
                     for (int64_t i = begin; i < end; ++i) row(i / rows, i % rows);
                   });
}

struct MaxPoolFunction : torch::autograd::Function<MaxPoolFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Window& window, bool rectifies) {
    at::AutoDispatchBelowADInplaceOrView guard;
    std::vector<int64_t> shape{x.size(0), x.size(1)};
    for (int dim = 0; dim < 2; ++dim)
      shape.push_back(at::native::pooling_output_shape(x.size(2 + dim), window.kernel[dim], window.padding[dim],
                                                       window.stride[dim], window.dilation[dim], window.ceil_mode));
    at::native::pool2d_shape_check(x, window.kernel[0], window.kernel[1], window.stride[0], window.stride[1],
                                   window.padding[0], window.padding[1], window.dilation[0], window.dilation[1],
                                   x.size(1), x.size(2), x.size(3), shape[2], shape[3], kLast);
    Tensor y = cpu::empty(shape, x.options(), kLast);
    const Tensor places = cpu::empty(shape, x.options().dtype(at::kByte), kLast);
    const cpu::MaxPool pool = pool_of(x.sizes(), y.sizes(), window);
    with_type(x, [&](auto type) {
      using T = decltype(type);
      const T* from = x.const_data_ptr<T>();
      T* to = y.mutable_data_ptr<T>();
      uint8_t* place = places.mutable_data_ptr<uint8_t>();
      const int64_t size = pool.height * pool.width * pool.channels, width = pool.out_width * pool.channels;
      by_rows(y.size(0), pool.out_height, width, [&](int64_t image, int64_t row) {
        const int64_t out = (image * pool.out_height + row) * width;
        pool.forward(from + image * size, row, rectifies, to + out, place + out);
      });
    });
    context->save_for_backward({places});
    context->saved_data["size"] = x.sizes();
    context->saved_data["kernel"] = window.kernel;
    context->saved_data["stride"] = window.stride;
    context->saved_data["padding"] = window.padding;
    context->saved_data["dilation"] = window.dilation;
    context->saved_data["ceil_mode"] = window.ceil_mode;
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    if (!gradients[0].defined()) return {Tensor(), Tensor(), Tensor()};
    const auto list = [&](const char* name) { return context->saved_data[name].toIntVector(); };
    const auto size = list("size"), kernel = list("kernel"), stride = list("stride"), padding = list("padding"),
               dilation = list("dilation");
    const Tensor places = context->get_saved_variables()[0];
    const Window window{kernel, stride, padding, dilation, context->saved_data["ceil_mode"].toBool()};
    const cpu::MaxPool pool = pool_of(size, places.sizes(), window);
    // torch knows the derivative of what it computes itself
    if (c10::GradMode::is_enabled() || !is_plain(gradients[0])) {
      const Tensor image = at::empty({1}, places.options().dtype(gradients[0].scalar_type())).expand(size);
      const Tensor nowhere = at::eq(places, cpu::kNoPlace), indices = indices_of(places, pool).masked_fill(nowhere, 0);
      return {at::max_pool2d_with_indices_backward(at::where(nowhere, 0, gradients[0]), image, kernel, stride, padding,
                                                   dilation, window.ceil_mode, indices),
              Tensor(), Tensor()};
    }
    const Tensor dy = gradients[0].contiguous(kLast);
    Tensor dx = cpu::empty(size, dy.options(), kLast);
    with_type(dy, [&](auto type) {
      using T = decltype(type);
      const T* from = dy.const_data_ptr<T>();
      const uint8_t* place = places.const_data_ptr<uint8_t>();
      T* to = dx.mutable_data_ptr<T>();
      const int64_t out = pool.out_height * pool.out_width * pool.channels, width = pool.width * pool.channels;
      by_rows(size[0], pool.height, width, [&](int64_t image, int64_t row) {
        pool.backward(from + image * out, place + image * out, row, to + (image * pool.height + row) * width);
      });
    });
    return {dx, Tensor(), Tensor()};
  }

  // Places in windows as places in images, as torch has them.
  static Tensor indices_of(const Tensor& places, const cpu::MaxPool& pool) {
    const Tensor at_place = places.to(at::kLong);
    const auto starts = [&](int dim, int64_t count, IntArrayRef shape) {
      return (at::arange(count, at_place.options()) * pool.stride[dim] - pool.padding[dim]).view(shape);
    };
    const Tensor rows = at_place.div(pool.kernel[1], "floor") * pool.dilation[0] + starts(0, pool.out_height, {-1, 1});
    const Tensor columns = at_place.remainder(pool.kernel[1]) * pool.dilation[1] + starts(1, pool.out_width, {-1});
    return rows * pool.width + columns;
  }
};

Tensor max_pool2d(const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                  bool ceil_mode, bool rectifies) {
  const bool in_bytes = needs_gradient(x) && is_plain(x) && has_kernels(x) && x.dim() == 4 && x.numel() > 0 &&
                        x.is_contiguous(kLast) && kernel[0] * kernel[1] <= cpu::kNoPlace;
  if (in_bytes) return MaxPoolFunction::apply(x, Window{kernel, stride, padding, dilation, ceil_mode}, rectifies);
  if (rectifies) {
    // pooled first, there is less to rectify, but a window with nothing in it has the maximum -inf
    if (dilation[0] * dilation[1] != 1)
      return max_pool2d(rectified(x), kernel, stride, padding, dilation, ceil_mode, false);
    Tensor y = at::max_pool2d(x, kernel, stride, padding, dilation, ceil_mode);
    return rectify(y);
  }
  return at::max_pool2d(x, kernel, stride, padding, dilation, ceil_mode);
}

// -- feature maps -------------------------------------------------------------------------------------------------------

Tensor as_feature_maps(const Tensor& units, IntArrayRef size) {
  std::vector<int64_t> shape{units.size(0)};
  shape.insert(shape.end(), size.begin(), size.end());
  return units.view(shape).movedim(-1, 1);
}

struct FeatureMapsFunction : torch::autograd::Function<FeatureMapsFunction> {
  static Tensor forward(AutogradContext*, const Tensor& units, IntArrayRef size) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Tensor maps = as_feature_maps(units, size);
    torch::autograd::impl::set_version_counter(maps, torch::autograd::impl::version_counter(units));
    return maps;
  }
  static variable_list backward(AutogradContext*, const variable_list& gradients) {
    const Tensor& gradient = gradients[0];
    if (!gradient.defined()) return {Tensor(), Tensor()};
    const int64_t features = c10::multiply_integers(gradient.sizes().slice(1));
    return {gradient.movedim(1, -1).reshape({gradient.size(0), features}), Tensor()};
  }
};

Tensor feature_maps(const Tensor& units, IntArrayRef size) {
  return needs_gradient(units) && is_plain(units) ? FeatureMapsFunction::apply(units, size)
                                                  : as_feature_maps(units, size);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(efcn_sparse_cpu, m) {
  m.def("relu(Tensor x) -> Tensor", &rectified);
  m.def("relu_(Tensor(a!) x) -> Tensor(a!)", &rectify);
  m.def(
      "max_pool2d(Tensor x, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode, "
      "bool rectifies) -> Tensor",
      &max_pool2d);
  m.def("feature_maps(Tensor units, int[] size) -> Tensor", &feature_maps);
}

}  // namespace efcn_sparse
