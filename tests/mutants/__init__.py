"""Mutation testing: does the suite notice a small change to the core of the package?"""
