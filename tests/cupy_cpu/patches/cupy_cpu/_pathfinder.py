"""Stands in for cuda.pathfinder, which would look for NVIDIA's libraries."""

from cupy_cpu import include_dir


class DynamicLibNotFoundError(RuntimeError):
    pass


def load_nvidia_dynamic_lib(name):
    raise DynamicLibNotFoundError(f"lib{name} is not implemented in the CPU build of CuPy")


def find_nvidia_header_directory(name):
    return include_dir


def find_nvidia_binary_utility(name):
    return None
