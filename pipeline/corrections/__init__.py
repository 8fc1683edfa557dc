"""Corrections between Kafka and ledger: resolving them, and sending them from the command line.

Owns: what a correction comes to, decided once (``resolver``), and which events a bulk correction
is for. Does not own: the rules (``core.corrections``), tables and budgets, writing ledger rows.
"""
