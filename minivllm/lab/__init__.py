"""The laboratory: what measures and explains the engine, and is no part of it.

    bench          what the engine costs, and where the time goes; other engines beside it
    compare        the same requests with and without one idea
    figures        the papers' figures, redrawn
    simulation     the real scheduler and memory, in virtual time, on hardware that is not here
    microscope     kernels, run thread by thread and recorded
    subjects       what is measured: settings, models and the workload that engines are compared on
    workloads      which requests arrive, when, and how long they are
    tiny_model     the corpus and the training of the shipped model

The lab stands above the engine and below the command line. Inside it, a room uses those on the floors below:

    figures
    bench, compare
    simulation, subjects
    workloads, tiny_model, microscope, drawing, papers

Read next: `bench/__init__.py`, `compare/__init__.py`.
"""
