"""Convolutions as fully-connected layers, and back."""

from efcn_sparse.embedding.conv import EmbeddedConv as EmbeddedConv
from efcn_sparse.embedding.embed import embed as embed
from efcn_sparse.embedding.embed import unembed as unembed
from efcn_sparse.embedding.geometry import ConvGeometry as ConvGeometry
from efcn_sparse.embedding.plan import LayerPlan as LayerPlan
from efcn_sparse.embedding.plan import Plan as Plan
from efcn_sparse.embedding.plan import plan as plan
from efcn_sparse.embedding.support import Dilated as Dilated
from efcn_sparse.embedding.support import Full as Full
from efcn_sparse.embedding.support import Grown as Grown
from efcn_sparse.embedding.support import Local as Local
from efcn_sparse.embedding.support import Support as Support
from efcn_sparse.embedding.support import parse_support as parse_support
from efcn_sparse.embedding.ties import OFF_LOCAL as OFF_LOCAL
from efcn_sparse.embedding.ties import OUTSIDE as OUTSIDE
from efcn_sparse.embedding.ties import Ties as Ties
