"""Read models from GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np

from topk_np._namespace import Array
from topk_np.models.gguf_fields import (
    config_from_fields,
    depth_from_fields,
    sizes_from_fields,
    stops_from_fields,
    template_from_fields,
    tokenizer_from_fields,
)
from topk_np.models.llama_blocks import Llama
from topk_np.models.llama_names import llama_names
from topk_np.models.model import Model
from topk_np.models.names import gather

MOST_VALUES = 2**22  # of a header: some times those of the largest vocabularies


def read_gguf(
    path: str | PathLike[str], /, *, convert: Callable[[Array], Array] = lambda tensor: tensor
) -> Llama:
    """
    Read a Llama model and its tokenizer from a GGUF file, dequantising all weights to float32.

    Parameters
    ----------
    path : path
        The file. Needs the package ``gguf`` (extra ``demo``).
    convert : callable, optional
        Called with each dequantised tensor.

    Returns
    -------
    Llama
        The model, its tokenizer, and what generation needs.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is damaged, or holds a model or tokenizer of another kind.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        values = 0

        def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **named: Any) -> Any:
            # Strings sliced from an np.memmap take three times as long as from an ndarray.
            self.data: Any = np.asarray(self.data)
            self.values += 1
            # Without these a wrong length is an endless loop, and a list of all the memory.
            if offset + np.dtype(dtype).itemsize * int(count) > self.data.size:
                raise ValueError("it is cut off, or a length in it is wrong")
            if self.values > MOST_VALUES:
                raise ValueError(f"its header has more than {MOST_VALUES} values")
            return super()._get(offset, dtype, count, *more, **named)

    try:
        reader = Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        with np.errstate(all="ignore"):  # weights may be any numbers
            tensors = {
                tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).astype(
                    np.float32, copy=False
                )
                for tensor in reader.tensors
            }
    except NotImplementedError as error:  # by gguf, of a kind of quantisation that it cannot undo
        raise ValueError(f"{path} holds weights that gguf cannot dequantise: {error}") from error
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is not a readable GGUF file: {error}") from error
    config = config_from_fields(fields)
    names = llama_names(tensors, "gguf", depth=depth_from_fields(fields, len(tensors)))
    embedding = tensors.get(names[0].tensor)
    width = 1 if embedding is None else embedding.shape[-1]  # that there is none, gather says
    sizes = sizes_from_fields(fields, config, width)
    return Model(
        config,
        gather(tensors, names, sizes=sizes, convert=convert),
        tokenizer=tokenizer_from_fields(fields),
        stop=stops_from_fields(fields),
        chat_template=template_from_fields(fields),
    )
