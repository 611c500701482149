"""Published models in NumPy, run dense or with top-k: one file per family."""

from topk_np.models.load import load_model
from topk_np.models.model import Model

__all__ = ["Model", "load_model"]
