"""Every test here that takes `redis_server` runs against both servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.redis_servers import SERVERS, TestRedis


@pytest.fixture(scope="module", params=SERVERS)
def redis_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestRedis]:
    """A Redis of the test file's own, with whatever its earlier tests left there."""
    started = TestRedis(tmp_path_factory.mktemp("redis"), request.param)
    yield started
    started.stop()
