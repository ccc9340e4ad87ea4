"""Packaging metadata. Nothing heavy is imported here; PyTorch is a dependency, not a build requirement.

A wheel holds the kernels, compiled for every instruction set, where there is a compiler; it is then for this platform.
``YOLOX_WHEEL_KERNELS=0`` leaves them out: such a wheel compiles what it needs on first use.
"""

import os
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # an isolated build does not have it

from yolox.kernels.build import SHIPPED, compile_library, compiler, library_name  # noqa: E402
from yolox.kernels.variants import machine_variants  # noqa: E402

WITH_KERNELS = compiler() is not None and os.environ.get("YOLOX_WHEEL_KERNELS") != "0"
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "yolox" / "__init__.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

EXTRAS = {
    "inference": [
        "onnx>=1.17",
        "onnxruntime>=1.20",
        "onnxscript>=0.5",
        "openvino>=2025.2",
        "nncf>=3.0",
        "torchao>=0.15",
        "neural-compressor[pt]>=3.8; python_version >= '3.11'",
    ],
    "ncnn": ["pnnx>=20260112"],
    "ray": ["ray[client,data]>=2.40"],
    "spark": ["pyspark>=4.0"],
    "tables": ["pyarrow>=17"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.30"],
    "wandb": ["wandb>=0.19"],
    "mlflow": ["mlflow-skinny>=3", "sqlalchemy>=2", "alembic>=1.13", "sqlparse>=0.5"],
    "tune": ["optuna>=4"],
    "track": ["trackers>=2.6", "supervision>=0.31"],
    "dev": [
        "sphinx>=8.1",
        "myst-parser>=4",
        "furo>=2025.7",
        "pytest>=8",
        "hypothesis>=6.100",
        "mypy>=1.15",
        "ruff>=0.12",
        "types-PyYAML",
        "pycocotools>=2.0.11",
        "supervision>=0.31",
        "ncnn>=1.0.20260114",
    ],
}
NOT_IN_ALL = ("dev", "track", "wandb", "mlflow", "tune")


class BuildKernels(build_py):
    """Compiles the kernels into the package that is being built; an editable one compiles on first use."""

    def run(self):
        """Copy the package and add the libraries."""
        super().run()
        folder = Path(self.build_lib) / SHIPPED.relative_to(HERE)
        for variant in machine_variants() if WITH_KERNELS and not self.editable_mode else ():
            if not (folder / library_name(variant)).exists():
                compile_library(variant, folder / library_name(variant))


class PlatformDistribution(Distribution):
    """A distribution for one platform if it holds libraries."""

    def has_ext_modules(self):
        """Tell setuptools whether there is code for one platform."""
        return WITH_KERNELS


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3."""

    def get_tag(self):
        """Return the tags of language, binary interface and platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    name="yolox-cpu",
    version=VERSION,
    description="Train and run the YOLOX object detector on ordinary CPUs, fast",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["yolox", "yolox.*"]),
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildKernels, "bdist_wheel": PlatformWheel},
    package_data={"yolox": ["py.typed", "kernels/csrc/*.[ch]*", "kernels/csrc/*/*.[ch]*"]},
    install_requires=[
        "torch>=2.10",  # earlier ones read damaged checkpoints past their end
        "pytorch-lightning>=2.6.6,<2.7",
        "numpy>=1.26",
        "opencv-python-headless>=4.10",
        "faster-coco-eval>=1.8",
        "tensorboard>=2.17",
        "cloudpickle>=3",
        "matplotlib>=3.8",
        "rich>=13",
        "PyYAML>=6",
        "safetensors>=0.5",
        "pillow>=11",
        "filelock>=3.12",
    ],
    extras_require={
        **EXTRAS,
        "all": [need for name, needs in EXTRAS.items() if name not in NOT_IN_ALL for need in needs],
    },
    entry_points={
        "console_scripts": [
            "yolox=yolox.tools.command:main",
            *(
                f"yolox-{tool.replace('_', '-')}=yolox.tools.{tool}:main"
                for tool in ("train", "eval", "demo", "inference_demo", "export", "doctor")
            ),
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
