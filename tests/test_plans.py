"""Plans are what they were: the last bits of a result follow from how the work is cut."""

from __future__ import annotations

from typing import Any

import pytest

from topk_np.chunking import Chunks, Sizes, plan_chunks, plan_dense_chunk

MIB = 2**20
LONG: dict[str, Any] = {
    "heads": 4,
    "queries": 4096,
    "keys": 4096,
    "width": 128,
    "slots": 64,
    "itemsize": 4,
}
SHORT = {**LONG, "heads": 512, "queries": 16, "keys": 32, "width": 32, "slots": 8}
OPTIONS = {"score_matrices": 3, "slot_matrices": 15, "held_matrices": 1, "masked": True}

PLANS: dict[str, tuple[dict[str, Any], int, Chunks]] = {
    "long": (LONG, 64 * MIB, Chunks(512, 2064, 2048, 1, 7923712)),
    "one-block-of-keys": (
        {**LONG, "queries": 1024, "keys": 1024},
        64 * MIB,
        Chunks(512, 1024, 1024, 1, 5128192),
    ),
    "no-equal-shares": (
        {**LONG, "heads": 3, "queries": 1001},
        64 * MIB,
        Chunks(376, 2804, 752, 1, 7279736),
    ),
    "long-keys": (
        {**LONG, "heads": 1, "queries": 2048, "keys": 2**16},
        64 * MIB,
        Chunks(256, 4112, 512, 1, 6714368),
    ),
    "many-keys-one-slot": (
        {**LONG, "keys": 10**6, "slots": 1},
        64 * MIB,
        Chunks(512, 2064, 2048, 1, 5601280),
    ),
    "keys-for-few-slots": (
        {**LONG, "slots": 8},
        8 * MIB,
        Chunks(128, 1024, 918, 1, 994304),
    ),
    "few-keys-many-slots": (
        {**LONG, "keys": 3000, "slots": 2000},
        64 * MIB,
        Chunks(64, 3000, 121, 1, 8299264),
    ),
    "many-slots-little-memory": (
        {**LONG, "keys": 2**16, "slots": 400},
        8 * MIB,
        Chunks(16, 1600, 39, 1, 1033472),
    ),
    "wide": (
        {**LONG, "queries": 300, "width": 4096, "slots": 512},
        64 * MIB,
        Chunks(75, 4096, 153, 1, 7954432),
    ),
    "one-query": (
        {**LONG, "heads": 32, "queries": 1, "keys": 10**6},
        64 * MIB,
        Chunks(1, 10**6, 1, 1, 5254640),
    ),
    "little-memory": (LONG, 2 * MIB, Chunks(8, 1024, 13, 1, 242944)),
    "options": ({**LONG, **OPTIONS, "itemsize": 8}, 16 * MIB, Chunks(32, 1024, 121, 1, 1980160)),
    "half-precision": (
        {**LONG, "keys": 30000, "narrow": True, "copied": True},
        16 * MIB,
        Chunks(128, 1024, 614, 1, 2096128),
    ),
    "whole-rows": (
        {**LONG, "keys": 30000, "score_matrices": 5, "whole_rows": True},
        64 * MIB,
        Chunks(8, 30000, 2048, 1, 5242880),
    ),
    "short": (SHORT, 64 * MIB, Chunks(16, 32, 16, 32, 770048)),
    "short-and-few": ({**SHORT, "heads": 6}, 64 * MIB, Chunks(16, 32, 16, 6, 144384)),
    "short-and-worth-threads": (
        {**SHORT, "heads": 100, "queries": 64, "keys": 64},
        64 * MIB,
        Chunks(64, 64, 64, 8, 704512),
    ),
    "short-and-little-memory": (SHORT, MIB, Chunks(16, 32, 16, 5, 120320)),
    "stacks": (
        {**SHORT, "stackable": True},
        64 * MIB,
        Chunks(16, 32, 16, 64, 1540096, short=True),
    ),
    "stacks-of-one": (
        {**LONG, "queries": 128, "keys": 512, "stackable": True},
        64 * MIB,
        Chunks(128, 512, 128, 1, 1310720, short=True),
    ),
    "too-long-for-stacks": (
        {**LONG, "queries": 127, "keys": 513, "stackable": True},
        64 * MIB,
        Chunks(127, 513, 127, 4, 5826539),
    ),
    "device": ({**LONG, "on_device": True}, 64 * MIB, Chunks(2048, 4096, 4096, 1, 53542912)),
    "device-long": (
        {**LONG, "heads": 1, "queries": 2**17, "keys": 2**17, "on_device": True},
        64 * MIB,
        Chunks(1024, 8208, 16384, 1, 63438848),
    ),
    "device-short": ({**SHORT, "on_device": True}, 64 * MIB, Chunks(16, 32, 16, 512, 10551296)),
    "device-less-memory": (
        {**LONG, "slots": 8, "on_device": True},
        8 * MIB,
        Chunks(512, 2048, 4096, 1, 5816320),
    ),
    "device-little-memory": (
        {**LONG, "on_device": True},
        2 * MIB,
        Chunks(128, 1024, 368, 1, 1937408),
    ),
    "nothing": (
        {**LONG, "heads": 0, "queries": 0, "keys": 0, "slots": 0},
        64 * MIB,
        Chunks(1, 1, 1, 1, 516),
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_changes_on_purpose_or_not_at_all(name: str) -> None:
    shapes, budget, chunks = PLANS[name]
    assert plan_chunks(Sizes(**shapes), memory_budget=budget) == chunks


def test_a_given_chunk_size_is_that_of_both_passes() -> None:
    assert plan_chunks(Sizes(**LONG), chunk_size=100) == Chunks(100, 4096, 100, 1, 2614400)
    few = {**LONG, "slots": 8}  # then many queries leave little room for keys
    assert plan_chunks(Sizes(**few), 2048, 16 * MIB) == Chunks(512, 528, 512, 1, 1982464)


def test_the_least_budget_is_what_one_query_needs() -> None:
    sizes = Sizes(**LONG)
    least = sizes.tasks * sizes.forward_bytes(1, 1024)
    assert plan_chunks(sizes, memory_budget=least).queries == 1
    with pytest.raises(ValueError, match=f"at least {least} bytes"):
        plan_chunks(sizes, memory_budget=least - 1)


def test_the_budget_is_64_mib_unless_told_otherwise() -> None:
    for shapes in (LONG, {**LONG, "keys": 30000, "width": 2048}, {**LONG, "on_device": True}):
        sizes = Sizes(**shapes)
        assert plan_chunks(sizes) == plan_chunks(sizes, memory_budget=64 * MIB)


def test_a_dense_plan_changes_on_purpose_or_not_at_all() -> None:
    one_key = {"queries": 10**6, "keys": 1}
    for more, rows in (({}, 51), (OPTIONS, 18), ({"keys": 30000}, 6), (one_key, 209715)):
        assert plan_dense_chunk(Sizes(**{**LONG, **more}), memory_budget=64 * MIB) == rows


def test_a_mask_holds_two_bytes_a_score() -> None:
    masked = Sizes(**{**LONG, "slots": 1, "masked": True})
    assert masked.forward_bytes(10, 10**4) == 10 * 10**4 * (4 + 2)
    # In a stack a number a score too, and one more and 12 bytes a slot.
    stack, other = (Sizes(**{**SHORT, "masked": masked}) for masked in (True, False))
    more = stack.short_forward_bytes(3) - other.short_forward_bytes(3)
    assert more == 3 * 16 * (32 * (4 + 2) + 8 * (4 + 12))


def test_a_stack_holds_weights_their_gradients_and_with_a_mask_an_index_a_slot() -> None:
    stack, other = (Sizes(**{**SHORT, "masked": masked}) for masked in (True, False))
    assert other.short_backward_bytes(3) == 3 * 16 * 2 * 32 * 4
    assert stack.short_backward_bytes(3) - other.short_backward_bytes(3) == 3 * 16 * 8 * 4
