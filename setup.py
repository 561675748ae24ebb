"""Builds `rlhf_jax`; its metadata is in `pyproject.toml`.

A wheel also ships `configs/` as `rlhf_jax.configs`, and the golden numbers that studies record as
`rlhf_jax/golden/`. An editable install reads both from the clone.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Adds to a wheel the packages whose folders are not inside of `rlhf_jax/`."""

    def finalize_options(self) -> None:
        super().finalize_options()
        if not self.editable_mode:
            configs = find_packages(include=["configs", "configs.*"])
            self.packages = [
                *self.packages,
                *(f"rlhf_jax.{name}" for name in configs),
                "rlhf_jax.golden",
            ]
            self.package_dir = self.package_dir | {
                "rlhf_jax.configs": "configs",
                "rlhf_jax.golden": "tests/golden",
            }
            self.package_data = self.package_data | {"rlhf_jax.golden": ["steps.json"]}


setup(
    packages=find_packages(include=["rlhf_jax", "rlhf_jax.*"]),
    package_data={
        "rlhf_jax": [
            "py.typed",
            "*.pyi",
            "report/comparison/*.jinja",
            "report/templates/*.jinja",
            "tasks/corpora/*.txt",
        ]
    },
    cmdclass={"build_py": BuildPy},
)
