"""A virtual environment per server, made when first needed, kept in venvs/."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

FOLDER = Path(__file__).with_name("venvs")
STAMP = ".installed"


class InstallFailed(Exception):
    """pip could not install a server; the text is pip's last line."""


def environment_python(name: str, packages: tuple[str, ...], sitecustomize: Path | None = None) -> Path:
    """The Python of a server's environment. Raises InstallFailed.

    What the server does not bring itself (torch, transformers) is found in the environment that runs this, so that
    all servers compute with the same libraries.
    """
    if not packages:
        return Path(sys.executable)
    folder = FOLDER / name
    python = folder / "bin" / "python"
    wanted = " ".join((*packages, sysconfig.get_path("purelib")))
    wanted += sitecustomize.read_text() if sitecustomize else ""
    stamp = folder / STAMP
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    venv.create(folder, clear=True, with_pip=True)
    site_packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    # Read after all other paths, so that the server's own packages go first.
    (site_packages / "~base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InstallFailed((done.stderr.strip().splitlines() or ["no message"])[-1])
    if sitecustomize is not None:
        shutil.copyfile(sitecustomize, site_packages / "sitecustomize.py")
    stamp.write_text(wanted)
    return python
