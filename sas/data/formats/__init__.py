"""Readers and writers of the field's annotation formats: each reader turns a record into a `RawScene`, `raw.assemble` does the rest."""
