"""Figures and tables from a run directory, and the landscape between the nets that it holds."""

from efcn_sparse.analysis.landscape import LandscapeSettings as LandscapeSettings
from efcn_sparse.analysis.landscape import measure_landscape as measure_landscape
from efcn_sparse.analysis.landscape import read_landscape as read_landscape
from efcn_sparse.analysis.report import write_report as write_report
from efcn_sparse.analysis.run_data import Run as Run
from efcn_sparse.analysis.run_data import read_run as read_run
