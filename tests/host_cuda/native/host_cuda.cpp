// DeviceType::CUDA on a torch without CUDA: memory is the host's, every kernel is the CPU's. See device.py.

#include "graph.h"

namespace {

// -- kernels that make tensors or move them ----------------------------------------------------------------------

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<Device> device, std::optional<bool> pin_memory, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin_memory.value_or(false), "Only dense CPU tensors can be pinned");
  HostCudaGuard::check(device.value_or(kDevice));
  Tensor made = at::detail::empty_generic(size, &allocator, kCuda, c10::dtype_or_default(dtype), format);
  if (graph != nullptr) graph->made.insert(made.storage().data()), graph->kept.emplace_back(made.storage());
  return made;
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<Device> device, std::optional<bool>) {
  HostCudaGuard::check(device.value_or(kDevice));
  Tensor made = at::detail::empty_strided_generic(size, stride, &allocator, kCuda, c10::dtype_or_default(dtype));
  if (graph != nullptr) graph->made.insert(made.storage().data()), graph->kept.emplace_back(made.storage());
  return made;
}

void copy(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Tensor &to = torch::jit::peek(*stack, 0, 3).toTensor(), &from = torch::jit::peek(*stack, 1, 3).toTensor();
  const bool non_blocking = torch::jit::peek(*stack, 2, 3).toBool();
  const bool to_host = !to.is_cuda(), from_host = !from.is_cuda();
  const bool pinned = (to_host ? to : from).is_pinned();
  if ((to_host || from_host) && to.numel() > 0 && !(non_blocking && (from_host || pinned)))
    wait_for_device(to_host ? "copy to the host" : "copy from the host");
  fallback(op, stack);
}

void do_nothing(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  torch::jit::drop(*stack, op.schema().arguments().size());
}

template <void (*function)(const c10::OperatorHandle&, torch::jit::Stack*)>
torch::CppFunction boxed() {
  return torch::CppFunction::makeFromBoxedFunction<function>();
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(boxed<&fallback>()); }
TORCH_LIBRARY_IMPL(_, SparseCsrCUDA, m) { m.fallback(boxed<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, SparseCsrCUDA, m) {  // whose defaults refuse
  for (const char* name : {"values", "crow_indices", "col_indices", "ccol_indices", "row_indices"})
    m.impl(name, boxed<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", [](const Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                          std::optional<int64_t> offset) { return at::cpu::as_strided(self, size, stride, offset); });
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("resize_",
         [](const Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) -> const Tensor& {
           return at::native::resize_(self, size, format);
         });
  m.impl("set_.source_Storage", &at::native::set_);
  m.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  m.impl("set_.source_Tensor", &at::native::set_tensor_);
  m.impl("set_", [](Tensor& self) -> Tensor& {
    return at::native::set_storage_cpu_(self, c10::Storage(c10::Storage::use_byte_size_t(), 0, &allocator, true), 0,
                                        {0}, {});
  });
  m.impl("_efficientzerotensor",  // whose tensors have no memory, which the CPU's kernels would read
         [](c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
            std::optional<at::Device> device,
            std::optional<bool> pinned) { return at::zeros_symint(size, dtype, layout, device, pinned); });
  m.impl("copy_", boxed<&copy>());
  m.impl("record_stream", boxed<&do_nothing>());
  m.impl("convolution", boxed<&fallback>());  // else it looks for cuDNN and for kernels that the CPU has not
  m.impl("convolution_backward", boxed<&fallback>());
}

// -- for Python --------------------------------------------------------------------------------------------------

Tensor host_alias(const Tensor& tensor) {
  Call call("host_alias");
  return call.host(tensor);
}

void begin_capture() {
  TORCH_CHECK(graph == nullptr, "a graph is being captured already");
  graph = new Graph;
  capturing = true;
}

struct Captured {
  std::unique_ptr<Graph> graph;
  void replay() {
    for (auto& step : graph->steps) step();
  }
};

std::unique_ptr<Captured> end_capture() {
  TORCH_CHECK(graph != nullptr, "no graph is being captured");
  auto done = std::make_unique<Captured>();
  done->graph.reset(graph);
  for (auto& [storage, bytes] : graph->before)
    if (!bytes.empty()) std::memcpy(const_cast<void*>(storage.data()), bytes.data(), bytes.size());
  graph->before.clear();
  graph = nullptr;
  capturing = false;
  return done;
}

void add_step(const py::function& step, const std::vector<Tensor>& tensors) {
  if (graph == nullptr) return;
  for (const Tensor& tensor : tensors) graph->kept.emplace_back(tensor.storage());
  auto* kept = new py::function(step);  // never freed: graphs may outlive the interpreter
  graph->steps.emplace_back([kept] {
    py::gil_scoped_acquire gil;
    (*kept)();
  });
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  c10::SetAllocator(DeviceType::CUDA, &allocator);
  // torch has asked for its hooks while it was imported, and keeps what it got: no registration reaches it any more.
  auto* hooks = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  static_assert(sizeof(at::HostCudaHooks) == sizeof(at::CUDAHooksInterface), "hooks have no members");
  new (hooks) at::HostCudaHooks;
  m.def("allocated", [] { return counters.allocated; });
  m.def("peak", [] { return counters.peak; });
  m.def("allocations", [] { return counters.allocations; });
  m.def("reset_peak", [] { counters.peak = counters.allocated; });
  m.def("waits", [] { return waits; });
  m.def("forget_waits", [] { waits.clear(); });
  m.def("wait", [](const std::string& why) { wait_for_device(why); });
  m.def("sync_debug_mode", [] { return sync_debug_mode; });
  m.def("set_sync_debug_mode", [](int mode) { sync_debug_mode = mode; });
  m.def("default_generator", [] { return default_generator(); });
  m.def("host_alias", &host_alias);
  m.def("capturing", [] { return capturing; });
  m.def("begin_capture", &begin_capture);
  m.def("end_capture", &end_capture);
  m.def("save", [](const Tensor& tensor) {
    if (graph != nullptr) save(tensor.storage());
  });
  m.def("add_step", &add_step);
  m.def("stream", [] { return current_stream; });
  m.def("set_stream", [](int64_t id) { current_stream = id; });
  py::class_<Captured>(m, "Captured").def("replay", &Captured::replay, py::call_guard<py::gil_scoped_release>());
}
