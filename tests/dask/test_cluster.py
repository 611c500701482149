"""Several processes, one of which is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import topk_np

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

from topk_np import dask as over_dask  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the cluster's own, about sockets and ports


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "60s"}),
        distributed.LocalCluster(
            n_workers=3, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def test_processes_find_what_one_finds_and_a_lost_one_is_survived(client: Any) -> None:
    import dask.array as da

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((2, 96, 8)) for _ in range(4)]
    out, residuals = topk_np.topk_attention_fwd(*arrays[:3], k=5, is_causal=True)
    expected = out, *topk_np.topk_attention_bwd(residuals, arrays[3])[:3]

    query, key, value, dout = (da.from_array(array, chunks=(1, 32, 8)) for array in arrays)
    lazy, kept = over_dask.topk_attention_fwd(query, key, value, k=5, is_causal=True)
    kept = kept.persist()
    distributed.wait([kept.scores, kept.indices])
    pids = client.run(os.getpid)
    assert len(set(pids.values())) == 3
    holders = {worker for held in client.who_has().values() for worker in held}
    os.kill(pids[sorted(holders)[0]], signal.SIGKILL)

    results = dask.compute(lazy, *over_dask.topk_attention_bwd(kept, dout))
    for found, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
