"""Captions of whole data sets, as a column of their own."""
