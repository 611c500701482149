"""Layers around attention, each a function with its backward: one file a layer."""
