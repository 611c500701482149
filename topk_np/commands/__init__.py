"""
The options of the commands: a function for each command, in a module for each kind of program.

A function adds its command to a parser. What is heavy is imported when a command runs, so that
``--help`` is quick.
"""
