"""The wrong calls of docs/errors.md, by the part they play: what is written, and what to do."""

from __future__ import annotations

from typing import NamedTuple


class Wrong(NamedTuple):
    """A call that is refused; its message is found out by making it."""

    call: str
    advice: str


SECTIONS: dict[str, list[Wrong]] = {
    "Arrays": [
        Wrong(
            "topk_attention([[1.0]], x, x, k=2)",
            "Lists are not converted, as their dtype and device are not known. Make an array.",
        ),
        Wrong(
            "topk_attention(x.astype(int), x, x, k=2)",
            "Convert it: `x.astype(np.float32)`. An array in the byte order of another machine is "
            "refused as well.",
        ),
        Wrong(
            "topk_attention(x, x.astype(np.float32), x, k=2)",
            "Nothing is widened silently: bring all to one dtype.",
        ),
        Wrong(
            "topk_attention(x, array_api_strict.asarray(x), x, k=2)",
            "Nothing is moved between libraries or devices: convert one of the two yourself.",
        ),
        Wrong(
            "topk_attention(np.ma.array(x), x, x, k=2)",
            "Masked arrays and matrices mean something else by their operators. Take `.data`, and "
            "what is masked as `mask`.",
        ),
        Wrong(
            "topk_attention(x[0], x, x, k=2)",
            "A single query is an array (1, D): `x[:1]`, or `x[None, 0]`.",
        ),
        Wrong(
            "topk_attention(x, x[:, :3], x, k=2)",
            "Queries and keys are multiplied, so they have the same width.",
        ),
        Wrong(
            "topk_attention(x, x, y, k=2)",
            "Every key has one value. Did keys and values come from different sequences?",
        ),
        Wrong(
            "topk_attention(np.ones((2, 6, 4)), np.ones((3, 6, 4)), x, k=2)",
            "Batch and head axes broadcast as everywhere in NumPy: equal, 1, or missing.",
        ),
    ],
    "Which keys are kept": [
        Wrong("topk_attention(x, x, x, k=0)", "At least one. To leave a model dense, use None."),
        Wrong(
            "topk_attention(x, x, x, k=0.5)",
            "`k` is a number of keys. A share of them is `k=int(0.5 * N)`; a share of the softmax "
            "weights is `p`.",
        ),
        Wrong("topk_attention(x, x, x)", "Top-k attention without k is `dense_attention`."),
        Wrong(
            "topk_attention(x, x, x, k=2, p=0.9)",
            "Give one rule; with `p` the most that may be kept is `max_k`.",
        ),
        Wrong(
            "topk_attention(x, x, x, p=0.9)",
            "How many keys hold a share of the weights is known only afterwards; `max_k` bounds "
            "the memory.",
        ),
        Wrong(
            "topk_attention(x, x, x, k=2, always_keep=4)",
            "For four first tokens and no local ones write `(4, 0)`.",
        ),
        Wrong("top_k(x, 2, axis=2)", "Axes count from 0, or from the end with -1."),
    ],
    "Masks and positions": [
        Wrong(
            "topk_attention(x, x, x, k=2, mask=np.zeros((6, 6)))",
            "A mask says who may attend: `mask == 0` for one of zeros and minus infinities. "
            "Numbers that are added to the scores are `bias`.",
        ),
        Wrong(
            "topk_attention(x, x, x, k=2, mask=np.ones((9, 6), dtype=bool))",
            "Rows are queries, columns keys. An axis for the heads is made by `mask[:, None]`.",
        ),
        Wrong(
            "topk_attention(x, y, y, k=2, is_causal=True)",
            "Are the queries the first positions (`query_offset=0`) or, as in decoding, the last "
            "ones (`query_offset=N - Q`)? Only you know.",
        ),
        Wrong(
            "topk_attention(x, x, x, k=2, window=3)",
            "Three before and none behind is `(3, 0)`; None on a side is unbounded.",
        ),
        Wrong("topk_attention(x, x, x, k=2, key_lengths=9)", "There are no more keys than that."),
        Wrong(
            "topk_attention(x, x, x, k=2, mask=lambda i, j: i - j)",
            "A mask function returns booleans: `lambda i, j: i >= j`.",
        ),
    ],
    "Scores and weights": [
        Wrong(
            "topk_attention(x, x, x, k=2, scale=np.inf)",
            "Scores would all be infinite, or NaN. Was something divided by zero?",
        ),
        Wrong("topk_attention(x, x, x, k=2, softcap=0)", "No cap is None."),
        Wrong(
            "topk_attention(x, x, x, k=2, bias=np.ones((9, 6)))",
            "Rows are queries, columns keys; `(6,)` is a bias for each key, `(6, 1)` one for each "
            "query.",
        ),
        Wrong(
            "topk_attention(x, x, x, k=2, bias=ALiBi)",
            "Make one of it: `ALiBi(slopes)`, with a slope for each head.",
        ),
        Wrong(
            "topk_attention(x, x, x, k=2, bias=T5Bias(np.ones(3)))",
            "The table has shape (buckets, heads), and each direction needs a bucket for short "
            "distances and one for long ones. Is yours transposed?",
        ),
        Wrong(
            "topk_attention(x, x, x, k=2, dropout=(1.0, 0))",
            "At a rate of 1 nothing would be left. In evaluation leave dropout out.",
        ),
        Wrong(
            "topk_attention(x, x, x, k=2, dropout=0.1)",
            "The seed is required, so that the backward pass drops the same. Use another one each "
            "step.",
        ),
    ],
    "How it is computed": [
        Wrong(
            "topk_attention(x, x, x, k=2, chunk_size=0)",
            "Leave it out, and as many queries as fit `memory_budget` are taken.",
        ),
        Wrong(
            "topk_attention(x, x, x, k=2, memory_budget=1000)",
            "The message says the least that works: scratch for one query. Bytes, not megabytes.",
        ),
        Wrong(
            "topk_attention(x, x, x, k=2, workers=ProcessPoolExecutor(1))",
            "Threads write into one output. For processes or machines there is "
            "[Dask](howto/machines.md).",
        ),
        Wrong(
            "topk_attention(x, x, x, k=2, maks=None)",
            "A misspelled option: the message lists those there are.",
        ),
        Wrong(
            "plan((6, 4), (9, 4), 9, k=2)",
            "A plan needs shapes only, but those of all three arrays.",
        ),
        Wrong(
            "with_kernels('fast', topk_attention, x, x, x, k=2)",
            "The environment variable `TOPK_NP_KERNELS` chooses an engine. Unset it for the usual "
            "one.",
        ),
    ],
    "Backward passes": [
        Wrong(
            "topk_attention_bwd(residuals, dout[:3])",
            "The gradient of the output has the shape of the output. Did a loss sum over an axis?",
        ),
        Wrong(
            "topk_attention_bwd(residuals, dout.astype(np.float32))",
            "Convert it; often a loss was computed in another precision than the model.",
        ),
        Wrong(
            "dense_attention_bwd(residuals, dout)",
            "Each backward pass takes what its own forward pass returned.",
        ),
        Wrong(
            "topk_attention_bwd(with_lse, dout)",
            "Two outputs, two gradients: `(dout, dlse)`, the second perhaps of zeros.",
        ),
    ],
    "Feed-forward layers": [
        Wrong(
            "topk_ffn(x, y, y, k=2, activation='swish')",
            "Swish is `silu`. To add an activation of your own see "
            "[the guide](howto/activation.md).",
        ),
        Wrong(
            "topk_ffn(x, y, y, k=2, gate=x)",
            "A unit has a row of keys and a row of the gate.",
        ),
        Wrong("topk_ffn(x, y, y[:5], k=2)", "Every unit has a row of keys and a row of values."),
        Wrong(
            "topk_ffn(x, y, y, k=2, select='largest')",
            "By what goes into the activation, or by the size of what comes out.",
        ),
    ],
    "Layers": [
        Wrong("split_heads(x, 3)", "The features are divided among the heads, without remainder."),
        Wrong(
            "multihead_attention(x, weights, heads=3)",
            "The rows of `weights.query` are heads times width.",
        ),
        Wrong("Rope(width=3)", "Features are turned in pairs."),
        Wrong(
            "layers.embedding(np.array([0, 9]), y)",
            "Token ids count from 0 to one less than the rows of the table. Does the tokenizer "
            "belong to the model?",
        ),
        Wrong(
            "layers.cross_entropy(y, np.full(9, 4))",
            "Classes count from 0. Positions to leave out have `ignore_index`, by default -100.",
        ),
        Wrong(
            "layers.pool(y, mask=np.ones(9))",
            "True for tokens that count, False for padding: `np.arange(N) < lengths[:, None]`.",
        ),
        Wrong(
            "layers.layer_norm(x, np.ones(3), np.zeros(4))",
            "One weight for each feature.",
        ),
        Wrong(
            "baselines.draw_projection(0, 4)",
            "More features estimate better; 64 to 256 are usual.",
        ),
    ],
    "Decoding": [
        Wrong("KVCache().key", "Append the first positions, then read."),
        Wrong(
            "cache.append(x[:, :3], x)",
            "A cache is for one layer of one model; the first `append` decided its shapes.",
        ),
        Wrong("cache.truncate(20)", "A cache can be rewound, not prolonged."),
    ],
    "Models": [
        Wrong(
            "load_model('my-model')",
            "The folder needs a `config.json` and safetensors beside it; a GGUF file is one file.",
        ),
        Wrong(
            "load_model('damaged.gguf')",
            "The file is cut off or is something else. Fetch it again and compare its hash.",
        ),
        Wrong(
            "per_layer('attention_k', [64, 64], 4)",
            "A list has one entry a layer, None where it is dense; a mapping is shorter.",
        ),
        Wrong(
            "per_layer('attention_k', {0: None}, 4)",
            'Say what the other layers do: `{0: None, "rest": 64}`.',
        ),
        Wrong(
            "Model(config=None, params={}).tokenizer.encode('text')",
            "The checkpoint came without `tokenizer.json`, and without T5's `spiece.model`. Put "
            "one beside the weights, or encode elsewhere.",
        ),
    ],
    "Training": [
        Wrong(
            "training.flatten({'a.b': x})",
            "Parameters are nested dicts; the dot joins their names in a file.",
        ),
        Wrong(
            "training.tree_map(np.add, {'a': x}, {'b': x})",
            "Gradients are a tree of the form of the parameters.",
        ),
        Wrong(
            "training.load_params('damaged.safetensors')",
            "A checkpoint is written whole or not at all, so this file was changed later. Go back "
            "to the one before.",
        ),
        Wrong(
            "training.warmup_cosine(1e-3, steps=100, warmup=200)",
            "The warm-up is a part of the steps.",
        ),
        Wrong("tasks.load('imdb')", "The message lists the names there are."),
        Wrong(
            "tasks.pixels.fashion_mnist(folder='.')",
            "A `MissingDataError` is about a file that is missing or damaged, never about your "
            "code. Where a command brings the file, the message has it.",
        ),
    ],
    "Diagnostics and verification": [
        Wrong(
            "diagnostics.keys_for_mass(x, x, mass=90)",
            "A share, not a percentage.",
        ),
        Wrong(
            "testing.check_attention(3)",
            "What is checked is a function `(query, key, value, **options)`.",
        ),
        Wrong(
            "testing.check_vjp(lambda x: (x**2, x), lambda x, dout: (x * dout,), x)",
            "The derivative of a square is twice its root: the backward pass is wrong.",
        ),
        Wrong(
            "testing.assert_close(x, x + 1, length=4, size=1.0)",
            "The numbers differ by more than rounding allows, and this is the largest difference.",
        ),
    ],
    "Dask": [
        Wrong(
            "dask.topk_attention(x, x, x, k=2)",
            "Arrays in blocks: `dask.array.from_array(x, chunks=...)`. Others go to "
            "`topk_np.topk_attention`.",
        ),
    ],
}
