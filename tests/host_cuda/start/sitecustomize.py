"""In every Python process that a run with the host's CUDA device starts: the device is there once torch is imported."""

import importlib.abc
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_DEVICE = Path(__file__).parents[1] / "device.py"


class _AfterTorch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for torch's loader, once."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None:
            self.own, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.own
        self.own.exec_module(module)
        spec = importlib.util.spec_from_file_location("efcn_host_cuda_device", _DEVICE)
        device = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = device
        spec.loader.exec_module(device)
        device.install()


if os.environ.get("EFCN_HOST_CUDA"):
    sys.meta_path.insert(0, _AfterTorch())
