"""The environment variables of a task: threads, offline mode, and where libraries keep caches."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
# Defaults for the environment of a task; a variable that is already set stays. Measured on CPUs.
# The first two limit how long idle threads spin (libgomp; Intel and LLVM, in milliseconds): without
# them a step takes up to fifty times as long when other processes use the same cores; with no
# spinning at all it takes a third longer on idle cores. The next two make glibc reuse large blocks
# for the next tensor, which saves a tenth of the time. No bytecode: on a full disk Python leaves a
# truncated file, and then no later task can import the run's copy of the code.
TASK_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "20000",
    "KMP_BLOCKTIME": "1",
    "MALLOC_MMAP_THRESHOLD_": "33554432",  # older versions of glibc ignore larger values
    "MALLOC_TRIM_THRESHOLD_": "1000000000",
    "PYTHONDONTWRITEBYTECODE": "1",
}
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
# Caches that libraries would put into the home directory, which often has a small quota or is not
# writable on compute nodes. HF_HOME and XDG_CACHE_HOME stay as they are: they hold the hub login.
CACHE_FOLDERS = {
    "HF_HUB_CACHE": "hf_hub_cache",
    "HF_DATASETS_CACHE": "hf_datasets_cache",
    "HF_XET_CACHE": "hf_xet_cache",
    "HF_ASSETS_CACHE": "hf_assets_cache",
    "HF_MODULES_CACHE": "hf_modules_cache",
    "TORCH_HOME": "torch",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "PYTORCH_KERNEL_CACHE_PATH": "torch_kernels",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "MPLCONFIGDIR": "matplotlib",
}


def prepare_environment(step: str, root: Path) -> None:
    """Set the variables that libraries read when they are imported.

    Steps after download run offline; all caches go below the root unless the user placed them.
    """
    if not step.startswith("download."):
        os.environ.update(dict.fromkeys(OFFLINE_VARIABLES, "1"))
    for name, folder in CACHE_FOLDERS.items():
        os.environ.setdefault(name, str(root / "cache" / folder))
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
