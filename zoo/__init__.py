"""Data of the zoo: the table of networks, cards and weights. The functions over it are `gated_resnext.zoo`."""
