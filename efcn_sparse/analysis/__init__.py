"""Figures and tables from a run directory."""

from efcn_sparse.analysis.report import write_report as write_report
from efcn_sparse.analysis.run_data import Run as Run
from efcn_sparse.analysis.run_data import read_run as read_run
