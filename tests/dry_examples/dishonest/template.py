"""Switches a chat template on or off, or writes chat markup, by hand."""

from functools import partial

from trl import setup_chat_format  # finds: template-apply

put = setattr
clear = partial(setattr, value=None)


def meddle(tokenizer, model, rows, record):
    """tokenizer.apply_chat_template is prose here."""
    text = tokenizer.apply_chat_template(rows)  # finds: template-apply
    apply = getattr(tokenizer, "apply_chat_template")  # finds: template-apply
    tokenizer.chat_template = None  # finds: template-set
    tokenizer.chat_template, record.seen = None, True  # finds: template-set
    del tokenizer.chat_template  # finds: template-set
    setattr(tokenizer, "chat_template", "")  # finds: template-set
    object.__setattr__(tokenizer, "chat_template", "")  # finds: template-set
    put(tokenizer, "chat_" + "template", "")  # finds: template-set
    clear(tokenizer, "chat_template")  # finds: template-set
    tokenizer.__dict__["chat_template"] = None  # finds: template-dict
    vars(tokenizer)["chat_template"] = None  # finds: template-dict
    tokenizer.__dict__.update(chat_template=None)  # finds: template-dict
    tokenizer.init_kwargs.pop("chat_template", None)  # finds: template-dict
    record["chat_template"] = tokenizer.chat_template
    tokenizer.add_special_tokens({"pad_token": "<pad>"})  # finds: template-token
    tokenizer.add_tokens(["<reply>"])  # finds: template-token
    return text, apply, setup_chat_format(model, tokenizer)


def chat(engine, question):
    """<|im_start|>user is prose here."""
    turn = f"<start_of_turn>user\n{question}<end_of_turn>"  # finds: template-markup
    other = "<|im_start|>user\n" + question  # finds: template-markup
    third = "<|user|>" + question  # finds: template-markup
    stop = engine.encode("<|im_end|>")  # finds: template-markup
    return turn, other, third, stop, "[INST] {} [/INST]".format(question)  # finds: template-markup


LAYOUT = "{% for message in messages %}{{ message }}{% endfor %}"  # finds: template-markup
