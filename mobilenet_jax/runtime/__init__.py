"""The machine that a process runs on: devices and hosts, signals, environment variables, the command line.

This room stands on nothing but `errors`. Other rooms import its modules by name; each is a door of its own.
"""
