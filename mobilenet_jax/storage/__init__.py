"""What is on disk: files that are whole, locks, the files of a run's folder, checkpoints.

Other rooms import its modules by name; each is a door of its own. `checkpoints` alone knows Orbax; the others are quick
to import, so that a sweep can be watched without JAX.
"""
