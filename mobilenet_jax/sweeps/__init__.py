"""Many runs: which share a job, who launches the jobs and watches them, their rows, and a choice among them.

Importing this package is quick, as a job counts its start before it imports anything heavy. Its doors are the modules
`sweep`, `status`, `results`, and `choice` with its figure.
"""
