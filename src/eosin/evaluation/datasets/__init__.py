"""Datasets to judge models on: folders, tables, masks, slides, patch sets; public ones in `public`."""
