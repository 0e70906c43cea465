"""One rank under srun: the environment that torchrun would set, then the `train` verb.

An end that no restart can mend is left in the run directory, because srun passes only one of the ranks' exit codes on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from trainer import leaving
from trainer.cli import cli
from trainer.cli_boundary import guarded
from trainer.run_dir import write_atomic
from trainer.submit.order import launch_folder

FINAL = range(2, 6)  # exit codes of what its user has to mend: usage, data, plan, checkpoint


def environment(slurm: dict[str, str], workers_a_node: int) -> dict[str, str]:
    """RANK and so on, from Slurm's names for them."""
    return {
        "RANK": slurm["SLURM_PROCID"],
        "WORLD_SIZE": slurm["SLURM_NTASKS"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(workers_a_node),
    }


def main(run_dir: str) -> None:
    """Train, and leave with the verb's exit code."""
    leaving.prepare()
    workers_a_node = int(os.environ["SLURM_NTASKS"]) // int(os.environ["SLURM_NNODES"])
    os.environ.update(environment(dict(os.environ), workers_a_node))
    folder = launch_folder(Path(run_dir))
    arguments = ["train", "--config", str(folder / "run.toml"), "--run-dir", run_dir, "--resume", "auto"]
    code = guarded(lambda: cli.main(arguments, prog_name="tokenformer", standalone_mode=False))
    if code in FINAL:
        write_atomic(folder / f"refused-{os.environ['RANK']}", str(code))
    sys.exit(leaving.with_code(code))


if __name__ == "__main__":
    main(sys.argv[1])
