from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The image takes minutes to build, root, and programs that few machines have: only on demand."""
    if "image" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("image"):
            item.add_marker(pytest.mark.skip(reason="builds the image; run pytest -m image as root"))
