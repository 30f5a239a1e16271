# One rule per kind of job of a sweep. `make sweep`, or `python -m workflow.sweep start SWEEP`, writes the plan
# (jobs, their order, a digest of what decides each one's results) and calls Snakemake in the sweep's own folder.
# Heavy results live in the store, by content; the outputs declared here are light stamps, and one table.
import json
import os
import shlex
import sys
from pathlib import Path

PLAN = json.loads(Path("plan.json").read_text(encoding="utf-8"))
JOBS = {job["name"]: job for job in PLAN["jobs"]}
HERE = [name for name in os.environ if name.startswith(("HARVIS_", "MALLOC_")) or name == "OMP_WAIT_POLICY"]
REPOSITORY = str(Path(workflow.basedir).parent)
COMMAND = f"PYTHONPATH={shlex.quote(REPOSITORY)} {shlex.quote(sys.executable)} -m workflow.sweep "
SWEEP = "HARVIS_THREADS={threads} OMP_NUM_THREADS={threads} " + COMMAND.replace("{", "{{").replace("}", "}}")
FILE = " " + shlex.quote(str(config["sweep"])).replace("{", "{{").replace("}", "}}")


def stamps(names):
    return [f"stamps/{name}.json" for name in names]


def earlier(kind):
    return lambda wildcards: stamps(JOBS[f"{kind}.{wildcards.part}"]["after"])


def digest(kind):
    return lambda wildcards: JOBS[f"{kind}.{wildcards.part}"]["digest"]


# for executors whose jobs do not inherit the environment
envvars:
    *HERE,


wildcard_constraints:
    part=r"[\w.-]+",


localrules:
    all,
    collect,


# all stamps: a missing one in the middle is no reason for Snakemake to make it, unless it is asked for
rule all:
    input:
        stamps(JOBS),
        "sweep.csv",


# Trains the networks of a seed group, one thread each, and computes their statistics. Training goes on where a job
# was stopped, so a retry after the time limit is not lost.
rule networks:
    output:
        "stamps/networks.{part}.json",
    params:
        digest=digest("networks"),
    log:
        "logs/networks.{part}.txt",
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 240 * attempt,
    shell:
        SWEEP + "run" + FILE + " networks.{wildcards.part} > {log:q} 2>&1"


rule signals:
    input:
        earlier("signals"),
    output:
        "stamps/signals.{part}.json",
    params:
        digest=digest("signals"),
    log:
        "logs/signals.{part}.txt",
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 4000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    shell:
        SWEEP + "run" + FILE + " signals.{wildcards.part} > {log:q} 2>&1"


# All presets of a seed group, which are searched together, and the controls.
rule scores:
    input:
        earlier("scores"),
    output:
        "stamps/scores.{part}.json",
    params:
        digest=digest("scores"),
    log:
        "logs/scores.{part}.txt",
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 6000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    shell:
        SWEEP + "run" + FILE + " scores.{wildcards.part} > {log:q} 2>&1"


rule collect:
    input:
        stamps(name for name, job in JOBS.items() if job["kind"] == "scores"),
    output:
        "sweep.csv",
    params:
        digest=[job["digest"] for job in JOBS.values()],
    log:
        "logs/collect.txt",
    threads: 1
    shell:
        SWEEP + "collect" + FILE + " > {log:q} 2>&1"
