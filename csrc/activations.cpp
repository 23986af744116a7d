// What stands between two layers, and would copy what the first one wrote: ReLU, and the view of its output as feature maps.
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/threshold_backward.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include "cpu/huge_pages.h"

namespace efcn_sparse {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool is_recorded(const Tensor& x) { return x.requires_grad() && c10::GradMode::is_enabled(); }

// Whether nobody else can see what is written into it.
bool is_unshared(const Tensor& gradient) {
  return gradient.use_count() == 1 && gradient.storage().use_count() == 1 &&
         gradient.storage().unsafeGetStorageImpl()->resizable() &&  // not the memory of a NumPy array
         gradient.is_non_overlapping_and_dense();
}

struct ReluFunction : torch::autograd::Function<ReluFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, bool in_place) {
    at::AutoDispatchBelowAutograd guard;
    Tensor y = in_place ? x : cpu::in_huge_pages(at::empty_like(x));
    at::clamp_min_out(y, x, 0);
    if (in_place) context->mark_dirty({y});
    context->save_for_backward({y});
    return y;
  }
  static variable_list backward(AutogradContext* context, variable_list& gradients) {
    const Tensor y = context->get_saved_variables()[0], dy = std::move(gradients[0]);
    if (!dy.defined()) return {Tensor(), Tensor()};
    if (c10::GradMode::is_enabled() || !is_unshared(dy)) return {at::threshold_backward(dy, y, 0), Tensor()};
    Tensor dx = dy;
    at::threshold_backward_out(dx, dy, y, 0);
    return {dx, Tensor()};
  }
};

Tensor relu(const Tensor& x) { return is_recorded(x) ? ReluFunction::apply(x, false) : at::relu(x); }

Tensor& relu_(Tensor& x) { return is_recorded(x) ? x = ReluFunction::apply(x, true) : at::relu_(x); }

Tensor as_feature_maps(const Tensor& units, at::IntArrayRef size) {
  std::vector<int64_t> shape{units.size(0)};
  shape.insert(shape.end(), size.begin(), size.end());
  return units.view(shape).movedim(-1, 1);
}

struct FeatureMapsFunction : torch::autograd::Function<FeatureMapsFunction> {
  static Tensor forward(AutogradContext*, const Tensor& units, at::IntArrayRef size) {
    at::AutoDispatchBelowADInplaceOrView guard;
    Tensor maps = as_feature_maps(units, size);
    torch::autograd::impl::set_version_counter(maps, torch::autograd::impl::version_counter(units));
    return maps;
  }
  static variable_list backward(AutogradContext*, const variable_list& gradients) {
    const Tensor& gradient = gradients[0];
    if (!gradient.defined()) return {Tensor(), Tensor()};
    return {gradient.movedim(1, -1).flatten(1), Tensor()};
  }
};

Tensor feature_maps(const Tensor& units, at::IntArrayRef size) {
  return is_recorded(units) ? FeatureMapsFunction::apply(units, size) : as_feature_maps(units, size);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(efcn_sparse_cpu, m) {
  m.def("relu(Tensor x) -> Tensor", &relu);
  m.def("relu_(Tensor(a!) x) -> Tensor(a!)", &relu_);
  m.def("feature_maps(Tensor units, int[] size) -> Tensor", &feature_maps);
}

}  // namespace efcn_sparse
