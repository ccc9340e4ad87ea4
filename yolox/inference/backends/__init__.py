"""One file for each library that can run a model."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from yolox.inference.backends.base import Backend

__all__ = ["BACKENDS", "get_backend"]

BACKENDS = {
    "eager": "yolox.inference.backends.eager",
    "jit": "yolox.inference.backends.jit",
    "inductor": "yolox.inference.backends.inductor",
    "ipex": "yolox.inference.backends.ipex",
    "native": "yolox.inference.backends.native",
    "onnxruntime": "yolox.inference.backends.onnxruntime",
    "openvino": "yolox.inference.backends.openvino",
}


def get_backend(name: str) -> Backend:
    """Return the back end of that name, importing its module (and nothing else) now."""
    return cast(Backend, import_module(BACKENDS[name]).BACKEND)
