"""The command line `onhand`: one file for each group of commands.

Commands import what they need when they run, so that `onhand --help` answers at once.
"""
