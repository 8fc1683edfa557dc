"""Tests of the admin page; a package, so that what they share ends with them."""
