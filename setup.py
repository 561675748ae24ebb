"""Installs `rlhf_jax`; the commands of `experiments/` and the files of `configs/` are run from a clone's root."""

from setuptools import find_packages, setup

JAX = "jax>=0.10,<0.12"
IN_NOTEBOOKS = ["ipykernel>=6.29", "ipython>=8.0", "pandas>=2.2", "pytest>=8.0"]

setup(
    name="rlhf_jax",
    version="0.1.0",
    description="Reinforcement learning from human feedback in JAX, with asynchrony as an exact experimental variable.",
    packages=find_packages(include=["rlhf_jax", "rlhf_jax.*"]),
    python_requires=">=3.11",
    install_requires=[
        JAX,
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.11.30",
        "chex>=0.1.90",
        "absl-py>=2.1",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "scipy>=1.13",
        "matplotlib>=3.9",
        "tensorboardX>=2.6",
        "tokenizers>=0.21",
        "sentencepiece>=0.2",
        "safetensors>=0.5",
        "jinja2>=3.1",
        "pyarrow>=18",
        "tensorflow-datasets>=4.9.9",
        "rich>=13.0",
    ],
    extras_require={
        "test": [
            *IN_NOTEBOOKS,
            "pytest-timeout>=2.3",
            "ruff==0.17.6",
            "pyright==1.1.414",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "ml_dtypes>=0.5",
            "setuptools>=77",
            "torch==2.13.0",
            "transformers>=5.0",
        ],
        "notebooks": ["notebook>=7.0", *IN_NOTEBOOKS],
        "bench": ["torch==2.13.0", "transformers>=5.0", "trl>=1.0", "datasets>=3.0", "accelerate>=1.0"],
        "slurm": ["submitit>=1.5"],
        "gpu": [JAX.replace("jax", "jax[cuda13]")],
        "tpu": [JAX.replace("jax", "jax[tpu]")],
    },
)
