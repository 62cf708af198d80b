"""Storage on disk: files written whole or not at all, locks, the files of a run's folder, checkpoints.

Other packages import the modules of this package by name. Only `checkpoints` uses Orbax. The other modules are quick to
import, so that a job counts its start before it imports JAX.
"""
