"""The same under other spellings."""

import transformers as hub

mod = hub
load = mod.AutoModelForCausalLM  # finds: loader-attribute
read = factory.ｆrom_pretrained  # finds: loader-attribute
by_name = getattr(hub, "from_" "pretrained")  # finds: loader-by-name
by_sum = getattr(hub, "from_" + "pretrained")  # finds: loader-by-name
by_escape = getattr(hub, "\x66rom_pretrained")  # finds: loader-by-name
by_join = getattr(hub, "_".join(["from", "pretrained"]))  # finds: loader-by-name
