"""Sweeps: grouping many runs into jobs, launching and watching the jobs, their results and a page of them, and choosing a model.

Importing this package is quick, because a job counts its start before it imports anything heavy. Other packages use the
modules `sweep`, `status`, `results`, `page`, `choice` and `choice_figure`.
"""
