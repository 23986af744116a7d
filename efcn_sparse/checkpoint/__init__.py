"""Checkpoints that stream: in shards, tensor by tensor, from the storage of a model and back into it."""

from efcn_sparse.checkpoint.sharded import load_sharded as load_sharded
from efcn_sparse.checkpoint.sharded import save_sharded as save_sharded
