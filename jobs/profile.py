"""Profiles: what a site is like. `slurm/profiles/<name>.yaml`, or a file of one's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from pipeline.errors import UserError
from pipeline.settings import Section, build, nearest, read_yaml

PROFILES = Path(__file__).parent.parent / "slurm" / "profiles"


class Profile(Section):
    """Facts of a site.

    `root`: where `data/`, `models/` and `runs/` go. `cpus`, `gpus`: what a plan may use here.
    """

    root: str | None = None
    cpus: int | None = Field(None, ge=1)
    gpus: int | Literal["auto"] = "auto"

    def granted_cpus(self) -> int:
        """Cores that this process may use."""
        return self.cpus or len(os.sched_getaffinity(0))

    def granted_gpus(self) -> int:
        """GPUs that this process may use, as far as can be told without loading torch."""
        if self.gpus != "auto":
            return self.gpus
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return len(
                [device for device in visible.split(",") if device.strip() not in ("", "-1")]
            )
        return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def find_profile(name: str | None) -> Profile:
    """The profile of that name, or in that YAML file; without a name, this machine's.

    Raises:
        UserError: There is none, or it holds an unknown setting.
    """
    known = sorted(path.stem for path in PROFILES.glob("*.yaml"))
    name = name or "local"
    if name == "local" and not (PROFILES / "local.yaml").exists():
        return Profile()  # an installed package has no profiles beside it
    path = (
        Path(name).expanduser() if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    )
    if not path.is_file():
        raise UserError(f"profile {name!r} is not known", nearest(name, known))
    return build(Profile, read_yaml(path), f"profile {name}")


def find_root(profile: Profile, root: str | None) -> Path:
    """Where everything goes: what the user says, else the profile, else `./runs`."""
    chosen = root or profile.root or "runs"
    return Path(os.path.expandvars(chosen)).expanduser().resolve()
