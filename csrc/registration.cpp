// The operators of the compiled extension: their schemas, and no logic.
#include <Python.h>
#include <torch/library.h>

#include "cpu/memory.h"
#include "cpu/operations.h"
#include "cpu/pack.h"
#include "cpu/product_columns.h"
#include "cpu/spmm_columns.h"

TORCH_LIBRARY_FRAGMENT(efcn_sparse_cpu, m) {
  m.def(
      "spmm(Tensor(a!) y, Tensor x, Tensor values, Tensor? bias, Tensor[] structure, int[] shape, bool transpose, "
      "float alpha, float beta) -> ()");
  m.def("sddmm(Tensor(a!) values, Tensor a, Tensor b, Tensor[] structure, int[] shape, float alpha, float beta) -> ()");
  m.def("empty_cache() -> ()", &efcn_sparse::cpu::empty_cache);
  m.def("column_sums(Tensor a) -> Tensor");
  m.def("in_huge_pages(Tensor(a!) fresh) -> ()");
  m.def("subspace_squares(Tensor values, Tensor[] plan) -> Tensor");
  m.def("subspace_project(Tensor(a!) values, Tensor[] plan, bool tie) -> ()");
}

TORCH_LIBRARY_IMPL(efcn_sparse_cpu, CPU, m) {
  m.impl("spmm", &efcn_sparse::cpu::spmm);
  m.impl("sddmm", [](at::Tensor& values, const at::Tensor& a, const at::Tensor& b, at::TensorList structure,
                     at::IntArrayRef shape, double alpha,
                     double beta) { efcn_sparse::cpu::sddmm(values, a, b, structure, shape, alpha, beta); });
  m.impl("column_sums", &efcn_sparse::cpu::column_sums);
  m.impl("in_huge_pages", [](at::Tensor& fresh) { efcn_sparse::cpu::in_huge_pages(fresh); });
  m.impl("subspace_squares", &efcn_sparse::cpu::subspace_squares);
  m.impl("subspace_project", &efcn_sparse::cpu::subspace_project);
}

namespace efcn_sparse {
PyObject* usual_spmm(PyObject*, PyObject* const* arguments, Py_ssize_t count);  // contract.cpp
PyObject* read_leaf_gradients(PyObject*, PyObject* read);                       // contract.cpp
}  // namespace efcn_sparse

// Importing efcn_sparse._C loads this library, which registers the operators above; the module holds constants and a
// quick way to one of them.
PyMODINIT_FUNC PyInit__C() {
  static PyMethodDef methods[] = {
      {"usual_spmm", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(efcn_sparse::usual_spmm)),
       METH_FASTCALL,
       "usual_spmm(x, values, bias, structure, shape, block_shape, transpose): the operator on plain CPU tensors that "
       "fit, or None."},
      {"read_leaf_gradients", efcn_sparse::read_leaf_gradients, METH_O,
       "read_leaf_gradients(bool): whether gradients of leaf values are computed, or, in this thread, left at zero and "
       "only differentiated."},
      {nullptr, nullptr, 0, nullptr}};
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  for (const auto& [name, number] :
       std::initializer_list<std::pair<const char*, int64_t>>{{"BRGEMM", efcn_sparse::cpu::use_brgemm()},
                                                              {"COLUMNS_SIDE", efcn_sparse::cpu::columns_side()},
                                                              {"COLUMNS_BYTES", efcn_sparse::cpu::kColumnsBytes},
                                                              {"GATHER_SIDE", efcn_sparse::cpu::kGatherSide},
                                                              {"GATHER_ROWS", efcn_sparse::cpu::kGatherRows},
                                                              {"DIRECT_RUN", efcn_sparse::cpu::kDirectRun},
                                                              {"CROWDED_BYTES", efcn_sparse::cpu::kCrowdedBytes},
                                                              {"CROWDED_SIDE", efcn_sparse::cpu::kCrowdedSide},
                                                              {"BATCH_CHUNK", efcn_sparse::cpu::kBatchChunk},
                                                              {"AT_ONCE_BYTES", efcn_sparse::cpu::kAtOnceBytes},
                                                              {"AT_ONCE_ROWS", efcn_sparse::cpu::kAtOnceRows}})
    if (module != nullptr && PyModule_AddIntConstant(module, name, number) != 0) Py_CLEAR(module);
  return module;
}
