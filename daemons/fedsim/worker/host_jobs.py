"""Jobs about a host: its processor, GPU and data sets.

A daemon requests them at each start. Torch, which takes seconds to import, is only imported if there may be a GPU.
"""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Literal

from fedsim.data import inspect_dataset
from fedsim.errors import BadInput
from fedsim.worker.jobs import DataSetInspected, HostInspected, HostJob, Inspect, InspectHost, Reply

NVIDIA_DRIVER = "libcuda.so.1"


@dataclass(frozen=True)
class Torch:
    """An installed torch that is not imported: its version, and whether it may find a GPU."""

    version: str
    may_find_gpu: bool

    @classmethod
    def installed(cls) -> Torch:
        """The torch of this Python; `BadInput` if there is none."""
        spec = find_spec("torch")
        if spec is None or spec.origin is None:
            raise BadInput("torch is not installed")
        build = _run_alone(Path(spec.origin).with_name("version.py"))
        # A build for AMD uses another driver, so it must check itself.
        return cls(build.__version__, build.hip is not None or (build.cuda is not None and _can_load(NVIDIA_DRIVER)))


def do(job: HostJob) -> Reply:
    """Process a job; raises `BadInput` if its input cannot be used."""
    match job:
        case Inspect():
            guard = None if job.guard is None else (job.guard.path, job.guard.min_difference)
            return DataSetInspected(dataset=inspect_dataset(job.dataset, job.folder, guard))
        case InspectHost(device=device):
            torch = Torch.installed()
            gpu = _gpu() if torch.may_find_gpu else None
            processor = processor_kind() if gpu is None else f"{processor_kind()}; {gpu}"
            return HostInspected(device=_device(device, gpu), processor=processor[:200], torch=torch.version)


def _gpu() -> str | None:
    """The name of the GPU that torch would use."""
    import torch  # noqa: PLC0415 - slow to import

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _device(wanted: Literal["auto", "cpu", "cuda"], gpu: str | None) -> Literal["cpu", "cuda"]:
    if wanted == "cuda" and gpu is None:
        raise BadInput(
            "client.yml asks for a GPU (`device: cuda`), but torch finds none: install its driver, or use auto"
        )
    return "cpu" if wanted == "cpu" or gpu is None else "cuda"


def processor_kind() -> str:
    """The kind of processor, on which bitwise reproducibility depends."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _run_alone(path: Path) -> ModuleType:
    """Load a module of a package without importing the package."""
    spec = spec_from_file_location(f"_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path} cannot be read")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
