"""torch.cuda for a process whose CUDA device is the host's memory; ``__main__.py`` says what for.

Loaded by ``start/sitecustomize.py`` as soon as torch is. What torch's own Python says to ``torch._C`` is answered here.
"""

from __future__ import annotations

import atexit
import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_GIB = 1 << 30
_CUDA_TYPE = 1  # c10::DeviceType::CUDA


@dataclasses.dataclass(frozen=True)
class Properties:
    """What an H100 says of itself; its memory is a part of the host's."""

    total_memory: int
    name: str = "H100 in host memory"
    major: int = 9
    minor: int = 0
    multi_processor_count: int = 132
    L2_cache_size: int = 1 << 20  # less than it has: benchmarks read four times as much before each call
    shared_memory_per_block: int = 49152
    shared_memory_per_block_optin: int = 232448
    shared_memory_per_multiprocessor: int = 233472
    max_threads_per_multi_processor: int = 2048
    regs_per_multiprocessor: int = 65536
    warp_size: int = 32
    is_integrated: int = 0
    is_multi_gpu_board: int = 0
    uuid: str = "host"
    gcnArchName: str = ""


class Stream:
    """A stream of a device that has done everything already."""

    _last = 0

    def __new__(cls, device: Any = None, priority: int = 0, **known: Any) -> Stream:
        stream = object.__new__(cls)
        if not known:
            Stream._last += 1
        stream.stream_id = known.get("stream_id", Stream._last)
        stream.device_index, stream.device_type = 0, _CUDA_TYPE
        stream.cuda_stream, stream.priority = stream.stream_id, priority
        stream.device = torch.device("cuda", 0)
        return stream

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.stream_id == self.stream_id

    def __hash__(self) -> int:
        return hash(self.stream_id)

    def wait_stream(self, stream: Stream) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _refuse_in_capture("cudaStreamSynchronize")


class Event:
    """A point in time."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self.enable_timing, self.at = enable_timing, None

    def record(self, stream: Stream | None = None) -> None:
        self.at = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Event) -> float:
        if not (self.enable_timing and end.enable_timing) or self.at is None or end.at is None:
            raise RuntimeError("both events must be recorded, and made with enable_timing=True")
        return (end.at - self.at) * 1e3

    def synchronize(self) -> None:
        _refuse_in_capture("cudaEventSynchronize")


class CUDAGraph:
    """What ran during the capture, to be run again on the same memory."""

    def __init__(self, keep_graph: bool = False) -> None:
        self._captured: Any = None

    def capture_begin(self, *_: Any, **__: Any) -> None:
        native.begin_capture()

    def capture_end(self) -> None:
        self._captured = native.end_capture()

    def replay(self) -> None:
        if self._captured is None:
            raise RuntimeError("Called CUDAGraph::replay without a preceding successful capture.")
        self._captured.replay()

    def reset(self) -> None:
        self._captured = None

    def pool(self) -> tuple[int, int]:
        return (0, 0)


def _refuse_in_capture(what: str) -> None:
    if native.capturing():
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({what})")


def _free() -> int:
    with open("/proc/meminfo") as file:
        found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
    return min(found["MemAvailable"] // 2, 8 * _GIB)


def _memory_stats(_: int = 0) -> dict[str, int]:
    now, peak = native.allocated(), native.peak()
    kinds = ("allocated_bytes", "reserved_bytes", "active_bytes", "requested_bytes")
    stats = {f"{kind}.all.{which}": number for kind in kinds for which, number in (("current", now), ("peak", peak))}
    return stats | {"num_alloc_retries": 0, "num_ooms": 0, "allocation.all.allocated": native.allocations()}


def _for_torch() -> dict[str, Callable[..., Any]]:
    """The functions of ``torch._C`` that ``torch.cuda`` calls."""

    def exchange(index: int) -> int:
        if index > 0:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return 0

    def maybe_exchange(index: int) -> int:  # another function: the compiler has a handler for each
        return exchange(index)

    def synchronize() -> None:
        _refuse_in_capture("cudaDeviceSynchronize")

    def set_mode(mode: int | str) -> None:
        native.set_sync_debug_mode(mode)

    return {
        "_cuda_getDeviceCount": lambda: 1,
        "_cuda_getDevice": lambda: 0,
        "_cuda_setDevice": exchange,
        "_cuda_exchangeDevice": exchange,
        "_cuda_maybeExchangeDevice": maybe_exchange,
        "_cuda_init": lambda: None,
        "_cuda_isInBadFork": lambda: False,
        "_cuda_synchronize": synchronize,
        "_cuda_getCurrentStream": lambda index: (native.stream(), 0, _CUDA_TYPE),
        "_cuda_getDefaultStream": lambda index: (0, 0, _CUDA_TYPE),
        "_cuda_setStream": lambda stream_id, device_index, device_type: native.set_stream(stream_id),
        "_cuda_set_sync_debug_mode": set_mode,
        "_cuda_get_sync_debug_mode": native.sync_debug_mode,
        "_cuda_memoryStats": _memory_stats,
        "_cuda_resetPeakMemoryStats": lambda index: native.reset_peak(),
        "_cuda_resetAccumulatedMemoryStats": lambda index: None,
        "_cuda_emptyCache": lambda: None,
        "_cuda_getArchFlags": lambda: "sm_90",
        "_cuda_isCurrentStreamCapturing": native.capturing,
        "_cuda_getCurrentRawStream": lambda index: 0,
        "_graph_pool_handle": lambda: (0, 0),
        "_host_emptyCache": lambda: None,
    }


def _answer_for_cuda() -> None:
    cuda, total = torch.cuda, _free()
    major, minor = map(int, os.environ.get("EFCN_HOST_CUDA_CAPABILITY", "9.0").split("."))
    for name, function in _for_torch().items():
        setattr(torch._C, name, function)
    cuda._initialized = True
    cuda._lazy_init = lambda: None
    cuda._exchange_device = torch._C._cuda_exchangeDevice
    cuda._maybe_exchange_device = torch._C._cuda_maybeExchangeDevice
    cuda.default_generators = (native.default_generator(),)
    cuda.get_device_properties = lambda device=None: Properties(total, major=major, minor=minor)
    cuda.mem_get_info = lambda device=None: (min(_free(), total), total)
    cuda.device_count = lambda: 1
    cuda.is_bf16_supported = lambda including_emulation=True: True
    for module in (cuda, cuda.streams):
        module.Stream, module.Event = Stream, Event
    for module in (cuda, cuda.graphs):
        module.CUDAGraph = CUDAGraph
        module.is_current_stream_capturing = native.capturing
        module.graph_pool_handle = lambda: (0, 0)
    own = torch.UntypedStorage.__new__

    def new_storage(cls: type, *given: Any, device: Any = None, **named: Any) -> Any:
        if device is not None and torch.device(device).type == "cuda":
            return torch.empty(*given, dtype=torch.uint8, device=device).untyped_storage()
        return own(cls, *given, **named)

    torch.UntypedStorage.__new__ = staticmethod(new_storage)


# -- Triton ------------------------------------------------------------------------------------------------------


def _host_of(value: Any, wide: dict[int, tuple[Tensor, Tensor]]) -> Any:
    """A kernel's argument for the interpreter. bf16 is widened: the interpreter multiplies its bits as integers."""
    if type(value).__name__ == "TensorDescriptor":
        return dataclasses.replace(value, base=_host_of(value.base, wide))
    if not isinstance(value, Tensor):
        return value
    if not value.is_cuda:
        raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
    tensor = native.host_alias(value)
    if tensor.dtype != torch.bfloat16:
        return tensor
    memory = tensor.untyped_storage()
    if memory.data_ptr() not in wide:
        narrow = torch.empty(0, dtype=tensor.dtype).set_(memory)  # all of it: strides stay as they are
        wide[memory.data_ptr()] = narrow, narrow.float()
    return wide[memory.data_ptr()][1].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _answer_for_triton(interpreter: ModuleType) -> None:
    """Interpreted kernels take device tensors without a copy, refuse others, and are seen by a capture."""
    executor = interpreter.GridExecutor
    call = executor.__call__
    widened: list[dict[int, tuple[Tensor, Tensor]]] = []

    def to_host(self: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        wide: dict[int, tuple[Tensor, Tensor]] = {}
        widened.append(wide)
        return [_host_of(value, wide) for value in given], {key: _host_of(v, wide) for key, v in named.items()}

    def from_host(*_: Any) -> None:
        for narrow, wide in widened[-1].values():
            narrow.copy_(wide)

    def launch(self: Any, *given: Any, **named: Any) -> None:
        tensors = [value for value in (*given, *named.values()) if isinstance(value, Tensor)]

        def run() -> None:
            try:
                call(self, *given, **named)
            finally:
                widened.pop()

        for tensor in tensors:
            native.save(tensor)
        native.add_step(run, tensors)
        run()

    executor._init_args_hst, executor._restore_args_dev, executor.__call__ = to_host, from_host, launch


class _AfterTriton(importlib.abc.MetaPathFinder):
    """Interprets, without the library knowing: it sees an H100, and takes its tuning and its paths."""

    NAME = "triton.runtime.interpreter"

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then(module: ModuleType) -> None:
                execute(module)
                _answer_for_triton(module)

            spec.loader.exec_module = then  # type: ignore[method-assign]
        return spec


def _interpret() -> None:
    if importlib.util.find_spec("triton") is None:
        return
    sys.meta_path.insert(0, _AfterTriton())
    os.environ["TRITON_INTERPRET"] = "1"  # what Triton's own library is defined by, while it is imported
    import triton

    triton.knobs.runtime.interpret = True
    del os.environ["TRITON_INTERPRET"]


native: Any = None


def load() -> ModuleType:
    """The compiled part, from where ``build.py`` left it."""
    spec = importlib.util.spec_from_file_location("efcn_host_cuda", os.environ["EFCN_HOST_CUDA"])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install() -> None:
    """Once in a process, after torch has been imported and before anybody asks it for a device."""
    global native
    native = load()
    _answer_for_cuda()
    _interpret()
    atexit.register(time.sleep, 0.05)  # the thread of a last backward lets go of its objects while it still can
