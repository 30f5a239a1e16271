"""What serves publishing and other machines: pages, README's tables, sweeps, bundles, a study; see README.md here.

Imports ``harvis_utils``, which imports nothing of this. It is not installed: ``python -m workflow.x`` runs in the
repository.
"""
