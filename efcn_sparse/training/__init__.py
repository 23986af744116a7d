"""The relax protocol of d'Ascoli et al. (2019): from a CNN to its fully-connected twin, epoch by epoch."""

from efcn_sparse.training.config import RelaxConfig as RelaxConfig
from efcn_sparse.training.config import snapshot_epochs as snapshot_epochs
from efcn_sparse.training.optim.carry import carry_state as carry_state
from efcn_sparse.training.optim.selective import SelectiveSGD as SelectiveSGD
from efcn_sparse.training.optim.shares import Part as Part
from efcn_sparse.training.presets import PRESETS as PRESETS
from efcn_sparse.training.run.nets import kept_epochs as kept_epochs
from efcn_sparse.training.run.nets import load_arm as load_arm
from efcn_sparse.training.run.relax import run_relax as run_relax
from efcn_sparse.training.run.source import load_data as load_data
from efcn_sparse.training.run.watch import Event as Event
from efcn_sparse.training.task import Task as Task
