"""Parts of a page: a layout detector's regions, and the rules that tidy them."""
