"""What different supports hold of an off-local part for so many numbers: of the gradient, and of trained weights.

Its page is docs/supports.md.

    python -m experiments.off_local            # docs/supports.md: table, JSON and figure

    curves       share of the squared norm against numbers stored: single entries, blocks, low rank, dilation
    low_rank     UVᵀ fitted where the matrix counts, free where it does not
    layers       a layer of the eFCN as dense matrices with its local part marked
    trajectory   the nets of a relax run, trained here or read from a run directory
    measure      all of it for one seed and relax time
    cut          the trained net with its off-local part cut down to what a support would have held
    page         Markdown
    figure       the curves as a picture
"""
