"""The commands, one file each. A command parses its arguments, makes one call and prints the result.

Each module has a function main(argv). Only `__main__` imports them.
"""
