"""Benchmarks: what a Nix image costs beside a plain image, on the same containerd, in the same run.

    python tests/bench/run.py --quick                               # does it all work? a minute or two
    python tests/bench/run.py --json results.json --docs docs       # the figures of docs/benchmarks.md
    python tests/bench/run.py --only start --only load              # some of them
    python tests/bench/run.py --render results.json --docs docs     # the table and plots again, without measuring

Needs root, and what the system tests need: containerd, runc and Nix, and Go for the cycles. What is measured is the
nixsnap installed beside the running interpreter. Nothing here asserts a time: the figures of one machine say little
of another, their ratios more. So every figure has its counterpart from containerd's own overlayfs snapshotter,
measured in turn with it (A B A B …), and medians are given with the smallest and the largest sample.

Each benchmark yields series of samples (`results.py`, kept as JSON). Which series a line of the table sets against
which, and the target it is to reach, is declared in `rows.py`; `table.py` and `plots.py` only draw.
"""
