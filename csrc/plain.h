#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

namespace efcn_sparse {

// Whether a tensor's numbers lie in its memory as its strides say, and autograd alone looks on, in reverse mode.
inline bool is_plain(const at::Tensor& x) {
  constexpr c10::DispatchKeySet kOthers{c10::DispatchKey::Python,        c10::DispatchKey::FuncTorchBatched,
                                        c10::DispatchKey::Batched,       c10::DispatchKey::FuncTorchGradWrapper,
                                        c10::DispatchKey::Functionalize, c10::DispatchKey::Negative,
                                        c10::DispatchKey::Conjugate,     c10::DispatchKey::ZeroTensor};
  return x.layout() == at::kStrided && !x.is_nested() && !x.key_set().has_any(kOthers) &&
         !x._fw_grad(/*level=*/0).defined();
}

// Whether autograd records what is computed from a tensor.
inline bool needs_gradient(const at::Tensor& x) { return x.requires_grad() && c10::GradMode::is_enabled(); }

}  // namespace efcn_sparse
