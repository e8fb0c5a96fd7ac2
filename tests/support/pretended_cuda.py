"""A CUDA device for machines without one: real numbers, CUDA's rules, a count of the host's waits.

For a torch that was built for CPUs. A tensor "on cuda:0" wraps a tensor of the CPU, whose kernels
compute; torch's own autograd, autocast and composite operators take it for one on a GPU. What CUDA
refuses is refused (operands on two devices, a generator of another device), what makes the host
wait for a GPU is noted with the line of code, and launches are counted::

    from support import pretended_cuda  # before torch is imported
    import fairseq
    gpu = pretended_cuda.start()  # after fairseq, whose TorchScript does not stand it
    model.cuda()
    ...
    gpu.waits, gpu.launches

It holds for the rest of the process. There are no real kernels, so no races and no types but the
CPU's.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SOURCE = Path(__file__).with_suffix(".cpp")


def _compiled(torch_folder: Path) -> Path:
    """The library that :data:`SOURCE` makes, compiled once for each torch."""
    version = importlib.metadata.version("torch")
    key = hashlib.sha256(SOURCE.read_bytes() + version.encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir(), f"pretended_cuda-{os.getuid()}-{key}.so")
    if not library.exists():
        aside = library.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [
                *("g++", "-std=c++20", "-O0", "-shared", "-fPIC", SOURCE, "-o", aside),
                f"-I{torch_folder}/include",
                f"-I{torch_folder}/include/torch/csrc/api/include",
                *(f"-L{torch_folder}/lib", "-lc10", "-ltorch_cpu"),
            ],
            check=True,
        )
        aside.rename(library)
    return library


# torch asks for the hooks once, while it is imported.
assert "torch" not in sys.modules, "import pretended_cuda before torch"
_FOLDER = Path(importlib.util.find_spec("torch").origin).parent
ctypes.CDLL(str(_FOLDER / "lib/libtorch_cpu.so"), ctypes.RTLD_GLOBAL)
ctypes.CDLL(str(_compiled(_FOLDER)))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import (  # noqa: E402
    TorchDispatchMode,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

aten = torch.ops.aten

# Operators that may have tensors of both devices, and those whose second argument is indices.
COPIES = {"copy_", "_to_copy", "_copy_from", "copy", "set_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# A number on the CPU (no dimensions) may stand in for one, beside where operators are pointwise.
TAKE_NUMBERS = {"where", "masked_fill", "masked_fill_", "fill_", "lift_fresh"}
# How large a result is depends on the numbers.
SIZED_BY_NUMBERS = {"nonzero", "masked_select", "_unique2", "unique_dim", "repeat_interleave"}
YIELD_NUMBERS = {"equal", "is_nonzero", "allclose", "_local_scalar_dense"}


class WrongDeviceError(RuntimeError):
    """What CUDA would refuse."""


class OnCuda(Tensor):
    """A tensor that says it is on the GPU.

    What torch does in C++, below where a mode sees it, is done here.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCuda:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("cuda:0"),
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _GPU.run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> OnCuda:
        if id(self) not in memo:
            memo[id(self)] = copied = OnCuda(self.inner.clone()).requires_grad_(self.requires_grad)
            copied._is_param = getattr(self, "_is_param", False)
        return memo[id(self)]

    def __repr__(self) -> str:
        return f"OnCuda({self.inner!r})"

    def __getitem__(self, index: Any) -> Tensor:
        parts = index if isinstance(index, tuple) else (index,)
        parts = [_GPU.copy_of(part) if isinstance(part, list) else part for part in parts]
        return super().__getitem__(tuple(parts))

    def tolist(self) -> Any:
        _GPU.wait("tolist")
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a CUDA tensor to numpy: use Tensor.cpu() first")

    __array__ = numpy

    def new(self, *data: Any) -> OnCuda:
        if all(isinstance(size, int) for size in data) or isinstance(data[0], torch.Size):
            return self.new_empty(*data)
        return self.new_tensor(*data)

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, **_: Any) -> OnCuda:
        return _GPU.copy_of(data, dtype=dtype or self.dtype)


class Cuda(TorchDispatchMode):
    """The device.

    Attributes:
        waits: how often the host waited: for what, in which function.
        launches: how often each operator was launched.
        large: sizes of the results of at least ``large_from`` numbers, by operator and line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.launches: Counter[str] = Counter()
        self.large: Counter[tuple[str, tuple[int, ...], torch.dtype, str]] = Counter()
        self.large_from: float = float("inf")
        self.debug_mode = 0  # torch's: above 0, it is said when the host waits
        self.generator = torch.Generator("cuda")
        self._lock = threading.RLock()

    def reset(self) -> None:
        """Count from zero."""
        for counter in (self.waits, self.launches, self.large):
            counter.clear()

    def wait(self, why: str) -> None:
        """Note that the host waits."""
        self.waits[why, _place()] += 1
        if self.debug_mode:
            warnings.warn("called a synchronizing CUDA operation")

    def set_debug_mode(self, mode: int) -> None:
        """As torch asks a real one to warn."""
        self.debug_mode = mode

    def copy_of(self, data: Any, **options: Any) -> OnCuda:
        """A tensor of the host's numbers."""
        self.wait("copy of numbers to the GPU")
        return OnCuda(torch.tensor(data, **options))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, if it is for the GPU as CUDA would."""
        leaves = tree_leaves((args, kwargs))
        ours = any(isinstance(x, OnCuda) for x in leaves)
        theirs = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, OnCuda)]
        device = kwargs.get("device")
        target = torch.device(device).type if device is not None else "cuda" if ours else "cpu"
        name = func.overloadpacket.__name__
        for generator in leaves:
            if isinstance(generator, torch.Generator) and generator.device.type != target:
                self._refuse(func, f"its generator is on the {generator.device.type}")
        if not ours and target == "cpu":
            return func(*args, **kwargs)
        if ours and theirs:
            self._check_operands(func, name, args, theirs)
        self._note_waits(name, args, kwargs, target)
        found = self._compute(func, *tree_map(_inner, (args, kwargs)))
        if not any(_is_view(returned) for returned in func._schema.returns):
            self.launches[name] += 1
        if name == "copy_" and not isinstance(args[0], OnCuda):
            return args[0]
        if target == "cpu":
            return found
        found = tree_map(lambda x: OnCuda(x) if isinstance(x, Tensor) else x, found)
        for tensor in tree_leaves(found):
            if isinstance(tensor, OnCuda) and tensor.numel() >= self.large_from:
                self.large[name, tuple(tensor.shape), tensor.dtype, _place(line=True)] += 1
        if ours and name != "_to_copy":
            return return_and_correct_aliasing(func, args, kwargs, found)
        return found

    def _refuse(self, func: Any, why: str) -> None:
        raise WrongDeviceError(f"{func} at {_place(line=True)}: {why}")

    def _check_operands(self, func: Any, name: str, args: Any, theirs: list[Tensor]) -> None:
        if name in COPIES:
            return
        if name in INDEXING:  # indices may be on the CPU
            if not isinstance(args[0], OnCuda):
                self._refuse(func, "indices on the GPU for a tensor on the CPU")
            return
        pointwise = torch.Tag.pointwise in func.tags or name in TAKE_NUMBERS
        wrong = [tuple(x.shape) for x in theirs if x.dim() > 0 or not pointwise]
        if wrong:
            self._refuse(func, f"beside tensors on the GPU, of shape {wrong} on the CPU")

    def _note_waits(self, name: str, args: Any, kwargs: dict[str, Any], target: str) -> None:
        if name in SIZED_BY_NUMBERS | YIELD_NUMBERS:
            self.wait(name)
        elif name in INDEXING:
            for index in args[1]:
                if isinstance(index, Tensor) and not isinstance(index, OnCuda):
                    self.wait("index on the CPU")
                elif isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                    self.wait("index by a mask")
        elif name == "_to_copy" and isinstance(args[0], OnCuda) != (target == "cuda"):
            if target == "cpu" or not kwargs.get("non_blocking"):
                self.wait(f"copy to the {target}")
        elif name == "copy_":
            crosses = isinstance(args[0], OnCuda) != isinstance(args[1], OnCuda)
            if crosses and not any(args[2:]):  # non_blocking
                self.wait("copy between devices")

    def _compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
        # A fused conversion, which CPUs have not.
        if func in (aten._log_softmax.default, aten._softmax.default) and args[2]:
            return func(args[0].float(), args[1], False)
        if func in (aten._log_softmax_backward_data.default, aten._softmax_backward_data.default):
            return func(*args[:3], args[0].dtype).to(args[3])
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        generators = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Generator)]
        args, kwargs = tree_map(
            lambda x: None if isinstance(x, torch.Generator) else x, (args, kwargs)
        )
        with self._lock:  # the CPU's kernels draw what the GPU's generator would
            generator = generators[0] if generators else self.generator
            before = torch.get_rng_state()
            torch.set_rng_state(generator.get_state())
            found = func(*args, **kwargs)
            generator.set_state(torch.get_rng_state())
            torch.set_rng_state(before)
        return found


class Event:
    """A point in time."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: Event) -> float:
        return 1000 * (later.time - self.time)


_GPU: Cuda | None = None


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, OnCuda) else x


def _is_view(returned: Any) -> bool:
    return returned.alias_info is not None and not returned.alias_info.is_write


def _place(line: bool = False) -> str:
    """The function of fairseq that runs, and that of ours that called it; or their lines."""
    found: dict[str, str] = {}
    frame = sys._getframe()
    while frame is not None:
        parts = Path(frame.f_code.co_filename).parts
        for package in ("alum_fairseq", "fairseq"):
            if package in parts[-5:-1] and package not in found:
                inside = parts[len(parts) - parts[::-1].index(package) :]
                number = f":{frame.f_lineno}" if line else ""
                found[package] = f"{package}/{'/'.join(inside)}{number} {frame.f_code.co_name}"
        frame = frame.f_back
    return " <- ".join(found.values()) or "the backward pass"


def start() -> Cuda:
    """Let torch find a GPU, in this process, from now on."""
    global _GPU
    assert torch.version.cuda is None, "this torch finds real GPUs"
    _GPU = gpu = Cuda()
    cuda = torch.cuda
    cuda._initialized, cuda.default_generators = True, (gpu.generator,)
    importlib.import_module("torch._dynamo")  # which looks for more once these are there

    torch._C._cuda_set_sync_debug_mode, cuda.Event = gpu.set_debug_mode, Event
    torch._C._cuda_getDeviceCount, torch._C._cuda_getDevice = lambda: 1, lambda: 0
    cuda.device = lambda *_: nullcontext()
    properties = SimpleNamespace(
        name="pretended", total_memory=80 << 30, major=8, minor=0, multi_processor_count=108
    )
    for name, value in {
        "is_bf16_supported": True,
        "get_device_capability": (8, 0),
        "get_device_name": "pretended",
        "get_device_properties": properties,
        "synchronize": None,
        "empty_cache": None,
        "set_device": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "is_current_stream_capturing": False,
    }.items():
        setattr(cuda, name, lambda *_, value=value, **__: value)
    Tensor.pin_memory = lambda self, *_: self
    Tensor.record_stream = lambda self, *_: None
    # Parameters become others in place, so that tied ones stay tied.
    torch.__future__.set_swap_module_params_on_conversion(True)

    def copying(make: Any) -> Any:
        def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            on_gpu = device is not None and torch.device(device).type == "cuda"
            if not on_gpu or isinstance(data, Tensor):
                return make(data, *args, device=device, **kwargs)
            gpu.wait("copy of numbers to the GPU")
            return OnCuda(make(data, *args, **kwargs))

        return made

    torch.tensor, torch.as_tensor = copying(torch.tensor), copying(torch.as_tensor)
    gpu.__enter__()
    return gpu
