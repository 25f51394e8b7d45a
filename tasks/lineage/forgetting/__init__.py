"""Forgetting records: what they are now (`candidates`), which are meant (`selection`), what else goes (`listing`),
who holds them (`holders`, `versions`), and how they are taken out of sources and caches (`rewriting`, `purge`)."""
