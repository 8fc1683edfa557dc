"""Tests of BI drivers; a package, so that the ledger they share ends with them."""
