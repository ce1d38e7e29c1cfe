"""llama.cpp's OpenAI-compatible server, as its own Python package starts it; run by the interpreter that has it.

Weights are not repacked (use_extra_bufts): with Q4_1 weights and AMX instructions llama-cpp-python 0.3.36 ends with a
segmentation fault in its first decode.
"""

import sys

import llama_cpp
from llama_cpp.server.__main__ import main

_defaults = llama_cpp.llama_cpp.llama_model_default_params


def _not_repacked():
    params = _defaults()
    params.use_extra_bufts = False
    return params


llama_cpp.llama_cpp.llama_model_default_params = _not_repacked
sys.exit(main())
