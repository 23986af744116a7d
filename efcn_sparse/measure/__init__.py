"""What ``efcn-sparse bench``, ``tune`` and ``doctor --measure`` measure with; an installed wheel has it too.

ops      spmm and sddmm against dense products, torch.sparse and SciPy
vanilla  a training step of VanillaCNN and of its twins; memory: its peak
locally_connected  such layers against Flax and unfold + bmm
layers   forward and backward of each sparse layer of a plan
timing   calls in turn; machine: what they ran on; report: the page and the JSON file
tune     configurations of the GPU kernels; gpu_clock, gpu_capture: the time of a call on a GPU
"""
