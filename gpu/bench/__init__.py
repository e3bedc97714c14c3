"""Paired runs, transformers' own decoding beside ours, and the plan."""
