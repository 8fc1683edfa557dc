"""The recount: every event of the log judged, priced and added up a second time.

This is the oracle of the audit. It shares no code with the worker: the standard library's
``json``, exact rationals, the price library itself. It reads the input records, the rates and the
record of which of them decided from which offset, and nothing else. ``tests/test_architecture``
holds it to that.
"""
