"""What a training ran on, as far as it can change the numbers. Cheap; imports no torch."""

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Return Python, system, processors and threads of this process as JSON.

    What torch knows is asked only where it is imported already. The names of the GPUs are read
    from the driver: asking torch would initialise CUDA, after which no process can be forked.
    """
    about: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu(),
        "cpus": _usable_cpus(),
        "gpus": _gpus(),
    }
    if (torch := sys.modules.get("torch")) is not None:
        about["threads"] = torch.get_num_threads()
        about["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        about["cuda"] = torch.version.cuda
    return about


def _cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    found = (re.search(r"^Model:\s*(.+)$", _text(str(file)), re.MULTILINE) for file in files)
    return [name[1].strip() for name in found if name]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
