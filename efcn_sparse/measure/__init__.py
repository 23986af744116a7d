"""Speed, measured as ratios inside one process: the code behind ``efcn-sparse bench`` and ``pytest benchmarks/``.

It lives in the package, not in ``benchmarks/``, so that an installed wheel can measure the machine that it runs on.

    shapes    what is measured, and the goals: data
    contest   interleaved timing of contestants, and the statistics
    machine   what the numbers were taken on
    roofline  what that machine can do at most
    ops       spmm and sddmm against dense, torch.sparse and SciPy
    vanilla   a training step of VanillaCNN and of its twins
    memory    the peak memory of such a step, each in a process of its own
    gpu_clock the time of a call on a GPU
    tune      configurations of the GPU kernels, timed: rows for a tuning file
    suite     all of it in one run
    report    JSON and Markdown
"""
