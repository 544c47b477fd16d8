"""Where the parts of a page stand: what a layout detector finds, and the rules that tidy it."""
