// One call's arguments as CPU tensors on the device's memory, and the way back for what it returns.
#pragma once

#include "device.h"

namespace {

// -- every kernel is the CPU's, on the same memory ---------------------------------------------------------------

// The arguments of one call as CPU tensors on the device's memory, and the way back for what it returns.
class Call {
 public:
  explicit Call(std::string name) : name_(std::move(name)) {}

  Tensor host(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    auto known = hosts_.find(tensor.unsafeGetTensorImpl());
    if (known != hosts_.end()) return known->second;
    Tensor made = tensor.layout() == c10::kStrided ? strided(tensor) : compressed(tensor);
    hosts_.emplace(tensor.unsafeGetTensorImpl(), made);
    devices_.emplace(made.unsafeGetTensorImpl(), tensor);
    return made;
  }

  Tensor device(const Tensor& tensor) {
    if (!tensor.defined() || tensor.is_cuda()) return tensor;
    auto known = devices_.find(tensor.unsafeGetTensorImpl());
    if (known != devices_.end()) return known->second;
    if (tensor.layout() != c10::kStrided) return compressed_device(tensor);
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    auto own = storages_.find(storage);
    c10::Storage on_device = own != storages_.end() ? own->second : moved(tensor.storage());
    storages_.emplace(storage, on_device);
    auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(on_device), kCuda, tensor.dtype());
    auto* impl = made.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(tensor.sizes(), tensor.strides());
    impl->set_storage_offset(tensor.storage_offset());
    return made;
  }

  // Outputs that the call has resized.
  void settle() {
    for (auto& [impl, host] : hosts_) {
      if (host.layout() != c10::kStrided) continue;
      auto* from = host.storage().unsafeGetStorageImpl();
      auto& to = storages_.at(from);
      if (from->data() != to.data()) {
        c10::Storage kept = host.storage();
        to.set_data_ptr_noswap(moved_memory(kept));
        to.set_nbytes(from->nbytes());
      }
      if (impl->sizes() != host.sizes() || impl->strides() != host.strides())
        impl->set_sizes_and_strides(host.sizes(), host.strides());
    }
  }

 private:
  static void drop(void* storage) { delete static_cast<c10::Storage*>(storage); }

  static c10::DataPtr shared_memory(const c10::Storage& storage, Device device) {
    return {const_cast<void*>(storage.data()), new c10::Storage(storage), &drop, device};
  }

  static c10::DataPtr moved_memory(const c10::Storage& storage) {
    return held(shared_memory(storage, kDevice), storage.nbytes(), kDevice);
  }

  static c10::Storage moved(const c10::Storage& storage) {
    return {c10::Storage::use_byte_size_t(), storage.nbytes(), moved_memory(storage), &allocator, true};
  }

  Tensor strided(const Tensor& tensor) {
    const auto& storage = tensor.storage();
    auto* own = storage.unsafeGetStorageImpl();
    auto found = wrapped_.find(own);
    c10::Storage on_host;
    if (found != wrapped_.end()) {
      on_host = found->second;
    } else {
      on_host = c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(),
                             shared_memory(storage, Device(DeviceType::CPU)), c10::GetCPUAllocator(), true);
      wrapped_.emplace(own, on_host);
      storages_.emplace(on_host.unsafeGetStorageImpl(), storage);
    }
    auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(on_host), c10::DispatchKeySet(DispatchKey::CPU),
                                                         tensor.dtype());
    auto* impl = made.unsafeGetTensorImpl();
    impl->set_sizes_and_strides(tensor.sizes(), tensor.strides());
    impl->set_storage_offset(tensor.storage_offset());
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
    return made;
  }

  Tensor rebuilt(const Tensor& tensor, const std::function<Tensor(const Tensor&)>& change, Device device) {
    TORCH_CHECK(at::sparse_csr::is_sparse_compressed(tensor), name_, ": a layout the host's device does not know, ",
                tensor.layout());
    auto* impl = at::sparse_csr::get_sparse_csr_impl(tensor);
    return at::_sparse_compressed_tensor_unsafe(change(impl->compressed_indices()), change(impl->plain_indices()),
                                                change(impl->values()), tensor.sizes(),
                                                tensor.options().device(device));
  }

  Tensor compressed(const Tensor& tensor) {
    return rebuilt(tensor, [this](const Tensor& part) { return host(part); }, Device(DeviceType::CPU));
  }

  Tensor compressed_device(const Tensor& tensor) {
    return rebuilt(tensor, [this](const Tensor& part) { return device(part); }, kDevice);
  }

  std::string name_;
  std::unordered_map<c10::TensorImpl*, Tensor> hosts_, devices_;
  std::unordered_map<c10::StorageImpl*, c10::Storage> wrapped_, storages_;
};

}  // namespace
