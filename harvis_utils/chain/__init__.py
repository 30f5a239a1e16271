"""Notebooks turned into executed notebooks, two at once, and only those that are not up to date.

Snakemake decides what runs; this module tells it on what each notebook depends (the package, the settings),
executes one notebook per call with papermill, and says in a few lines what happened::

    python -m harvis_utils.chain reproduce --profile quick --dataset synthetic
    python -m harvis_utils.chain run notebooks/02_model.ipynb --profile quick --dataset synthetic

A run lives in ``<reports>/<profile>/<dataset>/``: executed notebooks, ``logs/`` (the same notebooks while they run
and when they fail), ``stamps/`` (what each notebook made), figures, tables, ``results.json``. A notebook is executed
again when its file, the package, a setting or a library version changed; when the archive of raw data was replaced; or
when something it made is missing. None waits for another one, and where one fails the others go on.
"""
