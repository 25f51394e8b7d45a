"""`axon audit`: everything is hashed and verified anew, and what does not agree is named with its place."""
