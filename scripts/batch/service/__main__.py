"""Serves the API on loopback until SIGTERM: python -m marctl.batch.service CONFIG FOLDER STATE STORE PORT"""

from __future__ import annotations

import sys
from pathlib import Path

from marctl.batch.service.app import make_app
from marctl.batch.service.jobs import Jobs
from marctl.batch.service.settings import read_settings
from marctl.core.http import HOST


def main(config: str, folder: str, state: str, store: str, port: str) -> None:
    """`folder`: of the jobs; `state`: of the stack, whose prediction log jobs may write to."""
    import uvicorn

    settings = read_settings(Path(config))
    jobs = Jobs(Path(folder), Path(state), Path(store), settings)
    app = make_app(jobs, settings, Path(store))
    uvicorn.run(app, host=HOST, port=int(port), log_level="warning", access_log=False, server_header=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
