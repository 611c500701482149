"""
The properties of attention.

`values` has those of the numbers, `masks` of who attends to whom, `keeping` of which keys are kept,
`calls` of what surrounds the numbers, `resources` of memory and threads, `gradients` of the
backward pass, `dropout` of dropout.
"""

from topk_np.testing.laws import calls, dropout, gradients, keeping, masks, resources, values

LAWS = (
    *values.LAWS,
    *masks.LAWS,
    *keeping.LAWS,
    *calls.LAWS,
    *resources.LAWS,
    *gradients.LAWS,
    *dropout.LAWS,
)
"""All of them, the simplest first."""
