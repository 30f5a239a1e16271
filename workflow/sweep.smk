# One rule per kind of job of a sweep. `make sweep`, or `python -m workflow.sweep start SWEEP`, writes the parts (a data
# set, an architecture and some seeds, with a digest of what decides their results) and calls Snakemake in the sweep's
# own folder. Heavy results live in the store, by content; the outputs declared here are light stamps, each a list of
# the results that a job answers for, and one table. What a job took is in benchmarks/.
import os
import shlex
import sys
from pathlib import Path

import pandas as pd
from snakemake.utils import Paramspace

TABLE = pd.read_csv("parts.csv", dtype=str)
PARTS = Paramspace(TABLE[["dataset", "architecture", "seeds"]], filename_params="*", filename_sep=".")
PART, PRESETS = PARTS.wildcard_pattern, config["presets"].split()
DIGEST = lookup(
    query="dataset == '{dataset}' & architecture == '{architecture}' & seeds == '{seeds}'", within=TABLE, cols="digest"
)
HERE = [name for name in os.environ if name.startswith(("HARVIS_", "MALLOC_")) or name == "OMP_WAIT_POLICY"]
COMMAND = f"PYTHONPATH={shlex.quote(str(Path(workflow.basedir).parent))} {shlex.quote(sys.executable)} -m workflow.sweep "
FILE = " " + shlex.quote(str(config["sweep"])) + " "


def command(word, of=""):
    # the store notes in the journal which results it was asked for
    start = "HARVIS_THREADS={threads} OMP_NUM_THREADS={threads} " + ("HARVIS_JOURNAL={output:q} " if of else "")
    return start + (COMMAND + word + FILE).replace("{", "{{").replace("}", "}}") + of + " > {log:q} 2>&1"


# for executors whose jobs do not inherit the environment
envvars:
    *HERE,


wildcard_constraints:
    dataset=r"[\w-]+",
    architecture=r"[\w-]+",
    seeds=r"\d+-\d+",
    preset=r"\w+",


localrules:
    all,
    collect,


# all stamps: a missing one in the middle is no reason for Snakemake to make it, unless it is asked for
rule all:
    input:
        expand("stamps/{kind}/{part}.txt", kind=["networks", "scores"], part=PARTS.instance_patterns),
        expand("stamps/signals/{part}.{preset}.txt", preset=PRESETS, part=PARTS.instance_patterns),
        "sweep.csv",


# Trains the networks of a seed group, one thread each, and computes their statistics. Training goes on where a job
# was stopped, so a retry after the time limit is not lost.
rule networks:
    output:
        f"stamps/networks/{PART}.txt",
    params:
        digest=DIGEST,
    log:
        f"logs/networks/{PART}.txt",
    benchmark:
        f"benchmarks/networks/{PART}.tsv"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    shell:
        command("run", "networks {wildcards.dataset} {wildcards.architecture} {wildcards.seeds}")


rule signals:
    input:
        f"stamps/networks/{PART}.txt",
    output:
        f"stamps/signals/{PART}.{{preset}}.txt",
    params:
        digest=DIGEST,
    log:
        f"logs/signals/{PART}.{{preset}}.txt",
    benchmark:
        f"benchmarks/signals/{PART}.{{preset}}.tsv"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    shell:
        command("run", "signals {wildcards.dataset} {wildcards.architecture} {wildcards.seeds} {wildcards.preset}")


# All presets of a seed group, which are searched together, and the controls.
rule scores:
    input:
        expand("stamps/signals/{part}.{preset}.txt", preset=PRESETS, part=PART),
    output:
        f"stamps/scores/{PART}.txt",
    params:
        digest=DIGEST,
        presets=PRESETS,
    log:
        f"logs/scores/{PART}.txt",
    benchmark:
        f"benchmarks/scores/{PART}.tsv"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    shell:
        command("run", "scores {wildcards.dataset} {wildcards.architecture} {wildcards.seeds}")


rule collect:
    input:
        expand("stamps/scores/{part}.txt", part=PARTS.instance_patterns),
    output:
        "sweep.csv",
    params:
        digest=TABLE["digest"].tolist(),
    log:
        "logs/collect.txt",
    threads: 1
    shell:
        command("collect")
