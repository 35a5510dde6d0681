"""What durability costs: the same product with a log that forgets."""

from .product import Product


class ProductWithoutLog(Product):
    """The full path, delivered without waiting for the log."""

    name = "product, no log"
