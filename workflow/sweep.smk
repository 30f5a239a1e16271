# One rule per kind of job of a sweep, see workflow/sweep.py, which writes the parts and calls Snakemake in the sweep's
# own folder. The outputs declared here are light stamps, each a list of the stored results that a job answers for, and
# one table. What a job took is in benchmarks/.
import os
import sys

import pandas as pd
from snakemake.utils import Paramspace

TABLE = pd.read_csv("parts.csv", dtype=str)
PARTS = Paramspace(TABLE[["dataset", "architecture", "seeds"]], filename_params="*", filename_sep=".")
PART, PRESETS = PARTS.wildcard_pattern, config["presets"].split()
DIGEST = lookup(
    query="dataset == '{dataset}' & architecture == '{architecture}' & seeds == '{seeds}'", within=TABLE, cols="digest"
)
COMMAND = (
    "HARVIS_THREADS={threads} OMP_NUM_THREADS={threads} PYTHONPATH={workflow.basedir:q}/.. {sys.executable:q} "
    "-m workflow.sweep"
)
# Kind of job -> its parts, what it waits for, MB of memory, and minutes; a retry gets more of both. Training goes on
# where a job was stopped, so a retry after the time limit is not lost.
JOBS = {
    "networks": (PART, [], 4000, 240),
    "signals": (f"{PART}.{{preset}}", [f"stamps/networks/{PART}.txt"], 4000, 120),
    # all presets of a seed group, which are searched together
    "scores": (PART, expand("stamps/signals/{part}.{preset}.txt", preset=PRESETS, part=PART), 6000, 120),
}


# for executors whose jobs do not inherit the environment
envvars:
    *[name for name in os.environ if name.startswith(("HARVIS_", "MALLOC_")) or name == "OMP_WAIT_POLICY"],


wildcard_constraints:
    dataset=r"[\w-]+",
    architecture=r"[\w-]+",
    seeds=r"\d+-\d+",
    preset=r"\w+",


localrules: all, collect


# all stamps: a missing one in the middle is no reason for Snakemake to make it, unless it is asked for
rule all:
    input:
        expand("stamps/{kind}/{part}.txt", kind=["networks", "scores"], part=PARTS.instance_patterns),
        expand("stamps/signals/{part}.{preset}.txt", preset=PRESETS, part=PARTS.instance_patterns),
        "sweep.csv",


for kind, (part, waits_for, mem_mb, minutes) in JOBS.items():

    rule:
        name:
            kind
        input:
            waits_for,
        output:
            f"stamps/{kind}/{part}.txt",
        params:
            digest=DIGEST,
            names=lambda wildcards: list(wildcards),
        log:
            f"logs/{kind}/{part}.txt",
        benchmark:
            f"benchmarks/{kind}/{part}.tsv"
        resources:
            mem_mb=lambda wildcards, attempt, mem_mb=mem_mb: mem_mb * attempt,
            runtime=lambda wildcards, attempt, minutes=minutes: minutes * attempt,
        # the store notes in the journal which results it was asked for
        shell:
            f"HARVIS_JOURNAL={{output:q}} {COMMAND} run {{config[sweep]:q}} {{rule}} {{params.names}} > {{log:q}} 2>&1"


rule collect:
    input:
        expand("stamps/scores/{part}.txt", part=PARTS.instance_patterns),
    output:
        "sweep.csv",
    params:
        digest=TABLE["digest"].tolist(),
    log:
        "logs/collect.txt",
    shell:
        f"{COMMAND} collect {{config[sweep]:q}} > {{log:q}} 2>&1"
