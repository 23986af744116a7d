"""torch.export and AOTInductor of models with sparse layers: the same outputs, at other batch sizes too."""

import pytest
import torch
from torch import nn

import efcn_sparse as es


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    layers = nn.Linear(30, 48), nn.GELU(), nn.Linear(48, 20)  # ragged
    model = es.sparsify(nn.Sequential(*layers), {"[02]": dict(density=0.5, block_shape=(8, 16))}).eval()
    batch = torch.export.Dim("batch", min=1, max=1024)
    return model, torch.export.export(model, (torch.randn(4, 30),), dynamic_shapes=({0: batch},))


def test_export_and_its_file(exported, tmp_path):
    model, program = exported
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for rows in (4, 7):
        x = torch.randn(rows, 30)
        torch.testing.assert_close(loaded(x), model(x))
    assert set(program.state_dict) >= {"0.values", "0.crow_indices", "2.bias"}


@pytest.mark.slow
def test_aot_inductor(exported, tmp_path):
    """Its package calls our operators, so that ``efcn_sparse`` has to be imported where it runs."""
    model, program = exported
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    runner = torch._inductor.aoti_load_package(package)
    for rows in (4, 7):
        x = torch.randn(rows, 30)
        torch.testing.assert_close(runner(x), model(x))
