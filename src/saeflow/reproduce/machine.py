"""What a reproduction runs on: the machine, its memory, and the revision of everything that is read. No torch."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import huggingface_hub

from saeflow.engines.pool import cores
from saeflow.files import pack_folder
from saeflow.reproduce.recipe import Recipe
from saeflow.sources.packaged_models import is_fetched
from saeflow.sources.releases import is_release, read_release


def hardware(device: str = "cpu") -> dict[str, Any]:
    """The processor, the cores that this process may use, memory, GPU ("" on a CPU) and system."""
    return {
        "cpu": _processor(),
        "cores": cores(),
        "memory_gb": round(memory() / 1e9, 1),
        "gpu": _gpu(device),
        "system": platform.platform(),
    }


def memory() -> int:
    """Memory of the machine in bytes, or the container's limit if that is lower; 0 if the system does not tell."""
    found = 0
    with suppress(ValueError, OSError, AttributeError):
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        found = min(found, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return found


def reset_peak() -> None:
    """Reset the peak memory of this process, if the system supports it (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """The peak memory of this process since `reset_peak`, in megabytes; since its start if it cannot be reset."""
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1e3 * 1.024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3 * 1.024


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _gpu(device: str) -> str:
    if not device.startswith("cuda"):
        return "" if device == "cpu" else device
    import torch

    return torch.cuda.get_device_name(device) if torch.cuda.is_available() else device


def revisions(recipe: Recipe) -> dict[str, str]:
    """The commit of each repository, or the branch if this machine knows no commit, without using the network.

    For a pack, it is the sha256 of its `atlas.json`.
    """
    found: dict[str, str] = {}
    if pack := pack_folder(recipe.release):
        digest = hashlib.sha256((pack / "atlas" / "atlas.json").read_bytes()).hexdigest()
        found[f"{recipe.release} pack"] = f"sha256 {digest[:16]}"
    elif is_release(recipe.release):
        for entry in read_release(recipe.release).sites.values():
            found.setdefault(entry.repo, _commit(entry.repo, entry.files[0], entry.revision))
    if recipe.model.count("/") == 1 and not Path(recipe.model).exists():
        found[recipe.model] = _commit(recipe.model, "config.json", "main")
    return found


def _commit(repo: str, file: str, revision: str) -> str:
    """The commit whose file is in the cache; the requested revision if none is."""
    held = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
    if not isinstance(held, str):
        return revision
    parts = Path(held).parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision


def is_held(model: str) -> bool:
    """Whether a language model is on this machine: packaged and fetched, a folder or file, or in the hub's cache."""
    if is_fetched(model) or Path(model).expanduser().exists():
        return True
    if model.count("/") != 1:
        return False
    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any(isinstance(huggingface_hub.try_to_load_from_cache(model, file), str) for file in weights)
