"""A judge at the top of a module, in no function."""

GOOD, BAD = "A", "B"
rows = open_rows()
out = model(**tokenizer(rows[0]))
last = out.logits[0, -1]  # finds: scorer-inline
margin = last[first_token(GOOD)] - last[first_token(BAD)]
