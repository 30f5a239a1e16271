# One rule per notebook, made from what harvis_utils.chain finds: `make reproduce`, or by hand, for one run
#   .venv/bin/python -m snakemake --cores 2 --config profile=quick dataset=synthetic
# Snakemake decides what has to run. Heavy results live in a store of their own, by content, and survive a
# notebook being executed again; so the outputs declared here are light.
import os
import sys
from pathlib import Path

# names of their own: a Snakefile shares its globals with Snakemake
import harvis_utils.chain.stamps as harvis_chain
import harvis_utils.parallel as harvis_parallel
import harvis_utils.settings as harvis_settings

DEVICE = str(config.get("device", "auto"))
NOTEBOOKS = Path(config.get("notebooks", harvis_chain.NOTEBOOKS))
RUN = harvis_settings.load_settings(str(config.get("profile", "quick")), str(config.get("dataset", "synthetic")),
                    None if DEVICE == "auto" else DEVICE, str(config.get("weights", "trained")))
PART = str(config.get("part", "all"))
JOBS = harvis_chain.plan(RUN, NOTEBOOKS, None if PART == "all" else PART)

THREADS = harvis_parallel.threads()

RUN.reports.mkdir(parents=True, exist_ok=True)


workdir: str(RUN.reports)


def near(path):
    # relative, so that a project that was moved is still up to date
    return os.path.relpath(path, RUN.reports)


PACKAGE = [near(path) for path in harvis_chain.package_files()]


rule all:
    input:
        [f"{job.name}.ipynb" for job in JOBS],
        [f"stamps/{job.name}.json" for job in JOBS],


for place, job in enumerate(JOBS):

    rule:
        name:
            f"n{job.name}"
        input:
            notebook=near(job.notebook),
            package=PACKAGE,
        output:
            executed=f"{job.name}.ipynb",
            stamp=f"stamps/{job.name}.json",
        # the executed notebook while it runs; unlike an output it stays when the job fails
        log:
            notebook=f"logs/{job.name}.ipynb",
        params:
            settings=job.settings,
        threads: THREADS
        # No notebook is an input of another: what they share are stored results, made by whoever comes first.
        priority: len(JOBS) - place
        shell:
            "HARVIS_THREADS={threads} OMP_NUM_THREADS={threads} {sys.executable:q} -m harvis_utils.chain run "
            "{input.notebook:q} --profile {RUN.profile} --dataset {RUN.dataset} --weights {RUN.weights}"
            + (" --device {RUN.device:q}" if RUN.device else "")
