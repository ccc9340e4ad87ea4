"""Packaging metadata. Nothing heavy is imported here; PyTorch is a dependency, not a build requirement."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
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
        "safetensors>=0.5",
        "neural-compressor[pt]>=3.8; python_version >= '3.11'",
    ],
    "ray": ["ray>=2.40"],
    "spark": ["pyspark>=4.0"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.30"],
    "track": ["trackers>=2.6", "supervision>=0.31"],
    "dev": [
        "sphinx>=8.1",
        "myst-parser>=4",
        "furo>=2025.7",
        "pytest>=8",
        "mypy>=1.15",
        "ruff>=0.12",
        "types-PyYAML",
        "pycocotools>=2.0.11",
        "supervision>=0.31",
    ],
}

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
    package_data={"yolox": ["py.typed", "kernels/csrc/*.[ch]*", "kernels/csrc/*/*.[ch]*"]},
    install_requires=[
        "torch>=2.10",  # earlier ones read damaged checkpoints past their end
        "pytorch-lightning>=2.6.6,<2.7",
        "numpy>=1.26",
        "opencv-python-headless>=4.10",
        "faster-coco-eval>=1.6",
        "tensorboard>=2.17",
        "cloudpickle>=3",
        "matplotlib>=3.8",
        "rich>=13",
        "PyYAML>=6",
        "pillow>=10",
        "filelock>=3.12",
    ],
    extras_require={
        **EXTRAS,
        "all": [need for name, needs in EXTRAS.items() if name not in ("dev", "track") for need in needs],
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
