"""
The properties of attention.

`values` has those of the numbers, `masks` of who attends to whom, `keeping` of which keys are kept,
`calls` of what surrounds the numbers, `gradients` of the backward pass, `dropout` of dropout.
"""

from topk_np.testing.laws import calls, dropout, gradients, keeping, masks, values

LAWS = (
    *values.LAWS,
    *masks.LAWS,
    *keeping.LAWS,
    *calls.LAWS,
    *gradients.LAWS,
    *dropout.LAWS,
)
"""All of them, the simplest first."""
