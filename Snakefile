# One rule per notebook, made from what harvis_utils.chain finds: `make reproduce`, or by hand, for one run
#   .venv/bin/python -m snakemake --cores 2 --config profile=quick dataset=synthetic
# Snakemake decides what has to run. Heavy results live in a store of their own, by content, and survive a
# notebook being executed again; so the outputs declared here are light.
import os
import sys
from pathlib import Path

# names of their own: a Snakefile shares its globals with Snakemake
import harvis_utils.chain.execution as harvis_execution
import harvis_utils.chain.stamps as harvis_stamps
import harvis_utils.parallel as harvis_parallel
import harvis_utils.settings as harvis_settings

# what is executed ends with this process
os.environ[harvis_execution.CHAIN] = harvis_execution.watched()

ASKED = {"profile": "quick", "dataset": "synthetic", "device": "auto", "weights": "trained", "part": "all"}
ASKED = {name: str(config.get(name, default)) for name, default in ASKED.items()}
DEVICE = None if ASKED["device"] == "auto" else ASKED["device"]
RUN = harvis_settings.load_settings(ASKED["profile"], ASKED["dataset"], DEVICE, ASKED["weights"])
NOTEBOOKS = harvis_stamps.find_notebooks(
    Path(config.get("notebooks", harvis_stamps.NOTEBOOKS)), None if ASKED["part"] == "all" else ASKED["part"]
)
THREADS = harvis_parallel.threads()

RUN.reports.mkdir(parents=True, exist_ok=True)


workdir: str(RUN.reports)


def near(path):
    # relative, so that a project that was moved is still up to date
    return os.path.relpath(path, RUN.reports)


PACKAGE = [near(path) for path in harvis_stamps.package_files()]
# times alone do not tell a file saved while it was executed, or replaced by one with an older time
CONTENT = harvis_stamps.content(harvis_stamps.package_files())


rule all:
    input:
        [f"{book.stem}.ipynb" for book in NOTEBOOKS],
        [f"stamps/{book.stem}.json" for book in NOTEBOOKS],


for place, book in enumerate(NOTEBOOKS):

    rule:
        name:
            f"n{book.stem}"
        input:
            notebook=near(book),
            package=PACKAGE,
        output:
            executed=f"{book.stem}.ipynb",
            stamp=f"stamps/{book.stem}.json",
        # the executed notebook while it runs; unlike an output it stays when the job fails
        log:
            notebook=f"logs/{book.stem}.ipynb",
        params:
            settings=harvis_stamps.settings_digest(RUN),
            package=CONTENT,
            notebook=harvis_stamps.content([book]),
        threads: THREADS
        # No notebook is an input of another: what they share are stored results, made by whoever comes first.
        priority: len(NOTEBOOKS) - place
        shell:
            "HARVIS_THREADS={threads} OMP_NUM_THREADS={threads} {sys.executable:q} -m harvis_utils.chain run "
            "{input.notebook:q} --profile {RUN.profile} --dataset {RUN.dataset} --weights {RUN.weights}"
            + (" --device {RUN.device:q}" if RUN.device else "")
