// What a GPU refuses, and what makes the host wait.
#pragma once

#include "device.h"

namespace {

// -- what a GPU would refuse -------------------------------------------------------------------------------------

bool takes_cpu_scalars(const c10::OperatorHandle& op, const std::string& name) {
  static const std::unordered_set<std::string> named = {
      "aten::index_put_",  "aten::_index_put_impl_", "aten::index_put",  "aten::fill_", "aten::masked_fill_",
      "aten::masked_fill", "aten::index_fill_",      "aten::index_fill", "aten::fill"};
  return op.hasTag(at::Tag::pointwise) || named.count(name) > 0 || name.rfind("aten::_foreach_", 0) == 0;
}

bool takes_cpu_tensors(const std::string& name, const std::string& argument) {
  if (name == "aten::copy_" || name == "aten::_foreach_copy_") return true;
  return argument == "indices" && name.find("index") != std::string::npos;
}

void check_devices(const c10::OperatorHandle& op, const std::string& name, at::ArrayRef<IValue> arguments) {
  const auto& schema = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); i++) {
    auto check = [&](const Tensor& tensor) {
      if (!tensor.defined() || tensor.is_cuda() || takes_cpu_tensors(name, schema[i].name())) return;
      if (tensor.dim() == 0 && (takes_cpu_scalars(op, name) || tensor.unsafeGetTensorImpl()->is_wrapped_number()))
        return;
      TORCH_CHECK(false, "Expected all tensors to be on the same device, but got ", schema[i].name(), " is on ",
                  tensor.device(), ", different from other tensors on cuda:0 (when checking argument in method ", name,
                  ")");
    };
    if (arguments[i].isTensor()) check(arguments[i].toTensor());
    if (arguments[i].isTensorList())
      for (const Tensor& tensor : arguments[i].toTensorVector()) check(tensor);
    if (arguments[i].isOptionalTensorList())
      for (const std::optional<Tensor>& tensor : arguments[i].toOptionalTensorVector())
        if (tensor) check(*tensor);
  }
}

// Products that CUDA has for floating point only.
void check_types(const std::string& name, at::ArrayRef<IValue> arguments) {
  static const std::unordered_set<std::string> products = {
      "aten::mm",    "aten::addmm",  "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::baddbmm_",
      "aten::addmv", "aten::addmv_", "aten::mv",     "aten::dot", "aten::addbmm"};
  if (products.count(name) == 0 || !arguments[0].isTensor()) return;
  auto type = arguments[0].toTensor().scalar_type();
  TORCH_CHECK(c10::isFloatingType(type) || c10::isComplexType(type), "\"", name, "_cuda\" not implemented for '", type,
              "'");
}

bool is_mask(const Tensor& tensor) {
  return tensor.defined() && (tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte);
}

void check_waits(const c10::OperatorHandle& op, const std::string& name, at::ArrayRef<IValue> arguments) {
  static const std::unordered_set<std::string> known = {"aten::_local_scalar_dense",
                                                        "aten::nonzero",
                                                        "aten::_unique",
                                                        "aten::_unique2",
                                                        "aten::unique_dim",
                                                        "aten::unique_consecutive",
                                                        "aten::unique_dim_consecutive",
                                                        "aten::masked_select",
                                                        "aten::equal",
                                                        "aten::bincount",
                                                        "aten::histc",
                                                        "aten::repeat_interleave",
                                                        "aten::argwhere",
                                                        "aten::_linalg_svd",
                                                        "aten::_linalg_eigh",
                                                        "aten::linalg_inv_ex",
                                                        "aten::linalg_cholesky_ex",
                                                        "aten::linalg_lstsq"};
  if (known.count(name) > 0) {
    bool knows_size = false;  // repeat_interleave(..., output_size=n)
    for (size_t i = 0; i < arguments.size(); i++)
      knows_size |= op.schema().arguments()[i].name() == "output_size" && !arguments[i].isNone();
    if (!knows_size) wait_for_device(name);
  }
  if (name.rfind("aten::index", 0) == 0 || name == "aten::_index_put_impl_")
    for (const IValue& argument : arguments)
      if (argument.isOptionalTensorList())
        for (const std::optional<Tensor>& index : argument.toOptionalTensorVector()) {
          if (!index || !index->defined()) continue;
          if (is_mask(*index))
            wait_for_device(name + " with a mask");
          else if (!index->is_cuda())
            wait_for_device(name + " with indices on the CPU");
        }
}

}  // namespace
