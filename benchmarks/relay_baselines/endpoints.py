"""Endpoints as staff register them, all of them the same upstream; run inside the product's settings.

python -m benchmarks.relay_baselines.endpoints BASE_URL COUNT
"""

import os
import sys

import django


def main(base_url: str, count: int) -> None:
    """Register so many endpoints of one priority, with everything the pool and the ledger look at."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatsite.settings")
    django.setup()
    from providers.models import Endpoint

    for number in range(1, count + 1):
        row = Endpoint(
            name=f"bench-{number}",
            dialect="openai",
            base_url=base_url,
            model="mock",
            priority=1,
            weight=number,
            concurrency_max=10_000,
            requests_per_minute=1_000_000,
            input_micros_per_million=2_000_000,
            output_micros_per_million=8_000_000,
        )
        row.set_api_key("sk-bench-0123456789")
        row.save()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
