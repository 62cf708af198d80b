"""The commands, one file each: arguments in, one call, and what is printed. Nothing imports them but `__main__`.

Each module has main(argv).
"""
