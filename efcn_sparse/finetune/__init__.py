"""Fine-tuning a dense model through trainable blocks beside its frozen weights."""

from efcn_sparse.finetune.sparse_delta import SparseDelta as SparseDelta
