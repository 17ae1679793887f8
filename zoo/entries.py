"""The table of networks: one literal row each, and what the paper reports of it.

Data only: this module needs nothing but the standard library. What this project measured stands in `zoo/cards/`, never
here.
"""

from __future__ import annotations

from typing import NamedTuple


class Paper(NamedTuple):
    """What the paper reports: parameters in millions, accuracies in percent; None where it gives no number."""

    source: str
    params_train: float | None
    params_test: float | None
    top1_mean: float | None
    top1_std: float | None
    top1_best: float | None
    top5: float | None = None


class Entry(NamedTuple):
    """One network. `wiring` is "learned", "random" (fixed, drawn from the seed) or "full" (ResNeXt)."""

    name: str
    dataset: str
    depth: int
    width: int
    cardinality: int
    fan_in: int
    wiring: str
    stem: str = "conv3"
    stem_filters: int = 16
    filters: int = 64
    stages: tuple[int, ...] | None = None
    paper: Paper | None = None


# fmt: off
ROWS = (
    # The embedded data set; not in the paper.
    Entry("digits_11_4_4_full", "optical_digits", 11, 4, 4, 4, "full"),
    Entry("digits_11_4_4_k1", "optical_digits", 11, 4, 4, 1, "learned"),
    Entry("digits_11_4_4_k2", "optical_digits", 11, 4, 4, 2, "learned"),
    Entry("digits_11_4_4_random_k2", "optical_digits", 11, 4, 4, 2, "random"),
    # Not in the paper.
    Entry("fashion_mnist_20_4_8_full", "fashion_mnist", 20, 4, 8, 8, "full"),
    Entry("fashion_mnist_20_4_8_k1", "fashion_mnist", 20, 4, 8, 1, "learned"),
    Entry("fashion_mnist_20_4_8_k4", "fashion_mnist", 20, 4, 8, 4, "learned"),
    Entry("fashion_mnist_20_4_8_random_k4", "fashion_mnist", 20, 4, 8, 4, "random"),
    # CIFAR-10: Table 3.
    Entry("cifar10_20_4_8_full", "cifar10", 20, 4, 8, 8, "full", paper=Paper("Table 3", None, None, 91.13, 0.11, 91.39)),
    Entry("cifar10_20_4_8_k1", "cifar10", 20, 4, 8, 1, "learned"),
    Entry("cifar10_20_4_8_k2", "cifar10", 20, 4, 8, 2, "learned"),
    Entry("cifar10_20_4_8_k3", "cifar10", 20, 4, 8, 3, "learned"),
    Entry("cifar10_20_4_8_k4", "cifar10", 20, 4, 8, 4, "learned", paper=Paper("Table 3", None, None, 92.76, 0.10, 92.85)),
    Entry("cifar10_20_4_8_k5", "cifar10", 20, 4, 8, 5, "learned"),
    Entry("cifar10_20_4_8_k6", "cifar10", 20, 4, 8, 6, "learned"),
    Entry("cifar10_20_4_8_k7", "cifar10", 20, 4, 8, 7, "learned"),
    Entry("cifar10_20_4_8_k8", "cifar10", 20, 4, 8, 8, "learned"),
    Entry("cifar10_20_4_8_random_k4", "cifar10", 20, 4, 8, 4, "random"),
    Entry("cifar10_29_4_8_full", "cifar10", 29, 4, 8, 8, "full", paper=Paper("Table 3", None, None, 92.65, 0.09, 92.77)),
    Entry("cifar10_29_4_8_k1", "cifar10", 29, 4, 8, 1, "learned"),
    Entry("cifar10_29_4_8_k4", "cifar10", 29, 4, 8, 4, "learned", paper=Paper("Table 3", None, None, 93.76, 0.12, 93.88)),
    Entry("cifar10_29_4_8_random_k4", "cifar10", 29, 4, 8, 4, "random"),
    Entry("cifar10_29_8_8_full", "cifar10", 29, 8, 8, 8, "full", paper=Paper("Table 3", None, None, 93.14, 0.11, 93.26)),
    Entry("cifar10_29_8_8_k1", "cifar10", 29, 8, 8, 1, "learned"),
    Entry("cifar10_29_8_8_k4", "cifar10", 29, 8, 8, 4, "learned", paper=Paper("Table 3", None, None, 94.96, 0.12, 95.11)),
    Entry("cifar10_29_8_8_random_k4", "cifar10", 29, 8, 8, 4, "random"),
    Entry("cifar10_29_64_8_full", "cifar10", 29, 64, 8, 8, "full", stem_filters=64, filters=256, paper=Paper("Table 3", None, None, 96.23, 0.12, 96.35)),
    Entry("cifar10_29_64_8_k1", "cifar10", 29, 64, 8, 1, "learned", stem_filters=64, filters=256),
    Entry("cifar10_29_64_8_k4", "cifar10", 29, 64, 8, 4, "learned", stem_filters=64, filters=256, paper=Paper("Table 3", None, None, 96.73, 0.11, 96.83)),
    Entry("cifar10_29_64_8_random_k4", "cifar10", 29, 64, 8, 4, "random", stem_filters=64, filters=256),
    # CIFAR-100: Table 1, and Figures 2 and 4, which give no numbers.
    Entry("cifar100_20_4_8_full", "cifar100", 20, 4, 8, 8, "full"),
    Entry("cifar100_20_4_8_k1", "cifar100", 20, 4, 8, 1, "learned", paper=Paper("Figure 2", 0.28, None, None, None, None)),
    Entry("cifar100_20_4_8_k2", "cifar100", 20, 4, 8, 2, "learned", paper=Paper("Figure 2", 0.28, None, None, None, None)),
    Entry("cifar100_20_4_8_k3", "cifar100", 20, 4, 8, 3, "learned", paper=Paper("Figure 2", 0.28, None, None, None, None)),
    Entry("cifar100_20_4_8_k4", "cifar100", 20, 4, 8, 4, "learned", paper=Paper("Figure 2", 0.28, None, None, None, None)),
    Entry("cifar100_20_4_8_k5", "cifar100", 20, 4, 8, 5, "learned", paper=Paper("Figure 2", 0.28, None, None, None, None)),
    Entry("cifar100_20_4_8_k6", "cifar100", 20, 4, 8, 6, "learned", paper=Paper("Figure 2", 0.28, None, None, None, None)),
    Entry("cifar100_20_4_8_k7", "cifar100", 20, 4, 8, 7, "learned", paper=Paper("Figure 2", 0.28, None, None, None, None)),
    Entry("cifar100_20_4_8_k8", "cifar100", 20, 4, 8, 8, "learned", paper=Paper("Figure 2", 0.28, None, None, None, None)),
    Entry("cifar100_20_4_8_random_k4", "cifar100", 20, 4, 8, 4, "random"),
    Entry("cifar100_29_4_8_full", "cifar100", 29, 4, 8, 8, "full"),
    Entry("cifar100_29_4_8_k1", "cifar100", 29, 4, 8, 1, "learned", paper=Paper("Figure 4", None, None, None, None, None)),
    Entry("cifar100_29_4_8_k4", "cifar100", 29, 4, 8, 4, "learned", paper=Paper("Figure 4", None, None, None, None, None)),
    Entry("cifar100_29_4_8_random_k4", "cifar100", 29, 4, 8, 4, "random"),
    Entry("cifar100_29_8_8_full", "cifar100", 29, 8, 8, 8, "full", paper=Paper("Table 1", 0.86, 0.86, 73.37, 0.13, 73.52)),
    Entry("cifar100_29_8_8_k1", "cifar100", 29, 8, 8, 1, "learned", paper=Paper("Table 1", 0.86, 0.65, 73.76, 0.14, 73.91)),
    Entry("cifar100_29_8_8_k4", "cifar100", 29, 8, 8, 4, "learned", paper=Paper("Table 1", 0.86, 0.81, 75.77, 0.12, 75.89)),
    Entry("cifar100_29_8_8_random_k4", "cifar100", 29, 8, 8, 4, "random", paper=Paper("Table 1", 0.86, 0.85, 72.66, 0.24, 72.85)),
    Entry("cifar100_29_64_8_full", "cifar100", 29, 64, 8, 8, "full", stem_filters=64, filters=256, paper=Paper("Table 1", 34.4, 34.4, 82.12, 0.12, 82.23)),
    Entry("cifar100_29_64_8_k1", "cifar100", 29, 64, 8, 1, "learned", stem_filters=64, filters=256, paper=Paper("Table 1", 34.4, 20.5, 82.18, 0.19, 82.34)),
    Entry("cifar100_29_64_8_k4", "cifar100", 29, 64, 8, 4, "learned", stem_filters=64, filters=256, paper=Paper("Table 1", 34.4, 32.1, 83.94, 0.11, 84.05)),
    Entry("cifar100_29_64_8_random_k4", "cifar100", 29, 64, 8, 4, "random", stem_filters=64, filters=256, paper=Paper("Table 1", 34.4, 34.3, 81.73, 0.20, 81.96)),
    # Mini-ImageNet: Table 4.
    Entry("mini_imagenet_20_4_8_full", "mini_imagenet", 20, 4, 8, 8, "full", stem="conv3_pool", paper=Paper("Table 4", None, None, 61.86, 0.15, 62.12)),
    Entry("mini_imagenet_20_4_8_k1", "mini_imagenet", 20, 4, 8, 1, "learned", stem="conv3_pool"),
    Entry("mini_imagenet_20_4_8_k4", "mini_imagenet", 20, 4, 8, 4, "learned", stem="conv3_pool", paper=Paper("Table 4", None, None, 65.94, 0.16, 66.09)),
    Entry("mini_imagenet_20_4_8_random_k4", "mini_imagenet", 20, 4, 8, 4, "random", stem="conv3_pool", paper=Paper("Table 4", None, None, 61.81, 0.32, 62.42)),
    Entry("mini_imagenet_29_8_8_full", "mini_imagenet", 29, 8, 8, 8, "full", stem="conv3_pool", paper=Paper("Table 4", None, None, 67.89, 0.19, 68.11)),
    Entry("mini_imagenet_29_8_8_k1", "mini_imagenet", 29, 8, 8, 1, "learned", stem="conv3_pool"),
    Entry("mini_imagenet_29_8_8_k4", "mini_imagenet", 29, 8, 8, 4, "learned", stem="conv3_pool", paper=Paper("Table 4", None, None, 71.18, 0.19, 71.36)),
    Entry("mini_imagenet_29_8_8_random_k4", "mini_imagenet", 29, 8, 8, 4, "random", stem="conv3_pool", paper=Paper("Table 4", None, None, 67.53, 0.20, 67.97)),
    # ImageNet: Table 2, a single number each; top-1, then top-5.
    Entry("imagenet_50_4_32_full", "imagenet2012", 50, 4, 32, 32, "full", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 6, 3), paper=Paper("Table 2", None, None, None, None, 77.8, 93.3)),
    Entry("imagenet_50_4_32_k1", "imagenet2012", 50, 4, 32, 1, "learned", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 6, 3)),
    Entry("imagenet_50_4_32_k16", "imagenet2012", 50, 4, 32, 16, "learned", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 6, 3), paper=Paper("Table 2", None, None, None, None, 79.1, 94.1)),
    Entry("imagenet_50_4_32_random_k16", "imagenet2012", 50, 4, 32, 16, "random", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 6, 3)),
    Entry("imagenet_101_4_32_full", "imagenet2012", 101, 4, 32, 32, "full", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 23, 3), paper=Paper("Table 2", None, None, None, None, 78.8, 94.1)),
    Entry("imagenet_101_4_32_k1", "imagenet2012", 101, 4, 32, 1, "learned", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 23, 3)),
    Entry("imagenet_101_4_32_k16", "imagenet2012", 101, 4, 32, 16, "learned", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 23, 3), paper=Paper("Table 2", None, None, None, None, 79.5, 94.5)),
    Entry("imagenet_101_4_32_random_k16", "imagenet2012", 101, 4, 32, 16, "random", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 23, 3)),
    Entry("imagenet_101_4_64_full", "imagenet2012", 101, 4, 64, 64, "full", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 23, 3), paper=Paper("Table 2", None, None, None, None, 79.6, 94.7)),
    Entry("imagenet_101_4_64_k1", "imagenet2012", 101, 4, 64, 1, "learned", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 23, 3)),
    Entry("imagenet_101_4_64_k32", "imagenet2012", 101, 4, 64, 32, "learned", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 23, 3), paper=Paper("Table 2", None, None, None, None, 79.8, 94.8)),
    Entry("imagenet_101_4_64_random_k32", "imagenet2012", 101, 4, 64, 32, "random", stem="conv7_pool", stem_filters=64, filters=256, stages=(3, 4, 23, 3)),
)
# fmt: on

ENTRIES = {entry.name: entry for entry in ROWS}
