"""The record index: which records each stage execution really consumed, and how often.

`sampling` says which rows a stage's sampler took, `usage` which records that were, `tables` keeps both as Parquet;
`tasks.lineage.index` builds it after a stage and answers questions.
"""
