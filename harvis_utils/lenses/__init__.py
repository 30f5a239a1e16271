"""Other lenses on the same networks: what a unit, a layer or a class responds to, seen in ways the paper does not use.

Every lens works on any ``nn.Module`` whose layers have names (:mod:`harvis_utils.networks.taps`), one module per lens.
"""
