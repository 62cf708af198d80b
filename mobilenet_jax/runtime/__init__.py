"""The machine that a process runs on: devices and hosts, signals, environment variables, the command line.

This package depends on `errors` only. Other packages import its modules by name.
"""
