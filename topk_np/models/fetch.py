"""The former home of `topk_np.fetch`, which this module re-exports."""

from topk_np.fetch import WEIGHTS, FetchError, Weights, cache_folder, fetch, pip_download

__all__ = ["WEIGHTS", "FetchError", "Weights", "cache_folder", "fetch", "pip_download"]
