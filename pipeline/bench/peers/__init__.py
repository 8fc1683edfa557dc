"""The job of ``tallyport bench stream`` in other stream processors, each in a process of its own.

They run in an environment of their own (``make peers``), in which tallyport is installed without
its dependencies: of it they import only ``pipeline.bench.job``, ``pipeline.bench.process_cost`` and
the core under them.
"""
