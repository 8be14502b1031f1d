"""Run slides on a SLURM cluster: every job is a Dask worker that runs one slide at a time.

    python slurm.py slides/ -o results -m model.onnx --provider cuda

Everything after the script's name goes to `histoseg-run`. Adapt `start_cluster` to your cluster. For workers
without a GPU leave `job_extra_directives` out, and add `--threads 8` to the command: as many as `job_cpu`.
Names are those of dask-jobqueue 0.9 (https://jobqueue.dask.org).
"""

from __future__ import annotations

import subprocess
import sys

from dask_jobqueue import SLURMCluster

JOBS = 8


def start_cluster() -> SLURMCluster:
    """Start a scheduler here, and let it keep `JOBS` jobs alive: one that ends is replaced."""
    cluster = SLURMCluster(
        queue="gpu",
        walltime="04:00:00",
        # Dask's threads are slides at a time; the cores that SLURM grants are another matter
        cores=1,
        job_cpu=8,
        memory="16GB",
        job_extra_directives=["--gres=gpu:1"],
        # on storage that all machines see
        job_script_prologue=["source /shared/histoseg/bin/activate"],
        # workers leave before SLURM kills them, and not all at once
        worker_extra_args=["--lifetime", "230m", "--lifetime-stagger", "5m"],
    )
    cluster.adapt(minimum_jobs=JOBS, maximum_jobs=JOBS)
    return cluster


def main() -> int:
    """Run `histoseg-run` on the cluster and return its exit code."""
    with start_cluster() as cluster:
        command = ["histoseg-run", *sys.argv[1:], "--dask", cluster.scheduler_address]
        return subprocess.run(command, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
