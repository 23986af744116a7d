// The operators efcn_sparse::spmm and sddmm for CPU tensors, with their derivatives: what ops/contract.py does for other
// devices and backends, without Python, since a small layer computes for less time than one call of Python takes.
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/library.h>

#include <array>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "cpu/memory.h"
#include "cpu/operations.h"
#include "plain.h"

namespace efcn_sparse {
namespace {

using at::IntArrayRef;
using at::Tensor;
using at::TensorList;
using c10::string_view;
using MaybeTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Spmm = Tensor(const Tensor&, const Tensor&, const MaybeTensor&, TensorList, IntArrayRef, bool, string_view);
using Sddmm = Tensor(const Tensor&, const Tensor&, TensorList, IntArrayRef, IntArrayRef, string_view);
using Check = void(TensorList, IntArrayRef, IntArrayRef);

c10::OperatorHandle find(const char* name) { return c10::Dispatcher::singleton().findSchemaOrThrow(name, ""); }

const auto& spmm_operator() {
  static const auto found = find("efcn_sparse::spmm").typed<Spmm>();
  return found;
}

const auto& sddmm_operator() {
  static const auto found = find("efcn_sparse::sddmm").typed<Sddmm>();
  return found;
}

// What contract.py registered under this key.
template <typename Operator, typename... Arguments>
Tensor in_python(const Operator& found, c10::DispatchKey key, const Arguments&... arguments) {
  torch::jit::Stack stack;
  torch::jit::push(stack, arguments...);
  found.callBoxedForDispatchKey(key, stack);
  return stack.at(0).toTensor();
}

// -- structures that were looked at -----------------------------------------------------------------------------------

constexpr size_t kParts = 7;

struct Seen {
  std::array<c10::weak_intrusive_ptr<c10::TensorImpl>, kParts> parts;  // keep the addresses from being used again
  std::array<uint32_t, kParts> versions;
  std::array<int64_t, 4> sizes;
};

// Refuses arrays that no pattern has, as check_structure of pattern/checks.py says, when they are first seen and whenever
// they were written to.
void check_structure(TensorList structure, IntArrayRef shape, IntArrayRef block_shape) {
  static std::mutex mutex;
  static std::unordered_map<const c10::TensorImpl*, Seen> seen;  // by col_indices
  static size_t most = 64;
  const bool countable = structure.size() == kParts && shape.size() == 2 && block_shape.size() == 2 &&
                         std::none_of(structure.begin(), structure.end(), [](auto& t) { return t.is_inference(); });
  std::array<uint32_t, kParts> versions;
  std::array<int64_t, 4> sizes;
  if (countable) {
    sizes = {shape[0], shape[1], block_shape[0], block_shape[1]};
    for (size_t i = 0; i < kParts; ++i) versions[i] = structure[i]._version();
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = seen.find(structure[1].unsafeGetTensorImpl());
    if (found != seen.end() && found->second.versions == versions && found->second.sizes == sizes) {
      bool same = true;
      for (size_t i = 0; i < kParts; ++i)
        same &= found->second.parts[i]._unsafe_get_target() == structure[i].unsafeGetTensorImpl();
      if (same) return;
    }
  }
  static const auto check = find("efcn_sparse::check_structure").typed<Check>();
  check.call(structure, shape, block_shape);
  if (!countable) return;
  const std::lock_guard<std::mutex> lock(mutex);
  if (seen.size() >= most) {
    std::erase_if(seen, [](const auto& entry) { return entry.second.parts[1].expired(); });
    most = std::max<size_t>(64, 2 * seen.size());
  }
  auto weak = [&](size_t i) { return c10::weak_intrusive_ptr<c10::TensorImpl>(structure[i].getIntrusivePtr()); };
  seen.insert_or_assign(structure[1].unsafeGetTensorImpl(),
                        Seen{{weak(0), weak(1), weak(2), weak(3), weak(4), weak(5), weak(6)}, versions, sizes});
}

// -- kernels ------------------------------------------------------------------------------------------------------------

// The matrix itself if its rows are contiguous and apart, else a copy.
Tensor row_major(const Tensor& matrix) {
  const bool apart = matrix.size(0) <= 1 || matrix.stride(0) >= matrix.size(1);
  return apart && (matrix.size(1) <= 1 || matrix.stride(1) == 1) ? matrix : matrix.contiguous();
}

void check_operand(const char* name, const Tensor& tensor, IntArrayRef sizes, const Tensor& like) {
  TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, " must be ", sizes, ", got ", tensor.sizes());
  TORCH_CHECK_TYPE(tensor.scalar_type() == like.scalar_type() && tensor.device() == like.device(), name, " must be ",
                   like.scalar_type(), " on ", like.device(), " as the other operands are, got ", tensor.scalar_type(),
                   " on ", tensor.device());
}

Tensor spmm(const Tensor& x, const Tensor& values, const MaybeTensor& bias, TensorList structure, IntArrayRef shape,
            bool transpose, string_view backend) {
  if (backend != "cpu" || values.dim() != 3 || x.dim() == 0 || shape.size() != 2)
    return in_python(spmm_operator(), c10::DispatchKey::CompositeExplicitAutograd, x, values, bias, structure, shape,
                     transpose, backend);
  check_structure(structure, shape, values.sizes().slice(1));
  const int64_t out_features = shape[transpose ? 1 : 0], in_features = shape[transpose ? 0 : 1], batch = x.size(0);
  const int64_t blocks = structure[1].size(0);
  TORCH_CHECK_VALUE(values.size(0) == blocks, "values must hold ", blocks, " blocks, got ", values.size(0));
  check_operand("x", x, {batch, in_features}, values);
  if (bias) check_operand("bias", *bias, {out_features}, values);
  Tensor y = cpu::empty({batch, out_features}, x.options());
  if (y.numel() > 0) cpu::spmm(y, row_major(x), values.contiguous(), bias, structure, shape, transpose, 1.0, 0.0);
  return y;
}

Tensor cpu_sddmm(const Tensor& a, const Tensor& b, TensorList structure, IntArrayRef shape, IntArrayRef block_shape,
                 const Tensor& column_sums = {}) {
  check_structure(structure, shape, block_shape);
  check_operand("a", a, {a.size(0), shape[0]}, b);
  check_operand("b", b, {a.size(0), shape[1]}, a);
  Tensor values = cpu::empty({structure[1].size(0), block_shape[0], block_shape[1]}, a.options());
  if (values.numel() > 0 && a.size(0) > 0)
    cpu::sddmm(values, row_major(a), row_major(b), structure, shape, 1.0, 0.0, column_sums);
  else
    values.zero_();
  return values;
}

Tensor sddmm(const Tensor& a, const Tensor& b, TensorList structure, IntArrayRef shape, IntArrayRef block_shape,
             string_view backend) {
  if (backend != "cpu" || a.dim() == 0 || shape.size() != 2 || block_shape.size() != 2)
    return in_python(sddmm_operator(), c10::DispatchKey::CompositeExplicitAutograd, a, b, structure, shape, block_shape,
                     backend);
  return cpu_sddmm(a, b, structure, shape, block_shape);
}

// -- derivatives --------------------------------------------------------------------------------------------------------

// Forward mode and transforms of torch.func are contract.py's affair.
bool is_transformed(const Tensor& tensor) {
  return tensor._fw_grad(/*level=*/0).defined() || tensor.key_set().has(c10::DispatchKey::FuncTorchGradWrapper);
}

// Arguments without gradients, as one: every tensor that is listed by itself would cost an edge of the graph.
struct Constants {
  TensorList structure;
  IntArrayRef shape, block_shape;
  bool transpose;
  string_view backend;

  void save(AutogradContext* context, Tensor first, Tensor second) const {
    variable_list saved{std::move(first), std::move(second)};
    saved.insert(saved.end(), structure.begin(), structure.end());
    context->save_for_backward(std::move(saved));
    context->saved_data["shape"] = shape;
    context->saved_data["block_shape"] = block_shape;
    context->saved_data["transpose"] = transpose;
    context->saved_data["backend"] = std::string(backend);
  }
};

struct Saved {
  variable_list tensors;
  std::vector<int64_t> shape, block_shape;
  bool transpose;
  std::string backend;

  explicit Saved(AutogradContext* context)
      : tensors(context->get_saved_variables()), shape(context->saved_data["shape"].toIntVector()),
        block_shape(context->saved_data["block_shape"].toIntVector()),
        transpose(context->saved_data["transpose"].toBool()), backend(context->saved_data["backend"].toStringRef()) {}

  TensorList structure() const { return TensorList(tensors).slice(2); }
  Constants constants() const { return {structure(), shape, block_shape, transpose, backend}; }
  Tensor spmm(const Tensor& x, const Tensor& values, bool transposed) const {
    return spmm_operator().call(x, values, {}, structure(), shape, transposed, backend);
  }
  Tensor sddmm(const Tensor& a, const Tensor& b) const {
    return sddmm_operator().call(a, b, structure(), shape, block_shape, backend);
  }
  // Whether operators on it would do nothing but call our kernels.
  bool is_direct(const Tensor& dy) const {
    return backend == "cpu" && !c10::GradMode::is_enabled() && !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
           is_plain(dy);
  }
  Tensor sddmm(const Tensor& a, const Tensor& b, const Tensor& column_sums) const {
    RECORD_FUNCTION("efcn_sparse::sddmm", std::vector<c10::IValue>({a, b}));
    return cpu_sddmm(a, b, structure(), shape, block_shape, column_sums);
  }
};

struct SddmmFunction : torch::autograd::Function<SddmmFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& a, const Tensor& b, const Constants& c, bool is_read) {
    c.save(context, b.requires_grad() ? a : Tensor(), a.requires_grad() ? b : Tensor());
    if (!is_read)
      return at::zeros({1, 1, 1}, a.options()).expand({c.structure[1].size(0), c.block_shape[0], c.block_shape[1]});
    at::AutoDispatchBelowADInplaceOrView guard;
    return sddmm_operator().call(a, b, c.structure, c.shape, c.block_shape, c.backend);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const Saved saved(context);
    const Tensor &a = saved.tensors[0], &b = saved.tensors[1], &dvalues = gradients[0];
    variable_list found(4);
    if (!dvalues.defined()) return found;
    if (context->needs_input_grad(0)) found[0] = saved.spmm(b, dvalues, false);
    if (context->needs_input_grad(1)) found[1] = saved.spmm(a, dvalues, true);
    return found;
  }
};

// Set for a gradient that is differentiated, but not read, as for a product with the Hessian: where `values` is a leaf
// without hooks, sddmm leaves its numbers at zero and brings its derivatives alone. Of one thread: others may train.
thread_local bool leaf_gradients_are_read = true;

struct SpmmFunction : torch::autograd::Function<SpmmFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const Tensor& values, const MaybeTensor& bias,
                        const Constants& c) {
    c.save(context, values.requires_grad() ? x : Tensor(), x.requires_grad() ? values : Tensor());
    context->saved_data["bias"] = bias.has_value();
    context->saved_data["leaf"] =
        values.requires_grad() && values.is_leaf() && torch::autograd::impl::hooks(values).empty();
    at::AutoDispatchBelowADInplaceOrView guard;
    return spmm_operator().call(x, values, bias, c.structure, c.shape, c.transpose, c.backend);
  }
  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const Saved saved(context);
    const Tensor &x = saved.tensors[0], &values = saved.tensors[1], &dy = gradients[0];
    variable_list found(4);
    if (!dy.defined()) return found;
    const bool biased = context->saved_data["bias"].toBool() && context->needs_input_grad(2);
    const bool direct = saved.is_direct(dy);
    if (context->needs_input_grad(0)) found[0] = saved.spmm(dy, values, !saved.transpose);
    if (context->needs_input_grad(1)) {
      const Tensor &a = saved.transpose ? x : dy, &b = saved.transpose ? dy : x;
      const bool is_read = leaf_gradients_are_read || !context->saved_data["leaf"].toBool();
      const bool is_differentiated = needs_gradient(a) || needs_gradient(b);
      if (biased && direct && !saved.transpose && is_plain(x) && dy.size(0) > 0 && saved.structure()[1].size(0) > 0) {
        found[2] = at::empty({dy.size(1)}, dy.options());
        found[1] = saved.sddmm(a, b, found[2]);  // on the way
        return found;
      }
      found[1] = is_read || !is_differentiated || is_transformed(a) || is_transformed(b)
                     ? saved.sddmm(a, b)
                     : SddmmFunction::apply(a, b, saved.constants(), false);
    }
    if (biased) found[2] = direct ? cpu::column_sums(row_major(dy)) : dy.sum(0);
    return found;
  }
};

Tensor spmm_autograd(const Tensor& x, const Tensor& values, const MaybeTensor& bias, TensorList structure,
                     IntArrayRef shape, bool transpose, string_view backend) {
  if (is_transformed(x) || is_transformed(values) || (bias && is_transformed(*bias)) || values.dim() != 3)
    return in_python(spmm_operator(), c10::DispatchKey::Autograd, x, values, bias, structure, shape, transpose,
                     backend);
  if (needs_gradient(x) || needs_gradient(values) || (bias && needs_gradient(*bias)))
    return SpmmFunction::apply(x, values, bias,
                               Constants{structure, shape, values.sizes().slice(1), transpose, backend});
  at::AutoDispatchBelowADInplaceOrView guard;
  return spmm_operator().call(x, values, bias, structure, shape, transpose, backend);
}

Tensor sddmm_autograd(const Tensor& a, const Tensor& b, TensorList structure, IntArrayRef shape,
                      IntArrayRef block_shape, string_view backend) {
  if (is_transformed(a) || is_transformed(b))
    return in_python(sddmm_operator(), c10::DispatchKey::Autograd, a, b, structure, shape, block_shape, backend);
  if (needs_gradient(a) || needs_gradient(b))
    return SddmmFunction::apply(a, b, Constants{structure, shape, block_shape, false, backend}, true);
  at::AutoDispatchBelowADInplaceOrView guard;
  return sddmm_operator().call(a, b, structure, shape, block_shape, backend);
}

// -- a way in for what is usual -----------------------------------------------------------------------------------------

// A plain CPU tensor; null for everything else, which the checks of ops/api.py can name.
const Tensor* plain(PyObject* object) {
  if (!THPVariable_CheckExact(object)) return nullptr;
  const Tensor& tensor = THPVariable_Unpack(object);
  return tensor.layout() == at::kStrided && tensor.device().is_cpu() && !tensor.is_nested() ? &tensor : nullptr;
}

bool is_pair(PyObject* object) { return PyTuple_Check(object) && PyTuple_GET_SIZE(object) == 2; }

std::array<int64_t, 2> pair(PyObject* object) {
  return {PyLong_AsLongLong(PyTuple_GET_ITEM(object, 0)), PyLong_AsLongLong(PyTuple_GET_ITEM(object, 1))};
}

bool matches(const Tensor& tensor, IntArrayRef sizes, at::ScalarType dtype) {
  return tensor.scalar_type() == dtype && tensor.sizes() == sizes;
}

PyObject* usual(PyObject* const* arguments) {
  const Tensor *x = plain(arguments[0]), *values = plain(arguments[1]);
  PyObject *given_bias = arguments[2], *parts = arguments[3];
  if (x == nullptr || values == nullptr || x->dim() != 2 || values->dim() != 3 || !is_pair(arguments[4]) ||
      !is_pair(arguments[5]) || !PyTuple_Check(parts) || PyTuple_GET_SIZE(parts) != kParts ||
      at::autocast::is_autocast_enabled(at::kCPU) || at::impl::torch_function_mode_enabled())
    return nullptr;
  const auto shape = pair(arguments[4]), block_shape = pair(arguments[5]);
  const bool transpose = arguments[6] == Py_True;
  const auto dtype = x->scalar_type();
  if (dtype != at::kFloat && dtype != at::kBFloat16 && dtype != at::kHalf && dtype != at::kDouble) return nullptr;
  std::array<Tensor, kParts> structure;
  for (size_t i = 0; i < kParts; ++i) {
    const Tensor* part = plain(PyTuple_GET_ITEM(parts, i));
    if (part == nullptr) return nullptr;
    structure[i] = *part;
  }
  MaybeTensor bias;
  if (given_bias != Py_None) {
    const Tensor* found = plain(given_bias);
    if (found == nullptr || !matches(*found, {shape[transpose ? 1 : 0]}, dtype)) return nullptr;
    bias = *found;
  }
  if (!matches(*values, {structure[1].numel(), block_shape[0], block_shape[1]}, dtype) ||
      x->size(1) != shape[transpose ? 0 : 1])
    return nullptr;
  Tensor y;
  {
    pybind11::gil_scoped_release released;
    y = spmm_operator().call(*x, *values, bias, structure, shape, transpose, "cpu");
  }
  return THPVariable_Wrap(std::move(y));
}

}  // namespace

PyObject* usual_spmm(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  TORCH_CHECK_TYPE(count == 7, "usual_spmm takes 7 arguments, got ", count);
  PyObject* result = usual(arguments);
  return result == nullptr && PyErr_Occurred() == nullptr ? Py_NewRef(Py_None) : result;
  END_HANDLE_TH_ERRORS
}

PyObject* read_leaf_gradients(PyObject*, PyObject* read) {
  leaf_gradients_are_read = read == Py_True;
  Py_RETURN_NONE;
}

TORCH_LIBRARY_IMPL(efcn_sparse, CPU, m) {
  m.impl("spmm", &spmm);
  m.impl("sddmm", &sddmm);
}

TORCH_LIBRARY_IMPL(efcn_sparse, AutogradCPU, m) {
  m.impl("spmm", &spmm_autograd);
  m.impl("sddmm", &sddmm_autograd);
}

}  // namespace efcn_sparse
