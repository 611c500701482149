"""The commands, a file each: `add` describes the options, `run` does the work.

A file imports what is heavy when its command runs, so that ``--help`` is quick.
"""
