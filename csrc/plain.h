#pragma once

#include <ATen/core/Tensor.h>

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

}  // namespace efcn_sparse
