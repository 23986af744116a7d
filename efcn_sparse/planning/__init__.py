"""What training an eFCN takes, before it is built."""

from efcn_sparse.planning.budget import Fit as Fit
from efcn_sparse.planning.budget import Step as Step
from efcn_sparse.planning.budget import StepPlanner as StepPlanner
from efcn_sparse.planning.step import StepPrediction as StepPrediction
from efcn_sparse.planning.step import predict_step as predict_step
