"""What a support leaves out of the gradient, and a support that moves to where the gradient is."""

from efcn_sparse.growth.adopt import adopt_patterns as adopt_patterns
from efcn_sparse.growth.factors import Factors as Factors
from efcn_sparse.growth.factors import record_factors as record_factors
from efcn_sparse.growth.leak import LayerLeak as LayerLeak
from efcn_sparse.growth.leak import Leak as Leak
from efcn_sparse.growth.leak import record_leak as record_leak
from efcn_sparse.growth.norms import outside_gradient_norm as outside_gradient_norm
from efcn_sparse.growth.regrow import Regrown as Regrown
from efcn_sparse.growth.regrow import regrow as regrow
from efcn_sparse.growth.schedule import Growth as Growth
