"""A Mistral whose decoder layers have widths of their own, as `per_layer_config` in config.json says.

    AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

Everything but the widths of single layers is transformers' own. Written by LLM Surgeon; Apache-2.0.
"""

import copy

from transformers import MistralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer


class PerLayerMistralForCausalLM(MistralForCausalLM):
    """The stock class, but for layers that are built from their own config."""

    def __init__(self, config):
        super().__init__(config)
        layers = self.model.layers
        for index in range(len(layers)):
            own = _config_of_layer(config, index)
            if own is not None:
                layers[index] = MistralDecoderLayer(own, index)
        self.post_init()


def _config_of_layer(config, index):
    """Returns the config of one layer, or None where it is as wide as the model's own says."""
    per_layer = config.per_layer_config
    if not isinstance(per_layer, dict):
        return per_layer[index]  # transformers that know the key resolve it
    changed = {int(key): value for key, value in per_layer.items()}.get(index)
    if not changed:
        return None
    own = copy.copy(config)
    for key, value in changed.items():
        setattr(own, key, value)
    return own
