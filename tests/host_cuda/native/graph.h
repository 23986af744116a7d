// Every operator on the CPU's kernel, noted while a graph is captured.
#pragma once

#include "call.h"
#include "refusals.h"

namespace {

// -- graphs ------------------------------------------------------------------------------------------------------

struct Graph {
  std::vector<std::function<void()>> steps;
  std::vector<c10::Storage> kept;                                  // memory of the graph's tensors lives as long as it
  std::vector<std::pair<c10::Storage, std::vector<char>>> before;  // a capture runs nothing: what was there comes back
  std::unordered_set<const void*> saved, made;
};
Graph* graph = nullptr;

void save(const c10::Storage& storage) {
  if (graph->made.count(storage.data()) > 0 || !graph->saved.insert(storage.data()).second) return;
  const char* data = static_cast<const char*>(storage.data());
  graph->before.emplace_back(storage, std::vector<char>(data, data + storage.nbytes()));
}

void for_each_tensor(const IValue& value, const std::function<void(const Tensor&)>& visit) {
  if (value.isTensor() && value.toTensor().defined()) visit(value.toTensor());
  if (value.isTensorList())
    for (const Tensor& tensor : value.toTensorVector()) visit(tensor);
}

void run(const c10::OperatorHandle& op, torch::jit::Stack* stack);

void replay(const c10::OperatorHandle& op, const torch::jit::Stack& arguments, const torch::jit::Stack& results) {
  torch::jit::Stack stack = arguments;
  run(op, &stack);
  for (size_t i = 0; i < stack.size(); i++) {
    std::vector<Tensor> now, then;
    for_each_tensor(stack[i], [&](const Tensor& tensor) { now.push_back(tensor); });
    for_each_tensor(results[i], [&](const Tensor& tensor) { then.push_back(tensor); });
    for (size_t j = 0; j < now.size(); j++) {
      if (now[j].storage().data() == then[j].storage().data()) continue;
      Call call("replay");
      call.host(then[j]).copy_(call.host(now[j]));
    }
  }
}

// The same memory without what autograd hangs on the tensor, which a graph must not keep.
Tensor bare(const Tensor& tensor) {
  if (!tensor.defined() || tensor.layout() != c10::kStrided) return tensor;
  auto made = at::detail::make_tensor<c10::TensorImpl>(
      c10::Storage(tensor.storage()),
      tensor.key_set().has(DispatchKey::CUDA) ? kCuda : c10::DispatchKeySet(DispatchKey::CPU), tensor.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides());
  made.unsafeGetTensorImpl()->set_storage_offset(tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
  return made;
}

// -- the fallback ------------------------------------------------------------------------------------------------

template <class Change>
void change_tensors(IValue& value, const Change& change) {
  if (value.isTensor()) {
    value = change(value.toTensor());
  } else if (value.isTensorList()) {
    auto tensors = value.toTensorVector();
    for (auto& tensor : tensors) tensor = change(tensor);
    value = IValue(tensors);
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector())
      list.push_back(tensor ? std::optional<Tensor>(change(*tensor)) : std::nullopt);
    value = IValue(list);
  }
}

void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t count = schema.arguments().size();
  Call call(schema.name());
  auto begin = stack->end() - static_cast<std::ptrdiff_t>(count);
  for (size_t i = 0; i < count; i++) {
    IValue& argument = *(begin + static_cast<std::ptrdiff_t>(i));
    const auto& declared = schema.arguments()[i];
    if (argument.isDevice()) {
      argument = IValue(Device(DeviceType::CPU));
    } else if (argument.isGenerator()) {
      argument = IValue(inner_of(argument.toGenerator()));
    } else if (argument.isNone() && declared.type()->str() == "Generator?") {
      argument = IValue(inner_of(default_generator()));
    } else {
      change_tensors(argument, [&](const Tensor& tensor) { return call.host(tensor); });
    }
  }
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    op.callBoxed(stack);
  }
  call.settle();
  for (size_t i = 0; i < schema.returns().size(); i++) {
    IValue& result = *(stack->end() - 1 - static_cast<std::ptrdiff_t>(i));
    change_tensors(result, [&](const Tensor& tensor) { return call.device(tensor); });
  }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string& name = op.schema().name();
  const auto arguments = torch::jit::last(stack, op.schema().arguments().size());
  check_devices(op, name, arguments);
  check_types(name, arguments);
  check_waits(op, name, arguments);
  if (graph == nullptr) return run(op, stack);
  for (size_t i = 0; i < arguments.size(); i++)
    if (const auto* alias = op.schema().arguments()[i].alias_info(); alias != nullptr && alias->isWrite())
      for_each_tensor(arguments[i], [](const Tensor& tensor) { save(tensor.storage()); });
  torch::jit::Stack given(arguments.begin(), arguments.end());
  for (IValue& argument : given) change_tensors(argument, [](const Tensor& tensor) { return bare(tensor); });
  run(op, stack);
  torch::jit::Stack results = torch::jit::last(stack, op.schema().returns().size()).vec();
  for (IValue& result : results) {
    for_each_tensor(result, [](const Tensor& tensor) { graph->made.insert(tensor.storage().data()); });
    change_tensors(result, [](const Tensor& tensor) { return bare(tensor); });
  }
  graph->steps.emplace_back([op, given, results] { replay(op, given, results); });
}

}  // namespace
