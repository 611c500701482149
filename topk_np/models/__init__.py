"""Published models in NumPy, run dense or with top-k: one file per family."""

from topk_np.models.adapter import Adapter, AdapterError
from topk_np.models.load import load_model
from topk_np.models.model import Model

__all__ = ["Adapter", "AdapterError", "Model", "load_model"]
