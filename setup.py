"""The packages' names: a folder here is a package of another name where it is installed. All else is in setup.cfg."""

from setuptools import find_packages, setup

FOLDERS = {"marctl": "scripts", "marctl_handlers": "handlers"}

setup(
    package_dir=FOLDERS,
    packages=[
        f"{name}.{found}".rstrip(".") for name, folder in FOLDERS.items() for found in ("", *find_packages(folder))
    ],
)
