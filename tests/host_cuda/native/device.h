// Memory, waits, random numbers, and a device, a guard and hooks for torch.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/SparseCsrTensorUtils.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/_sparse_compressed_tensor_unsafe.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::DeviceType;
using c10::DispatchKey;
using c10::IValue;

const Device kDevice{DeviceType::CUDA, 0};
const c10::DispatchKeySet kCuda{DispatchKey::CUDA};

// -- memory ------------------------------------------------------------------------------------------------------

struct Counters {
  size_t allocated = 0, peak = 0, allocations = 0;
};
Counters counters;
std::mutex counting;
bool capturing = false;

void count(size_t bytes) {
  std::lock_guard<std::mutex> lock(counting);
  counters.allocated += bytes;
  counters.peak = std::max(counters.peak, counters.allocated);
  counters.allocations += bytes > 0;
}

void uncount(size_t bytes) {
  std::lock_guard<std::mutex> lock(counting);
  counters.allocated -= bytes;
}

// What keeps the host's memory alive while a device tensor has it.
struct Held {
  c10::DataPtr memory;
  size_t bytes;
  Held(c10::DataPtr from, size_t size) : memory(std::move(from)), bytes(size) { count(bytes); }
  ~Held() { uncount(bytes); }
  static void free(void* held) { delete static_cast<Held*>(held); }
};

c10::DataPtr held(c10::DataPtr memory, size_t bytes, Device device) {
  void* data = memory.get();
  return {data, new Held(std::move(memory), bytes), &Held::free, device};
}

struct HostCudaAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    // New memory is full of NaN: on a GPU it has what was there before.
    auto memory = held(c10::GetCPUAllocator()->allocate(bytes), bytes, kDevice);
    if (bytes > 0) std::memset(memory.get(), 0xFF, bytes);
    return memory;
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
HostCudaAllocator allocator;

struct PinnedAllocator final : c10::Allocator {
  std::unordered_set<const void*> known;
  static PinnedAllocator& get() {
    static auto* it = new PinnedAllocator;
    return *it;
  }
  static void free(void* data) {
    get().known.erase(data);
    std::free(data);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* data = std::aligned_alloc(64, (std::max<size_t>(bytes, 1) + 63) / 64 * 64);
    known.insert(data);
    return {data, data, &free, Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

// -- what blocks the host ----------------------------------------------------------------------------------------

std::map<std::string, int64_t> waits;
int sync_debug_mode = 0;  // 0: nothing, 1: warn, 2: raise

void wait_for_device(const std::string& why) {
  TORCH_CHECK(!capturing, "CUDA error: operation not permitted when stream is capturing (", why, ")");
  waits[why]++;
  if (sync_debug_mode == 1) TORCH_WARN("called a synchronizing CUDA operation: ", why);
  TORCH_CHECK(sync_debug_mode != 2, "called a synchronizing CUDA operation: ", why);
}

// -- random numbers ----------------------------------------------------------------------------------------------

// A CUDA generator that draws the CPU's numbers from a state of its own.
struct HostCudaGenerator final : c10::GeneratorImpl {
  at::Generator inner;
  explicit HostCudaGenerator(at::Generator from)
      : c10::GeneratorImpl(kDevice, c10::DispatchKeySet(DispatchKey::CUDA)), inner(std::move(from)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t) override { TORCH_CHECK(false, "the host's CUDA generator has no offset"); }
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.unsafeGetGeneratorImpl()->seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  HostCudaGenerator* clone_impl() const override { return new HostCudaGenerator(inner.clone()); }
};

at::Generator new_generator() {
  return at::make_generator<HostCudaGenerator>(at::make_generator<at::CPUGeneratorImpl>(c10::default_rng_seed_val));
}

const at::Generator& default_generator() {
  static auto* it = new at::Generator(new_generator());
  return *it;
}

at::Generator inner_of(const at::Generator& generator) {
  auto* own = dynamic_cast<HostCudaGenerator*>(generator.unsafeGetGeneratorImpl());
  TORCH_CHECK(own != nullptr, "Expected a 'cuda' device type for generator but found '", generator.device().type(),
              "'");
  return own->inner;
}

// -- a device for torch ------------------------------------------------------------------------------------------

thread_local c10::StreamId current_stream = 0;

struct HostCudaGuard final : c10::impl::DeviceGuardImplInterface {
  DeviceType type() const override { return DeviceType::CUDA; }
  static void check(Device device) {
    TORCH_CHECK(device.index() <= 0, "CUDA error: invalid device ordinal (", device, ")");
  }
  Device exchangeDevice(Device device) const override {
    check(device);
    return kDevice;
  }
  Device getDevice() const override { return kDevice; }
  void setDevice(Device device) const override { check(device); }
  void uncheckedSetDevice(Device) const noexcept override {}
  c10::Stream getStream(Device) const override { return c10::Stream(c10::Stream::UNSAFE, kDevice, current_stream); }
  c10::Stream getDefaultStream(Device) const override { return c10::Stream(c10::Stream::UNSAFE, kDevice, 0); }
  c10::Stream getNewStream(Device, int) const override {
    static c10::StreamId last = 0;
    return c10::Stream(c10::Stream::UNSAFE, kDevice, ++last);
  }
  c10::Stream getStreamFromGlobalPool(Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    auto before = getStream(kDevice);
    current_stream = stream.id();
    return before;
  }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, HostCudaGuard)

}  // namespace

namespace at {
struct HostCudaHooks final : CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex device) const override { HostCudaGuard::check(Device(DeviceType::CUDA, device)); }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(DeviceIndex) const override {}
  const Generator& getDefaultGenerator(DeviceIndex) const override { return default_generator(); }
  Generator getNewGenerator(DeviceIndex) const override { return new_generator(); }
  Allocator* getPinnedMemoryAllocator() const override { return &PinnedAllocator::get(); }
  Allocator* getCUDADeviceAllocator() const override { return &allocator; }
  bool isPinnedPtr(const void* data) const override { return PinnedAllocator::get().known.count(data) > 0; }
};
}  // namespace at

namespace {}  // namespace
